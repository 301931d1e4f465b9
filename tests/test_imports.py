"""What the package takes from others: only what it declares, and private names only where a list says why."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from hba_ray.cluster.environment import module_of
from hba_ray.descriptors.environments import ENVIRONMENTS

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "hba_ray").rglob("*.py"))
NAMES = [file.relative_to(ROOT / "hba_ray").as_posix() for file in FILES]

PRIVATE_NAMES = {
    "models/attention.py": "transformers says only under a private name what computes the attention of a loaded model",
    "cluster/ray_private.py": "what Ray offers under private names only, behind functions of ours",
    "cluster/forkable.py": "seeds of Ray's ids, and os._exit; it runs as a script, where the package may not be installed",
    "rl/patches.py": "defects of verl and vLLM, mended where they are; versions are fixed",
    "rl/rollouts.py": "methods of verl's agent loop that a loop of one's own overrides",
    "rl/settings.py": "reads verl's configuration without resolving it",
    "rl/trainer.py": "methods of verl's trainer that a trainer of one's own overrides",
}
"""File -> why it uses private names of other packages."""
NOT_PRIVATE = {"_replace", "_asdict", "_fields"}
"""Public names of named tuples."""


def third_party(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] not in {*sys.stdlib_module_names, "hba_ray"}


def imported(file: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of all that a file imports from other packages, those inside functions included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if third_party(alias.name))
        elif isinstance(node, ast.ImportFrom) and not node.level and third_party(node.module):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def private_names(file: Path) -> Iterator[str]:
    """Private names of other packages, with their lines: imported ones, and attributes that no class or function of the file has."""
    for line, name in imported(file):
        if any(part.startswith("_") for part in name.split(".")):
            yield f"line {line}: {name}"
    tree = ast.parse(file.read_text(encoding="utf-8"))
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and re.fullmatch(r"_[^_]\w*", node.attr)]
    own = {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    own |= {node.target.id for node in ast.walk(tree) if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    for node in attributes:
        is_above = isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name) and node.value.func.id == "super"
        if node.attr not in NOT_PRIVATE and (is_above or node.attr not in own):
            yield f"line {node.lineno}: {node.attr}"


def declared() -> set[str]:
    """Modules of all packages that pyproject.toml names, and of those that extractors get in an environment of their own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return {module_of(Requirement(line)) for line in stated} | {one.module.partition(".")[0] for one in ENVIRONMENTS.values()}


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_every_import_from_another_package_is_declared(file: Path) -> None:
    unknown = {f"line {line}: {name}" for line, name in imported(file) if name.partition(".")[0] not in declared()}
    assert not unknown, f"name its package in pyproject.toml, in the smallest extra that needs it: {sorted(unknown)}"


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_private_names_of_other_packages_are_only_where_the_list_says_why(file: Path) -> None:
    name, found = file.relative_to(ROOT / "hba_ray").as_posix(), list(private_names(file))
    if name in PRIVATE_NAMES:
        assert found, f"{name} uses no private names any more: take it off the list"
    else:
        assert not found, f"{found}: use a public way, or a function of cluster/ray_private.py"


def test_the_rules_see_what_is_imported_in_functions_and_reached_by_attributes(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        "import os, json\nfrom hba_ray import errors\n"
        "def load(node):\n    import ray._private.state\n    from torch._C import store\n    return node._get_node(1)\n"
        "class Own(Base):\n    _mine = 1\n    def _run(self):\n        self._set = Own()._run\n        return super()._run()\n"
    )
    assert [name for _, name in imported(file)] == ["ray._private.state", "torch._C.store"]
    assert list(private_names(file)) == ["line 4: ray._private.state", "line 5: torch._C.store", "line 6: _get_node", "line 11: _run"]
