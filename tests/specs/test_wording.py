"""The prompt that the released code makes, from files that the user points at; the sentences here are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from hba_ray.data.prompts import chat_message, load_reasoning, withhold
from hba_ray.data.rows import Row, parse_row
from hba_ray.data.tasks import DATASETS
from hba_ray.errors import DataError, SpecError
from hba_ray.specs.sections.model import ModelSpec
from hba_ray.specs.wording import Wording, load_system_prompt

RELEASED = Wording("released")
MADE_UP = """
raise SystemExit("never executed")


class Loader:
    def turns(self, messages, name):
        other = {"role": "user", "content": name}
        messages.insert(0, {
            "role": "system",
            "content": [{"type": "text", "text": (
                "You are a made-up assistant, "
                "and you see."
            )}]
        })
"""


def row(problem: str, **media: int) -> Row:
    clips = {name: (b"clip",) * count for name, count in media.items()}
    return Row("one", "one", DATASETS["toy_tone"], problem, answer="low", label="low", media=clips)


def content(given: Row, wording: Wording = RELEASED) -> list[str]:
    return [part.get("text", f"<{part['type']}>") for part in chat_message(given, wording)[-1]["content"]]


def test_released_prompts_keep_every_line_break():
    problem = "<video>\n<audio>\n\nSo.\nWhat is felt?\n"
    assert content(row(problem, video=1, audio=1)) == ["<video>", "\n", "<audio>", "\n\nSo.\nWhat is felt?\n"]
    assert content(row(problem, video=1, audio=1), Wording()) == ["<video>", "<audio>", "So.\nWhat is felt?"]
    hidden = withhold(row(problem, video=1, audio=1), ("text", "audio"), "released")
    assert content(hidden) == ["\n", "<audio>", "\n\nSo.\nWhat is felt?\n"]
    assert content(withhold(row(problem, video=1, audio=1), ("text", "audio")), Wording()) == ["<audio>", "So.\nWhat is felt?"]


def test_marks_that_a_prompt_lacks_are_put_in_front_in_the_released_order():
    assert content(row("Why?", video=1, audio=1, image=1)) == ["<audio>", "<video>", "<image>", "Why?"]
    assert content(row("Why?", video=1, audio=1, image=1), Wording()) == ["<image>", "<video>", "<audio>", "Why?"]
    assert content(row("See <video> here", video=2, audio=1)) == ["<audio>", "<video>", "See ", "<video>", " here"]


def test_a_row_with_a_mark_too_few_is_read_and_one_too_many_is_not():
    record = {"problem": "See <video>.", "answer": DATASETS["toy_tone"].labels[0], "dataset": "toy_tone", "videos": [b"a", b"b"]}
    assert len(parse_row(record, where="row").media["video"]) == 2
    with pytest.raises(DataError, match="1 <video> but the row has 0"):
        parse_row(record | {"videos": []}, where="row")


def test_the_system_turn_is_read_from_text_or_out_of_a_program_that_is_not_executed(tmp_path: Path):
    (tmp_path / "turn.txt").write_bytes(b"  Be brief. \n")
    (tmp_path / "base_dataset.py").write_text(MADE_UP)
    assert load_system_prompt(str(tmp_path / "turn.txt")) == "  Be brief. "
    assert load_system_prompt(str(tmp_path / "base_dataset.py")) == "You are a made-up assistant, and you see."
    wording = Wording.of(ModelSpec(system_prompt=str(tmp_path / "turn.txt")))
    first, second = chat_message(row("Why?"), wording)
    assert first == {"role": "system", "content": [{"type": "text", "text": "  Be brief. "}]} and second["role"] == "user"
    assert Wording().identity() == {} and Wording.of(ModelSpec()) == Wording()
    assert len({str(Wording(layout, system).identity()) for layout in ("trimmed", "released") for system in (None, "a", "b")}) == 6


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("none.txt", None, "no such file"),
        ("empty.txt", b" \n", "is empty"),
        ("bytes.txt", b"\xff\xfe", "cannot be read"),
        ("broken.py", b"def (", "cannot be read"),
        ("none.py", b"x = {'role': 'user'}", "holds 0 system turns"),
        ("two.py", b"x = [{'role': 'system', 'content': 'a'}, {'role': 'system', 'content': 'b'}]", "holds 2 system turns"),
        ("deep.py", b"x = " + b"-" * 50_000 + b"1", "cannot be read"),
        ("large.txt", b"x" * (2 << 20), "larger than"),
    ],
)
def test_a_file_that_holds_no_system_turn_is_refused(tmp_path: Path, name: str, data: bytes | None, said: str):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(SpecError, match=said):
        load_system_prompt(str(tmp_path / name))
    with pytest.raises(SpecError, match="no such file"):
        load_system_prompt(str(tmp_path))


def test_a_template_of_jinja_is_the_instruction_around_a_prompt(tmp_path: Path):
    file = tmp_path / "default.jinja"
    file.write_text("{{ content }}Muse in <think> </think>, then say \\boxed{}.\n")
    asked = load_reasoning(str(file)).ask(row("<audio>\nSad?", audio=1))
    assert asked.problem == "<audio>\nSad?Muse in <think> </think>, then say \\boxed{}."
    for text, said in (("{{ content }} {% if x %}", "more of Jinja"), ("<think> </think> \\boxed{}", "0 times")):
        file.write_text(text)
        with pytest.raises(SpecError, match=said):
            load_reasoning(str(file))
    with pytest.raises(SpecError, match="no file of a prompt"):
        load_reasoning(str(tmp_path / "none.jinja"))
