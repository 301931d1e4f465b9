"""What a stranger reads is true: files exist, commands run, specs and keys are valid, nothing is promised as there that is not."""

import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

import pytest
import typer

from hba_ray import errors
from hba_ray.cli.main import app
from hba_ray.convert.conversion import convert
from hba_ray.data.tasks import DATASETS, Heads
from hba_ray.report.model import TINY_TITLE
from hba_ray.specs import ExperimentSpec, load_spec
from hba_ray.steps.held_out import untrained
from tests.helpers.own_data import write_own
from tests.test_floors import FLOORS, ROOF

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "experiments/README.md", "clusters/README.md")
SPECS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "experiments").rglob("*.yaml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
REPOSITORY_PATH = re.compile(r"(?<![\w./-])(?:hba_ray|experiments|clusters|tests|notebooks)/[\w./-]*\w")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")
KEY = re.compile(r"^([a-z]+(?:\.[a-z_]+)+)(?:=.*)?$")


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def fences(text: str, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(text) if kind == language]


def code(text: str) -> list[str]:
    """Lines of shell blocks and comments of specs, and what stands between backticks in prose."""
    lines = [line.strip("# ") for body in fences(text, "sh") for line in body.splitlines()]
    comments = [line.strip("# ") for line in text.splitlines() if line.startswith("#  ")]
    return lines + comments + re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def commands(program: str) -> list[tuple[str, list[str]]]:
    """(document, words after the program) of every command in the documents and in the specs' own comments."""
    lines = [(document, line) for document in (*DOCUMENTS, *SPECS) for line in code(read(document))]
    return [(document, words_of(line)) for document, line in lines if line.startswith(f"{program} ")]


def words_of(line: str) -> list[str]:
    """The words of a command after its name, without where its output goes."""
    words = shlex.split(line, comments=True)[1:]
    return words[: words.index(">")] if ">" in words else words


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_is_named_exists(document: str):
    text = read(document)
    linked = [(ROOT / document).parent / link for link in LINK.findall(text)]
    named = [ROOT / path for path in REPOSITORY_PATH.findall(LINK.sub("]", text))]
    missing = [str(path) for path in linked + named if not path.exists()]
    assert linked + named and not missing, f"{document} names {missing}"


@pytest.mark.parametrize(("document", "words"), commands("hba"), ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_every_hba_command_exists_and_takes_these_words(document: str, words: list[str], tmp_path: Path):
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"{document}: hba has no command '{words[0]}'"
        command, words = command.commands[words[0]], words[1:]
    if not words:
        return
    given = command.make_context(command.name, list(words)).params  # fails for an option, a value or a word that it does not take
    if "spec" in given:
        spec = given["spec"].as_posix()
        load_spec(ROOT / spec if spec in SPECS else saved_spec(spec, tmp_path), given.get("overrides") or ())


def saved_spec(name: str, folder: Path) -> Path:
    """The README's own spec under a name in capitals, which stands for a file of the reader's."""
    assert name == "SPEC.yaml"
    (spec,) = fences(README, "yaml")
    file = folder / name
    file.write_text(spec)
    return file


def test_the_documents_show_commands():
    assert {words[0] for _, words in commands("hba")} >= {"run", "plan", "validate", "report", "atlas"}
    assert {words[-1] for _, words in commands("make")} >= {"quickstart", "test", "check"}


@pytest.mark.parametrize(("document", "words"), commands("make"), ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_every_make_target_exists(document: str, words: list[str]):
    for word in words:
        variable = word.partition("=")[0]
        pattern = rf"^{variable} \?=" if "=" in word else rf"^{re.escape(word)}:"
        assert re.search(pattern, MAKEFILE, re.MULTILINE), f"{document}: the Makefile knows no {word}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_key_of_a_spec_that_is_named_exists(document: str):
    sections = ExperimentSpec.model_fields
    named = [match.group(1).split(".") for match in map(KEY.match, code(read(document))) if match]
    for section, *path in (words for words in named if words[0] in sections):
        kind: Any = sections[section].annotation
        for key in path:
            assert key in kind.model_fields, f"{document}: {section}.{'.'.join(path)} is no key"
            kind = kind.model_fields[key].annotation


@pytest.mark.parametrize("spec", SPECS)
def test_a_shipped_spec_is_valid_and_shows_its_own_command(spec: str):
    assert load_spec(ROOT / spec).name
    assert any(words[:2] == ["run", spec] for document, words in commands("hba") if document == spec)


def test_the_index_lists_exactly_the_shipped_specs():
    listed = re.findall(r"^\| \[[^]]+\]\(([^)]+)\)", read("experiments/README.md"), re.MULTILINE)
    assert sorted(f"experiments/{name}" for name in listed) == SPECS


def test_the_tour_leads_through_nine_files_from_a_spec_to_its_report():
    tour = README.partition("## A tour in nine files")[2].partition("\n## ")[0]
    files = re.findall(r"^\d\. \[([^]]+)\]\(\1\): \S", tour, re.MULTILINE)
    assert len(files) == len(set(files)) == 9
    floors = [path.split("/")[1] for path in files[1:]]
    assert files[0] in SPECS and floors == sorted(floors, key=("specs", "data", "models", "training", "evaluation", "runs").index)


def test_the_exit_codes_are_those_of_the_errors():
    stated = {int(number) for number in re.findall(r"(\d+) [a-z]", README.partition("Exit codes: ")[2].partition(".\n\n")[0])}
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.HbaError)]
    assert stated == {0, 3, 130} | {kind.exit_code for kind in classes}  # 3 is `hba reproduce`'s own


def test_the_sample_table_is_the_toy_atlas_and_says_where_it_comes_from():
    before, _, sample = README.partition("<!-- measured: ")[2].partition("-->\n```text\n")
    assert "make quickstart" in before
    rows = [line.split() for line in sample.partition("```")[0].splitlines() if "toy_" in line]
    assert sorted(row[2] for row in rows) == sorted(name for name, dataset in DATASETS.items() if dataset.is_toy)
    assert all(0 <= float(row[4]) <= 1 for row in rows)


def test_a_tiny_model_is_said_to_give_no_verdict():
    assert "no verdict" in TINY_TITLE and "no verdict" in README


def test_the_floors_are_drawn_as_they_are_tested():
    drawn = re.findall(r"^    ([\w, ]+)$", read("CONTRIBUTING.md"), re.MULTILINE)
    floors = [name for line in drawn for name in line.split(", ")]
    assert floors == [ROOF[0], *reversed(FLOORS)]


def test_the_readme_can_be_read_at_one_sitting():
    assert len(README.splitlines()) <= 160
    assert all(len(line) <= 140 for line in README.splitlines())


def test_data_of_ones_own_is_declared_joined_and_trained_on_word_for_word_as_the_guide_says(tmp_path: Path):
    guide = read("CONTRIBUTING.md").partition("**Data of your own**")[2].partition("**A public corpus**")[0]
    declared, joined = (textwrap.dedent(block) for block in re.findall(r"(?:^    .+\n)+", guide, re.MULTILINE))
    folder = write_own(tmp_path / "courtesy", declared=False)
    (folder / "dataset.yaml").write_text(declared)
    for place, source in (("/data/hba", tmp_path), ("/data/courtesy", folder)):
        assert joined.count(place) == 1
        joined = joined.replace(place, str(source))
    (tmp_path / "spec.yaml").write_text(f"name: x\nstages: [sft]\n{joined}")
    spec = load_spec(tmp_path / "spec.yaml")
    card = convert(spec.atlas.alone(1), tmp_path / "rows")
    assert {label: sum(count.labels[label] for count in card.counts) for label in ("rude", "polite")} == {"rude": 12, "polite": 12}
    assert Heads.of(spec.atlas).classes[25:] == (("POLITE", "rude"), ("POLITE", "polite")), "a head of its own behind the benchmark's"
    assert untrained(spec, ["courtesy", "iemocap"]) == ["iemocap"]
