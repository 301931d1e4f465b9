"""Runs the benchmarks: `python -m tests.bench [--json FILE] [NAME]...`, all by default. Each figure is printed when it is there."""

from __future__ import annotations

import argparse
import json
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path

import tests.bench

NAMES = sorted(module.name for module in pkgutil.iter_modules(tests.bench.__path__) if not module.name.startswith("_"))
Measure = Callable[[], Iterable[Mapping[str, float | str]]]


def measure(name: str) -> Measure:
    """What measures the figures of a benchmark."""
    return import_module(f"tests.bench.{name}").measure


def run(names: Iterable[str], file: Path | None, find: Callable[[str], Measure] = measure) -> list[str]:
    """Prints the figures of each benchmark as soon as it has them; one that fails does not end the others.

    Args:
        file: takes a JSON object a figure, a line each; lines that are there stay.

    Returns:
        Names of the benchmarks that failed.
    """
    failed = []
    for name in names:
        try:
            for figures in find(name)():
                for what, value in figures.items():
                    _tell(name, what, value, file)
        except Exception:  # whatever it is, the figures of the others are wanted
            traceback.print_exc()
            failed.append(name)
    return failed


def _tell(name: str, what: str, value: float | str, file: Path | None) -> None:
    shown = f"{value:.3g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    print(f"{name:12}  {what}: {shown}", flush=True)
    if file is not None:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"benchmark": name, "measure": what, "value": value}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measures the speed of the parts that matter.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write each figure into this file, as a line of JSON")
    given = parser.parse_args()
    if unknown := sorted(set(given.names) - set(NAMES)):
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are: {', '.join(NAMES)}")
    if failed := run(given.names or NAMES, given.json):
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
