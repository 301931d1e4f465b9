"""Runs the benchmarks: `python -m tests.bench [NAME]...`, all by default."""

import importlib
import json
import pkgutil
import sys

from rich.console import Console
from rich.table import Table

import tests.bench

NAMES = sorted(module.name for module in pkgutil.iter_modules(tests.bench.__path__) if not module.name.startswith("_"))


def main(names: list[str]) -> None:
    unknown = set(names) - set(NAMES)
    if unknown:
        sys.exit(f"no such benchmark: {', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}")
    table = Table("benchmark", "measure", "value", box=None, pad_edge=False)
    for name in names or NAMES:
        for measure, value in importlib.import_module(f"tests.bench.{name}").measure().items():
            shown = f"{value:.3g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
            table.add_row(name, measure, shown)
    Console(width=140).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
