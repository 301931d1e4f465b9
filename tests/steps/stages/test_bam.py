"""The stage `bam` through a spec: what it shares, what it leaves alone, what it adds, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from hba_ray.errors import CheckpointError, DataError, SpecError
from hba_ray.evaluation.arms import arms_of
from hba_ray.report.tables import render_markdown
from hba_ray.runs.cost import measure_cost
from hba_ray.runs.plan import plan
from hba_ray.runs.run import Finished, run_experiment
from hba_ray.specs import ExperimentSpec
from hba_ray.steps import KINDS
from hba_ray.steps.inputs import describe
from hba_ray.steps.stages import bam as step
from hba_ray.store.finished import FILES, MADE_FROM
from hba_ray.store.folders import Storage, finish
from hba_ray.store.folders import done as read_mark
from hba_ray.training import states
from tests.helpers.described import use_made_up
from tests.helpers.experiments import small_experiment
from tests.helpers.journals import ReadableJournal
from tests.helpers.kinds import replace_make

pytestmark = pytest.mark.usefixtures("made_up")
ATLAS = {"source": "toy", "toy": {"rows": 80}, "limit": 6, "media": {"audio_seconds": 1, "video_frames": 2, "video_pixels": 3136}}
BAM = {"hidden": 16, "epochs": 2, "batch": 4, "cache_precision": "fp32"}
TEXT_ONLY = "toy_words"
EXTRACT, OPEN = KINDS["describe"].make, describe.open_descriptors
"""As they are where nothing is made up."""


def experiment(storage: Path, **changes: object) -> ExperimentSpec:
    fields = BAM | {path.removeprefix("bam__"): value for path, value in changes.items() if path.startswith("bam__")}
    others = {path: value for path, value in changes.items() if not path.startswith("bam__")}
    return small_experiment(storage, **{"stages": ["sft", "bam"], "atlas": ATLAS, "sft__epochs": 1, "bam": fields, **others})


def run(spec: ExperimentSpec, tracker: ReadableJournal | None = None) -> Finished:
    return run_experiment(plan(spec), lambda line: None, tracker or ReadableJournal())


def events(made: Finished) -> list[tuple[str, str | None]]:
    return [(fact["event"], fact.get("step")) for fact in map(json.loads, (made.folder / "ledger.jsonl").read_text().splitlines())]


def done(made: Finished) -> list[str | None]:
    """Steps that were done, without those that compare arms."""
    return [name for event, name in events(made) if event == "done" and not str(name).startswith("compare")]


def folder(spec: ExperimentSpec, name: str) -> Path:
    return next(one.folder for one in plan(spec, Storage(spec.compute.storage)).steps if one.name == name)


def predictions(spec: ExperimentSpec, arm: str) -> dict[tuple[str, str], dict[str, Any]]:
    table = pq.read_table(folder(spec, f"evaluate {arm}") / "predictions.parquet")
    return {(row["dataset"], row["sample_id"]): row for row in table.to_pylist()}


def contents(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file() and path.name != ".lock"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Finished, ReadableJournal]:
    """A storage folder with a finished run of both stages in it."""
    storage, tracker = tmp_path_factory.mktemp("runs"), ReadableJournal()
    return storage, run(experiment(storage), tracker), tracker


def test_the_steps_come_in_order_and_every_one_is_recorded(finished):
    _, made, tracker = finished
    states_steps = ["states train", "states validation", "states test"]
    assert done(made) == ["atlas", "describe", "backbone", "sft", *states_steps, "bam", "evaluate sft", "evaluate sft+bam"]
    assert list(made.report.scores) == ["sft", "sft+bam"]
    assert made.report.scores["sft+bam"].published_model == "OmniSapiens-7B BAM"
    assert sorted(tracker.metrics["bam/toy_nod/validation_loss"]) == [1, 2]
    assert all(re.fullmatch(r"[\w\-. :/]+", name) for name in tracker.metrics), "MLflow takes these"
    assert any(note.startswith("BAM: adapters for 3 datasets") for note in made.report.notes)
    assert "## From sft to sft+bam" in render_markdown(made.report)


def test_both_arms_predict_the_same_rows_and_text_only_ones_stay_as_they_were(finished):
    storage, _, _ = finished
    spec = experiment(storage)
    before, after = predictions(spec, "sft"), predictions(spec, "sft+bam")
    assert before.keys() == after.keys()
    own = {"predicted", "answer", "probability"}
    for key, row in before.items():
        assert {name: value for name, value in row.items() if name not in own} == {
            name: value for name, value in after[key].items() if name not in own
        }
        assert key[0] != TEXT_ONLY or after[key] == row
    changed = {key[0] for key in before if before[key] != after[key]}
    assert changed >= {"toy_tone", "toy_nod"} and TEXT_ONLY not in changed


def test_the_sft_model_is_the_same_file_with_and_without_bam(finished, tmp_path: Path):
    storage, made, _ = finished
    spec = experiment(storage)
    sft, evaluated = contents(folder(spec, "sft")), contents(folder(spec, "evaluate sft"))
    alone = run(experiment(storage, stages=["sft"]))
    assert done(alone) == [], "all of it is shared"
    run(experiment(storage, bam__lr=1e-2))
    assert contents(folder(spec, "sft")) == sft and contents(folder(spec, "evaluate sft")) == evaluated
    assert alone.report.scores["sft"] == made.report.scores["sft"]


@pytest.mark.parametrize(
    "change", [{"bam__lr": 1e-3}, {"bam__hidden": 8}, {"bam__streams": ["pose"]}, {"bam__seed": 5}, {"bam__epochs": 1}]
)
def test_every_trial_of_bam_shares_the_states(finished, change):
    storage, _, _ = finished
    names = {one.name: one.fingerprint for one in plan(experiment(storage), Storage(storage)).steps}
    others = {one.name: one.fingerprint for one in plan(experiment(storage, **change), Storage(storage)).steps}
    redone = {name for name in names if names[name] != others[name]}
    assert redone - {"describe"} == {"bam", "evaluate sft+bam", "compare sft+bam"}


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"bam__raw_media": False}, {"states"}),
        ({"bam__cache_precision": "bf16"}, {"states"}),
        ({"model__precision": "bf16"}, {"sft", "states"}),
        ({"atlas": ATLAS | {"media": {"audio_seconds": 2, "video_frames": 2, "video_pixels": 3136}}}, {"sft", "states", "backbone"}),
        ({"sft__lr": 2e-3}, {"sft", "states"}),
    ],
)
def test_states_are_named_by_all_that_they_depend_on(finished, change, redone):
    storage, _, _ = finished
    names = {one.name: one.fingerprint for one in plan(experiment(storage), Storage(storage)).steps}
    others = {one.name: one.fingerprint for one in plan(experiment(storage, **change), Storage(storage)).steps}
    changed = {name.split()[0] for name in names if names[name] != others[name] and not name.startswith(("bam", "evaluate", "compare"))}
    assert changed == redone


def test_a_second_trial_runs_no_backbone(finished, monkeypatch):
    storage, _, _ = finished

    def refuse(*arguments: object) -> None:
        raise AssertionError("the backbone is run")

    monkeypatch.setattr(states.StateExtractor, "states", refuse)
    other = run(experiment(storage, bam__hidden=8))
    assert done(other) == ["bam", "evaluate sft+bam"]
    again = run(experiment(storage, bam__hidden=8))
    assert events(again)[-1] == ("finished", None) and len(done(again)) == 2


def test_with_the_model_in_the_loop_the_predictions_are_the_same(finished):
    storage, made, _ = finished
    stored, live = experiment(storage), experiment(storage, bam__states="live")
    names = [one.name for one in plan(live, Storage(storage)).steps]
    assert names == ["atlas", "describe", "backbone", "sft", "bam", "evaluate sft", "evaluate sft+bam", "compare sft+bam"]
    assert "with the SFT model in the loop" in plan(live, Storage(storage)).step("bam", None).what
    in_loop = run(live)
    assert in_loop.report.scores["sft+bam"] == made.report.scores["sft+bam"]
    assert not any(path.startswith(step.LIVE) for path in read_mark(folder(live, "bam"))[FILES]), "checkpoints are no part of the result"
    one, other = predictions(stored, "sft+bam"), predictions(live, "sft+bam")
    for key, row in one.items():
        assert (row["predicted"], row["answer"]) == (other[key]["predicted"], other[key]["answer"])
        assert row["probability"] == pytest.approx(other[key]["probability"], abs=1e-4)


def test_without_raw_media_the_reference_is_shown_what_the_adapters_are_shown(finished):
    storage, _, _ = finished
    spec = experiment(storage, bam__raw_media=False)
    assert list(map(str, arms_of(spec))) == ["sft", "sft without media", "sft+bam"]
    made = run(spec)
    plain, without, after = (predictions(spec, arm) for arm in map(str, arms_of(spec)))
    seen = {key for key in plain if plain[key]["prompt_hash"] != without[key]["prompt_hash"]}
    assert {key[0] for key in seen} >= {"toy_tone", "toy_nod", "toy_answers"}, "the marks of the clips are withheld"
    assert all(after[key] == without[key] for key in after if key[0] == TEXT_ONLY)
    assert "## From sft without media to sft+bam" in render_markdown(made.report)
    assert any("the SFT model shown the same" in note for note in made.report.notes)


def test_an_atlas_without_such_datasets_is_refused(finished):
    storage, _, _ = finished
    with pytest.raises(SpecError, match=r"bam: no dataset of the atlas .* has one of the streams acoustic"):
        run(experiment(storage, bam__streams=["acoustic"], bam__datasets=["toy_nod"]))


def test_a_stage_bam_without_its_model_is_refused():
    with pytest.raises(ValueError, match="no stage 'sft' comes before 'bam'"):
        ExperimentSpec.model_validate({"name": "x", "stages": ["bam"], "atlas": {"source": "toy"}})


def test_the_released_settings_are_taken_with_compat_authors():
    spec = ExperimentSpec.model_validate({"name": "x", "compat": "authors", "stages": ["sft", "bam"], "atlas": {"source": "toy"}})
    assert (spec.bam.alpha, spec.bam.epochs, spec.bam.cache, spec.bam.decoder_injection) == (4.0, 3, False, "post_norm")
    assert not any(one.kind.name == "states" for one in plan(spec, Storage("/tmp")).steps)


def interrupted(spec: ExperimentSpec, name: str) -> Path:
    """The folder of a step that is to be done again, the later ones too."""
    steps = plan(spec, Storage(spec.compute.storage)).steps
    place = [one.name for one in steps].index(name)
    for one in steps[place:]:
        (one.folder / "done.json").unlink(missing_ok=True)
    return steps[place].folder


@pytest.mark.parametrize("changed", ["prompt", "media", "checkpoint"])
def test_states_of_something_else_are_refused_with_what_differs(finished, changed):
    storage, _, _ = finished
    spec = experiment(storage, bam__lr=3e-3)
    manifest = folder(spec, "states train") / "pooled" / "states.json"
    kept, mark = manifest.read_text(), folder(spec, "states train") / "done.json"
    known = mark.read_bytes()
    facts = json.loads(kept)
    facts["identity"][changed] = "another"
    try:
        manifest.write_text(json.dumps(facts))
        forget_files(mark.parent)
        with pytest.raises(DataError, match=f"holds backbone states of something else: {changed} was another, is") as refused:
            run(spec)
        assert refused.value.where == str(manifest.parent)
    finally:
        manifest.write_text(kept)
        mark.write_bytes(known)


def forget_files(step: Path) -> None:
    """Makes a finished step one of a former version, which did not list its files."""
    facts = read_mark(step) or {}
    finish(step, {key: value for key, value in facts.items() if key not in (FILES, MADE_FROM)})


def test_adapters_of_another_model_are_refused(finished):
    storage, _, _ = finished
    spec = experiment(storage, bam__lr=4e-3)
    run(spec)
    interrupted(spec, "evaluate sft+bam")
    manifest = folder(spec, "bam") / step.ADAPTERS / "toy_nod" / "adapters.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"base": "another"}))
    forget_files(folder(spec, "bam"))
    with pytest.raises(CheckpointError, match="is of another SFT model: base is 'another'"):
        run(spec)


def test_descriptors_of_another_width_are_refused(finished):
    storage, _, _ = finished
    spec = experiment(storage, bam__lr=5e-3)
    run(spec)
    interrupted(spec, "evaluate sft+bam")
    with pytest.MonkeyPatch.context() as patch:
        use_made_up(patch, narrower=True)
        with pytest.raises(DataError, match=r"has 11 features, the adapter takes 12|has 19 features, the adapter takes 20"):
            run(spec)


def test_an_interrupted_bam_step_leaves_finished_adapters_alone(finished, monkeypatch):
    from hba_ray.training import bam as training

    storage, _, _ = finished
    spec = experiment(storage, bam__lr=6e-3)
    train = training._train_dataset

    def stop(job: Any, dataset: str, *others: Any) -> Any:
        if dataset == "toy_nod":
            raise KeyboardInterrupt
        return train(job, dataset, *others)

    monkeypatch.setattr(training, "_train_dataset", stop)
    with pytest.raises(KeyboardInterrupt):
        run(spec)
    adapters = folder(spec, "bam") / step.ADAPTERS
    assert [path.name for path in adapters.iterdir() if not path.name.startswith(".")] == ["toy_tone"]
    before = {path: path.stat().st_ino for path in (adapters / "toy_tone").iterdir()}
    monkeypatch.setattr(training, "_train_dataset", train)
    made = run(spec)
    assert {path: path.stat().st_ino for path in (adapters / "toy_tone").iterdir()} == before
    assert (adapters / "toy_nod").is_dir() and done(made) == ["bam", "evaluate sft+bam"]


def test_what_adapters_cost_is_measured_on_a_finished_run(finished):
    storage, made, _ = finished
    rows: list[int] = []
    found, where = measure_cost(plan(experiment(storage)), 4, 1, lambda: rows.append(1))
    assert where == made.folder and (found.rows, found.warm_up, len(rows)) == (4, 1, 5)
    assert found.without.mean > 0 and found.with_bam.mean > 0 and found.with_bam.peak > 100
    with pytest.raises(SpecError, match="the step 'bam' is not done yet"):
        measure_cost(plan(experiment(storage, bam__lr=0.5)), 4, 1, lambda: None)
    with pytest.raises(SpecError, match="stages: has no 'bam'"):
        measure_cost(plan(experiment(storage, stages=["sft"])), 4, 1, lambda: None)


def gains(storage: Path, **changes: object) -> dict[str, tuple[float, float]]:
    """Dataset -> score of the SFT model without media, and with adapters; on voices, whose words say nothing, and on remarks."""
    atlas = ATLAS | {"toy": {"rows": 480}, "limit": None, "datasets": ["toy_tone", TEXT_ONLY]}
    fields = {"bam__raw_media": False, "bam__epochs": 8, "bam__batch": 8, "bam__lr": 2e-3, "bam__norm": "zscore", "model__train": "heads"}
    scores = run(experiment(storage, atlas=atlas, **fields | changes)).report.scores
    both = zip(scores["sft without media"].datasets, scores["sft+bam"].datasets, strict=True)
    return {before.dataset: (before.value or 0.0, after.value or 0.0) for before, after in both}


def assert_gain_is_what_descriptors_say(storage: Path) -> None:
    told, shuffled = (gains(storage, bam__streams=["acoustic"], bam__shuffle_descriptors=kind) for kind in (False, True))
    for words_before, words_after in (told[TEXT_ONLY], shuffled[TEXT_ONLY]):
        assert words_before == words_after, "no adapter there"
    before, after = told["toy_tone"]
    assert after > before + 0.2 and after > 0.8
    assert shuffled["toy_tone"][1] < 0.65 and shuffled["toy_tone"][1] < after - 0.2


@pytest.mark.slow
def test_descriptors_that_say_the_label_lift_their_task_and_shuffled_ones_do_not(tmp_path: Path):
    assert_gain_is_what_descriptors_say(tmp_path)


@pytest.mark.slow
def test_so_do_those_that_opensmile_extracts_from_the_toy_s_voices(tmp_path: Path, monkeypatch):
    pytest.importorskip("opensmile")
    replace_make(monkeypatch, "describe", EXTRACT)
    monkeypatch.setattr(describe, "open_descriptors", OPEN)
    assert_gain_is_what_descriptors_say(tmp_path)


def test_rows_that_the_states_could_not_be_computed_of_are_counted(tmp_path: Path, toy):
    """With `sft.checkpoint` no other step reads the training rows, so nothing else would count them."""
    atlas = tmp_path / "atlas"
    shutil.copytree(toy.jsonl, atlas)
    lines = [json.loads(line) for line in (atlas / "train.jsonl").read_text().splitlines()]
    bad = next(line for line in lines if line["dataset"] == "toy_tone" and line["audios"])
    (atlas / bad["audios"][0]).write_bytes(b"no sound")
    source = {"source": "released", "root": str(atlas), "on_bad_row": "drop", "media": ATLAS["media"]}
    storage = tmp_path / "runs"
    first = run(experiment(storage, atlas=source, stages=["sft"]))
    model = folder(experiment(storage, atlas=source), "sft") / "model"
    assert first.report.facts.rows_dropped == {"toy_tone": {"corrupt audio": 1}}
    made = run(experiment(storage, atlas=source, sft__checkpoint=str(model)))
    states = plan(experiment(storage, atlas=source, sft__checkpoint=str(model))).step("states", None)
    assert states is not None and states.result().lost == {"train": {"toy_tone": {"corrupt audio": 1}}}
    assert made.report.facts.rows_dropped == {"toy_tone": {"corrupt audio": 1}}
