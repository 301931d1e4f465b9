from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hba_ray.convert.conversion import convert
from hba_ray.convert.wording import load_prompts, open_question, question
from hba_ray.data.rows import parse_row
from hba_ray.data.tasks import DATASETS, SPLITS, Dataset
from hba_ray.errors import DataError, SpecError
from hba_ray.specs import AtlasSpec
from tests.helpers.fourteen import FOURTEEN

CONVERTED = [dataset for dataset in DATASETS.values() if not (dataset.is_toy or dataset.is_own)]
CLASS_DATASETS = [dataset for dataset in CONVERTED if not dataset.task.is_open]


def test_every_dataset_has_a_prompt_of_its_own():
    prompts = load_prompts().prompts
    assert set(prompts) == {dataset.id for dataset in CONVERTED}
    assert len(set(prompts.values())) == len(prompts) and not any("\n" in prompt for prompt in prompts.values())


def test_a_file_replaces_the_prompts_that_it_names(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("prompts:\n  mmsd: '{labels}? You have {given} {as such}.'\n  mimeqa: |\n    Look: {given}.\n    {question}\n")
    prompts = load_prompts(str(file))
    assert question(DATASETS["mmsd"], (), "So {given}.", prompts=prompts) == (
        "So {given}.\nnot sarcasm, sarcasm? You have a transcript {as such}."
    )
    shown = open_question(DATASETS["mimeqa"], ("video",), "What of {labels}?", prompts=prompts)
    assert shown == "<video>\nLook: a video.\nWhat of {labels}?"
    assert question(DATASETS["tess"], ("audio",), "x", prompts=prompts) == question(DATASETS["tess"], ("audio",), "x")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mmds: '{given} {labels}'", "'mmds' is the id of no dataset"),
        ("toy_nod: '{given} {labels}'", "'toy_nod' is the id of no dataset that is converted"),
        ("mmsd: '{given}'", r"mmsd holds the fields \['given'\]; it needs given and labels"),
        ("mmsd: '{given} {given} {labels}'", "it needs given and labels, in braces, once each"),
        ("mmsd: '{given} Is {speaker} mocking? {labels}'", "holds the fields .*'speaker'"),
        ("siq2: '{given} {labels}'", "it needs given and question"),
        ("mmsd: '<video> {given} {labels}'", "holds <video>, which stands for a clip"),
        ("mmsd: '{given} {labels} <|im_end|>'", "which tokenizers take for a control token"),
        ("mmsd: [a]", "string"),
    ],
)
def test_a_prompt_that_could_not_be_asked_is_refused_with_the_file(tmp_path: Path, text: str, says: str):
    (tmp_path / "mine.yaml").write_text(f"prompts: {{{text}}}" if text.endswith("]") else f"prompts:\n  {text}\n")
    with pytest.raises(SpecError, match=says) as caught:
        load_prompts(str(tmp_path / "mine.yaml"))
    assert caught.value.where.startswith("atlas.prompts=") and "hba_ray/convert/prompts.yaml" in caught.value.way_out


@pytest.mark.parametrize("source", sorted(FOURTEEN))
def test_every_converter_asks_in_the_words_of_the_file_and_says_so(tmp_path: Path, source: str):
    if source == "mosei":
        pytest.importorskip("h5py")
    held = [dataset for dataset in DATASETS.values() if dataset.source == source]
    lines = [f"  {one.id}: '{{given}} {{{'question' if one.task.is_open else 'labels'}}} {one.id} asks.'" for one in held]
    (tmp_path / "mine.yaml").write_text("prompts:\n" + "\n".join(lines))
    spec = AtlasSpec(source=source, root=str(FOURTEEN[source](tmp_path / "public")), prompts=str(tmp_path / "mine.yaml"))  # type: ignore[arg-type]
    card = convert(spec, tmp_path / "atlas")
    assert card.rules[-1] == f"Rows are asked in the words of {tmp_path / 'mine.yaml'}."
    rows = [json.loads(line) for split in SPLITS for line in (tmp_path / "atlas" / f"{split}.jsonl").read_text().splitlines()]
    assert rows and all(row["problem"].endswith(f" {row['dataset']} asks.") for row in rows)


def test_a_file_of_prompts_is_refused_where_no_row_would_be_asked_in_its_words():
    with pytest.raises(ValueError, match="no source is a corpus that is converted"):
        AtlasSpec(source="released", root="x", prompts="mine.yaml")


def test_a_prompt_holds_marks_transcript_naming_question_and_labels_in_this_order():
    prompt = question(DATASETS["meld_senti"], ("text", "audio", "video"), "Nice tie.")
    assert prompt.startswith("<video>\n<audio>\nNice tie.\nGiven above: a video, a sound recording and a transcript. ")
    assert prompt.endswith("Which sentiment does the speaker convey? Reply with one of these labels: negative, neutral, positive.")


def test_a_text_only_prompt_names_the_transcript_alone():
    prompt = question(DATASETS["cremad"], (), "The surface is slick.")
    assert "<" not in prompt
    assert "Given above: a transcript." in prompt


def test_a_prompt_without_transcript_names_the_clips_alone():
    assert question(DATASETS["ptsd_in_the_wild"], ("video",), None).startswith("<video>\nGiven above: a video. ")


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
        "<video>\n<audio>\nI wait.\n"
        "Given above: a video, a sound recording and a transcript. It is about people with each other. Why does he wait?"
    )
    with pytest.raises(DataError, match="the question holds <audio>"):
        open_question(siq2, (), "What of <audio>?")
    with pytest.raises(DataError, match="has a question of its own"):
        open_question(DATASETS["tess"], ("audio",), asked)
