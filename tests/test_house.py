"""The plan of the house: no circles, small folders, one place for each of its rules. The floors are in test_floors.py."""

import ast
from collections import Counter
from collections.abc import Iterator

from tests.test_floors import FILES, ROOT, imports, module_name, parse

MOST_MODULES = 15
"""Of a folder, its __init__ not counted."""
TAKEN_APART_BY = {"split", "rsplit", "partition", "rpartition", "startswith", "endswith", "removeprefix", "removesuffix"}
WORDS_OF_ARMS = {"bam", "without", "zero-shot", "probe"}


def files_but(*places: str) -> Iterator[tuple[str, ast.Module]]:
    for file in FILES:
        place = file.relative_to(ROOT).as_posix()
        if place not in places:
            yield place, parse(file)


def imported_modules() -> dict[str, set[str]]:
    """Module -> modules of this package that it imports, inside functions too."""
    names = {module_name(file): file for file in FILES}
    found: dict[str, set[str]] = {name: set() for name in names}
    for name, file in names.items():
        for node in ast.walk(parse(file)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "hba_ray" and not node.level:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    found[name].add(inner if inner in names else node.module)
        found[name] |= {one for _, one in imports(file) if one in names and not any(other.startswith(f"{one}.") for other in found[name])}
        found[name].discard(name)
    return found


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """A circle of modules, or nothing."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph.get(name, ())):
            if found := walk(other, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := walk(name, []))), [])


def test_no_modules_import_each_other_in_a_circle_not_even_inside_functions():
    assert not (found := circle_in(imported_modules())), " -> ".join(found)


def test_the_rule_finds_a_circle():
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == ["a", "b", "c", "a"]
    assert circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_a_folder_can_be_taken_in_at_a_glance():
    counts = Counter(file.parent.relative_to(ROOT).as_posix() for file in FILES if file.name != "__init__.py")
    assert not {folder: count for folder, count in counts.items() if count > MOST_MODULES}


def test_a_public_class_has_a_name_of_its_own():
    places: dict[str, list[str]] = {}
    for place, tree in files_but():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(place)
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_a_step_is_finished_in_one_place():
    places = [
        place
        for place, tree in files_but("hba_ray/store/folders.py")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "finish"
    ]
    assert places == ["hba_ray/steps/run.py"]


def test_the_name_of_an_arm_is_taken_apart_in_one_place():
    wrong = []
    for place, tree in files_but("hba_ray/evaluation/arms.py"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in TAKEN_APART_BY and node.args:
                words = [
                    one.value.strip() for one in ast.walk(node.args[0]) if isinstance(one, ast.Constant) and isinstance(one.value, str)
                ]
                wrong += [
                    f"{place}:{node.lineno}: {ast.unparse(node)}"
                    for word in words
                    if word in WORDS_OF_ARMS or (word == "+" and node.func.attr in ("split", "rsplit"))
                ]
            if isinstance(node, ast.Compare) and isinstance(node.left, ast.Constant) and node.left.value in WORDS_OF_ARMS - {"bam"}:
                wrong.append(f"{place}:{node.lineno}: {ast.unparse(node)}")
    assert not wrong, "\n".join(wrong)


def test_tests_stand_where_what_they_test_stands():
    """`tests/x/test_y.py` and `tests/x/test_y_topic.py` are about `hba_ray/x/y.py`."""
    folders = {folder.name for folder in (ROOT / "hba_ray").iterdir() if folder.is_dir()}
    wrong = []
    for test in sorted((ROOT / "tests").glob("*/test_*.py")):
        if test.parent.name not in folders:
            continue
        words = test.stem.removeprefix("test_").split("_")
        names = ["_".join(words[:count]) for count in range(len(words), 0, -1)]
        if not any((ROOT / "hba_ray" / test.parent.name / f"{name}.py").exists() for name in names):
            wrong.append(test.relative_to(ROOT).as_posix())
    assert not wrong, "\n".join(wrong)
