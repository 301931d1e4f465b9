"""The rules of the building: who may import whom, what stays light, and how long a file may be."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "hba_ray").rglob("*.py"))
NAMES = [file.relative_to(ROOT).as_posix() for file in FILES]

FLOORS = (
    "errors",
    "escaping",
    "progress",
    "environ",
    "limits",
    "specs",
    "store",
    "cluster",
    "data",
    "convert",
    "descriptors",
    "models",
    "training",
    "rl",
    "predict",
    "judge",
    "evaluation",
    "report",
    "steps",
    "runs",
    "actions",
)
"""Lowest first."""
ROOF = ("cli", "__main__")
"""Share the highest floor."""

LIGHT = ("hba_ray.specs", "hba_ray.cli.main", "hba_ray.data.tasks")
"""Modules that a light install imports."""
HEAVY = ("torch", "ray", "transformers", "mlflow", "pandas", "pyarrow", "deepspeed", "peft", "sklearn", "skimage", "av")

LONGEST_FILE, LONGEST_FUNCTION = 400, 60


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def floor(module: str) -> int:
    """0 for the bare package, which everybody may import."""
    parts = module.split(".")
    if len(parts) == 1:
        return 0
    return len(FLOORS) if parts[1] in ROOF else 1 + FLOORS.index(parts[1])


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every import of this package, those inside functions included."""
    package = module_name(file).split(".")
    package = package if file.name == "__init__.py" else package[:-1]
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            found = [f"{source}.{alias.name}" for alias in node.names] if source == "hba_ray" else [source]
        else:
            continue
        for name in found:
            if name.split(".")[0] == "hba_ray":
                yield node.lineno, "hba_ray" if name == "hba_ray.__version__" else name


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_a_module_imports_only_from_its_own_floor_or_below(file: Path) -> None:
    own = floor(module_name(file))
    above = [f"{file.relative_to(ROOT)}:{line} imports {name}, which is above it" for line, name in imports(file) if floor(name) > own > 0]
    assert not above, "\n".join(above)


def test_the_rule_sees_imports_inside_functions_and_relative_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "hba_ray" / "data" / "rows.py"
    file.parent.mkdir(parents=True)
    file.write_text("def load():\n    from ..models import omni\n    import hba_ray.cli\n\nfrom hba_ray import training\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert sorted(imports(file)) == [(2, "hba_ray.models"), (3, "hba_ray.cli"), (5, "hba_ray.training")]
    with pytest.raises(AssertionError, match=r"rows\.py:3 imports hba_ray\.cli"):
        test_a_module_imports_only_from_its_own_floor_or_below(file)


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_imports_nothing_heavy(module: str) -> None:
    if not (ROOT / module.replace(".", "/")).is_dir() and not (ROOT / module.replace(".", "/")).with_suffix(".py").exists():
        pytest.skip(f"{module} is not there yet")
    script = f"import sys, {module}; print(*sorted({set(HEAVY)!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.strip(), f"importing {module} imports {done.stdout.strip()}"


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_a_file_is_short_and_opens_by_saying_its_job(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE, f"{len(text.splitlines())} lines; split it"
    if text.strip():
        assert ast.get_docstring(parse(file)), "no docstring at the top"


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_functions_are_short_and_swallow_nothing(file: Path) -> None:
    wrong: list[str] = []
    may_print = "report" in file.relative_to(ROOT).parts
    for node in ast.walk(parse(file)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION:
            wrong.append(f"line {node.lineno}: {node.name} has {(node.end_lineno or 0) - node.lineno + 1} lines")
        if isinstance(node, ast.ExceptHandler) and _catches_all(node.type):
            wrong.append(f"line {node.lineno}: catches everything")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print" and not may_print:
            wrong.append(f"line {node.lineno}: prints")
    assert not wrong, "\n".join(wrong)


def _catches_all(caught: ast.expr | None) -> bool:
    named = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(kind is None or (isinstance(kind, ast.Name) and kind.id in ("Exception", "BaseException")) for kind in named)
