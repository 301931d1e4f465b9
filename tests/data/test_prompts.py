"""A transcript becomes a line of the prompt, labels are named where the prompt does not, and nothing else of the row changes."""

from dataclasses import replace

import pytest

from hba_ray.data.atlas import build_index, read_rows
from hba_ray.data.prompts import ask_plainly, chat_message, with_transcript
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS
from hba_ray.specs import AtlasSpec

ROW = Row("s", "c", DATASETS["toy_tone"], "<video>\n<audio>\nWhich emotion?", "anger", "anger", {"video": (b"v",), "audio": (b"a",)})


@pytest.mark.parametrize(
    ("problem", "words", "expected"),
    [
        ("<video>\n<audio>\nWhich emotion?", "I said no.", "<video>\n<audio>\nI said no.\nWhich emotion?"),
        ("Which emotion?", " I said\nno. ", "I said no.\nWhich emotion?"),
        ("<audio>Which emotion?", "No <video> here", "<audio>No here\nWhich emotion?"),
        ("Which emotion?", " <audio> ", "Which emotion?"),
        ("Which emotion?", "", "Which emotion?"),
    ],
)
def test_words_stand_behind_the_marks(problem: str, words: str, expected: str):
    row = with_transcript(replace(ROW, problem=problem), words)
    assert row == replace(ROW, problem=expected)


def test_clips_stay_where_they_were():
    content = chat_message(with_transcript(ROW, "I said no."))[0]["content"]
    assert [part["type"] for part in content] == ["video", "audio", "text"]
    assert content[2]["text"] == "I said no.\nWhich emotion?"


@pytest.mark.parametrize("layout", ["parquet", "jsonl"])
def test_rows_are_read_with_the_transcripts_of_the_index(toy, layout: str):
    folder = getattr(toy, layout)
    index = build_index(AtlasSpec(root=str(folder)), folder)
    lines = [int(line) for line in index.rows_of("test")[:5]]
    plain = list(read_rows(index, lines))
    spoken = list(read_rows(replace(index, transcripts={lines[1]: "Words of one.", lines[4]: "Words of four."}), lines[::-1]))
    changed = [number for number, (one, other) in enumerate(zip(plain, spoken, strict=True)) if one != other]
    assert changed == [1, 4]
    assert isinstance(spoken[4], Row) and isinstance(plain[4], Row)
    assert "Words of four." in spoken[4].problem and spoken[4].sample_id == plain[4].sample_id


def test_labels_are_named_in_a_prompt_that_does_not_name_them():
    row = Row("a", "a", DATASETS["mmsd"], "<audio>\nIs it meant?", "sarcasm", "sarcasm")
    assert ask_plainly(row).problem == "<audio>\nIs it meant?\nReply with one of these labels and nothing else: not sarcasm, sarcasm."
    named = replace(row, problem="Not sarcasm, or sarcasm?")
    assert ask_plainly(named) is named
    open_row = replace(row, dataset=DATASETS["mimeqa"])
    assert ask_plainly(open_row) is open_row
