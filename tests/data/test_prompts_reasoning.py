"""Prompts that ask for a thought and a box: the built-in one, files, and files that lack something."""

from pathlib import Path

import pytest

from hba_ray.data.prompts import chat_message, load_reasoning
from hba_ray.data.rows import Row
from hba_ray.errors import SpecError

GOOD = "template: |\n  {problem}\n  <think> </think> \\boxed{}\n"


def row(problem: str = "<video>\nWhat does {he} feel?") -> Row:
    return Row("1", "1", "toy_nod", problem, "sad", "sad", {"video": (b"clip",)})


def test_the_built_in_prompt_keeps_the_rows_own_and_its_marks():
    asked = load_reasoning("standard").ask(row())
    assert asked.problem.startswith("<video>\nWhat does {he} feel?\n")
    assert all(part in asked.problem for part in ("<think>", "</think>", "\\boxed{}"))
    assert [part["type"] for part in chat_message(asked)[0]["content"]] == ["video", "text"]


def test_plain_is_the_rows_own_prompt():
    assert load_reasoning("plain").ask(row()) == row()


def test_a_file_replaces_it(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("template: 'In \\boxed{}, after <think></think>: {problem}'\n")
    assert load_reasoning(str(file)).ask(row("Sad?")).problem == "In \\boxed{}, after <think></think>: Sad?"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD.replace("{problem}", "{question}"), "holds {problem} 0 times"),
        (GOOD.replace("{problem}", "{problem} {problem}"), "holds {problem} 2 times"),
        (GOOD.replace("</think>", ""), "does not ask for </think>"),
        (GOOD.replace("\\boxed{}", "a box"), "does not ask for \\boxed"),
        (GOOD.replace("{problem}", "<video>{problem}"), "holds <video>, which stands for a clip"),
        ("templates: x\n", "template: Field required"),
        ("template: 3\n", "template: Input should be a valid string"),
        ("template: ''\n", "template: String should have at least 1 character"),
        ("- {problem}\n", "file: Input should be a valid dictionary"),
        ("", "is empty"),
        ("template: [", "is not YAML"),
    ],
)
def test_a_file_without_its_parts_is_refused_with_its_name(tmp_path: Path, text: str, says: str):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(SpecError) as refused:
        load_reasoning(str(file))
    assert refused.value.where.startswith(f"grpo.prompts={file}")
    assert says in str(refused.value) and "hba_ray/data/reasoning.yaml" in refused.value.way_out


def test_a_file_that_is_not_there_is_refused_with_its_name(tmp_path: Path):
    with pytest.raises(SpecError, match="no such file"):
        load_reasoning(str(tmp_path / "none.yaml"))
    with pytest.raises(SpecError, match="is a folder"):
        load_reasoning(str(tmp_path))
