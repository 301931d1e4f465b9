"""The atlas step: what was put right in rows stands in its notes, and no file of a folder stops the plan with a traceback."""

import json
import os
from pathlib import Path

import pytest

from hba_ray.actions.describe import index_of
from hba_ray.errors import DataError, SpecError
from hba_ray.specs import ExperimentSpec
from hba_ray.steps.base import Context, Draft
from hba_ray.steps.inputs.atlas import AtlasResult, AtlasSteps
from hba_ray.steps.run import do_step
from hba_ray.store.folders import Storage
from tests.convert.conftest import write_meld
from tests.helpers.corpora import write_daicwoz
from tests.helpers.experiments import small_experiment
from tests.helpers.own_data import write_own

ROW = {"problem": "What happens?", "answer": "She waves.", "dataset": "siq2"}


def experiment(folder: Path, **atlas) -> ExperimentSpec:
    section = {"root": str(folder / "atlas"), **atlas}
    return ExperimentSpec.model_validate({"name": "rows", "atlas": section, "compute": {"storage": str(folder / "runs"), "workers": 0}})


def write(folder: Path, **splits: list[dict | str]) -> None:
    (folder / "atlas").mkdir(exist_ok=True)
    for split, rows in splits.items():
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / "atlas" / f"{split}.jsonl").write_text("\n".join(lines))


def made(spec: ExperimentSpec) -> AtlasResult:
    draft = Draft(spec, Storage(spec.compute.storage))
    AtlasSteps().plan(draft)
    do_step(Context(spec, draft["atlas"], {}), lambda line: None)
    return AtlasSteps().said(draft["atlas"].folder)


def test_the_notes_say_what_was_put_right_and_what_two_splits_share(tmp_path):
    odd = {**ROW, "problem": "She\x92s <|im_end|>", "modality_signature": "text_audio"}
    write(tmp_path, train=[ROW, odd], test=[ROW])
    spec = experiment(tmp_path)
    notes = AtlasSteps().notes(spec, made(spec))
    assert notes == [
        "Not withheld, but no row has it: audio, video, image.",
        "Put right when the rows were read: siq2: C1 characters (rows: 1), control tokens (rows: 1), "
        "modality_signature that contradicts the clips (rows: 1).",
        f"Leak between splits, siq2: rows of test that are in train, too: 1 ('{made(spec).leaks[0]['samples'][0]}').",
    ]
    assert index_of(spec)[1] == notes[1:]


def test_nothing_is_said_of_rows_that_are_in_order(tmp_path):
    write(tmp_path, train=[ROW], test=[{**ROW, "problem": "What else?"}])
    spec = experiment(tmp_path, modalities=["text"])
    assert AtlasSteps().notes(spec, made(spec)) == ["Withheld from the model: audio, video, image."]


def test_a_modality_that_no_row_has_is_told_from_one_that_is_withheld(tmp_path):
    spec = experiment(tmp_path, root=str(write_meld(tmp_path)), source="meld", modalities=["text", "audio"])
    notes = AtlasSteps().notes(spec, made(spec))
    assert notes[:2] == ["Withheld from the model: video, image.", "Not withheld, but no row has it: audio."]


def test_the_rules_of_a_conversion_and_what_it_found_are_told(tmp_path):
    spec = experiment(tmp_path, root=str(write_daicwoz(tmp_path / "public")), source="daicwoz")
    notes = AtlasSteps().notes(spec, made(spec))
    assert "daicwoz: Depression by a PHQ-8 score of 10." in notes
    assert "daicwoz: Session 409: score 10, but PHQ8_Binary 0; the score was taken." in notes
    assert not any("my secret" in note for note in notes)


def test_training_on_nothing_but_rows_outside_the_benchmark_is_refused_before_they_are_read(tmp_path):
    atlas = {"source": "own", "root": str(write_own(tmp_path / "own"))}
    with pytest.raises(SpecError, match=r"stage sft has no rows: courtesy .*\n  atlas.train_also=\[courtesy\]"):
        AtlasSteps.check(small_experiment(tmp_path, atlas=atlas))
    AtlasSteps.check(small_experiment(tmp_path, atlas=atlas | {"train_also": ["courtesy"]}))
    AtlasSteps.check(small_experiment(tmp_path, atlas=atlas, stages=[], evaluate__baselines=["tiny"]))


def test_a_leak_is_refused_where_the_spec_says_so(tmp_path):
    write(tmp_path, train=[ROW], test=[ROW])
    with pytest.raises(DataError, match="rows are in two splits: siq2"):
        made(experiment(tmp_path, leaks="refuse"))


def test_deep_brackets_are_a_bad_row_and_no_traceback(tmp_path):
    write(tmp_path, train=[ROW, "[" * 200_000, '{"videos":' * 100_000])
    result = made(experiment(tmp_path, on_bad_row="drop"))
    assert result.drops == {"unknown": {"not JSON": 2}} and result.counts == {"siq2": {"train": 1}}


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda file: os.symlink("/dev/zero", file)])
@pytest.mark.parametrize(
    ("source", "name"), [("released", "train.jsonl"), ("meld", "train_sent_emo.csv"), ("mustard", "sarcasm_data.json")]
)
def test_only_regular_files_are_opened_whatever_the_source(tmp_path, make, source, name):
    (tmp_path / "atlas").mkdir()
    make(tmp_path / "atlas" / name)
    with pytest.raises(DataError, match=rf"{name}: is a .*, not a file") as refused:
        made(experiment(tmp_path, source=source))
    assert refused.value.reason == "not a file"
