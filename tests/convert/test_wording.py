from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hba_ray.convert.wording import QUESTIONS, open_question, question
from hba_ray.data.rows import parse_row
from hba_ray.data.tasks import CLASS_TASKS, DATASETS, Dataset
from hba_ray.errors import DataError

CLASS_DATASETS = [dataset for dataset in DATASETS.values() if not dataset.task.is_open]


def test_every_task_with_a_head_has_a_question_and_no_open_task_has_one():
    assert set(QUESTIONS) == {task.id for task in CLASS_TASKS}


def test_a_prompt_holds_marks_transcript_naming_question_and_labels_in_this_order():
    prompt = question(DATASETS["meld_senti"], ("text", "audio", "video"), "Nice tie.")
    assert prompt.startswith("<video>\n<audio>\nNice tie.\nGiven above: a video, a sound recording and a transcript. ")
    assert prompt.endswith(f"{QUESTIONS['SEN']} Reply with one of these labels: negative, neutral, positive.")


def test_a_text_only_prompt_names_the_transcript_alone():
    prompt = question(DATASETS["cremad"], (), "The surface is slick.")
    assert "<" not in prompt
    assert "Given above: a transcript." in prompt


def test_a_prompt_without_transcript_names_the_clips_alone():
    assert question(DATASETS["toy_nod"], ("video",), None).startswith("<video>\nGiven above: a video. ")


def test_context_stands_before_the_line_that_is_judged():
    prompt = question(DATASETS["mmsd"], (), "BEN: Sure.", "ANN: Help me?\nANN: Please.")
    assert prompt.startswith("ANN: Help me?\nANN: Please.\nBEN: Sure.\nGiven above: a transcript. Judge the last line only")


def test_other_labels_can_be_offered():
    assert question(DATASETS["mmsd"], (), "Sure.", labels=("yes", "no")).endswith("labels: yes, no.")


@pytest.mark.parametrize("dataset", CLASS_DATASETS, ids=lambda dataset: dataset.id)
def test_a_prompt_reads_back_as_a_row_of_its_dataset(dataset: Dataset):
    problem = question(dataset, ("audio",), "Well.")
    row = parse_row({"problem": problem, "answer": dataset.labels[0], "dataset": dataset.id, "audios": [b"clip"]}, where="test")
    assert (row.problem, row.label, row.signature) == (problem, dataset.labels[0], "text_audio")


@pytest.mark.parametrize(
    ("dataset", "modalities", "transcript", "reason"),
    [("siq2", ("video",), "Hm.", "open task"), ("mmsd", (), None, "nothing to show"), ("mmsd", (), " \n", "empty text")],
)
def test_a_prompt_that_shows_nothing_is_refused(dataset: str, modalities: tuple[str, ...], transcript: str | None, reason: str):
    with pytest.raises(DataError) as caught:
        question(DATASETS[dataset], modalities, transcript, where="row 7")
    assert (caught.value.reason, caught.value.where) == (reason, "row 7")


@given(st.text(), st.sampled_from(["<video>", "<audio>", "<image>"]), st.text())
def test_a_transcript_cannot_smuggle_in_a_mark(before: str, mark: str, after: str):
    with pytest.raises(DataError) as caught:
        question(DATASETS["mmsd"], ("video",), before + mark + after)
    assert caught.value.reason == "mark in text"


def test_an_open_question_stands_behind_what_is_shown():
    siq2 = DATASETS["siq2"]
    asked = "Why does he wait?"
    assert open_question(siq2, (), asked) == asked
    assert open_question(siq2, ("audio", "video"), asked, "I wait.") == (
        "<video>\n<audio>\nI wait.\nGiven above: a video, a sound recording and a transcript. Why does he wait?"
    )
    with pytest.raises(DataError, match="the question holds <audio>"):
        open_question(siq2, (), "What of <audio>?")
    with pytest.raises(DataError, match="has a question of its own"):
        open_question(DATASETS["tess"], ("audio",), asked)
