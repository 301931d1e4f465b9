"""Held-out datasets: no stage trains on them but transfer, which starts from the SFT model or from the bare backbone."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hba_ray.data.atlas import read_rows
from hba_ray.data.rows import TAG, Row
from hba_ray.errors import SpecError
from hba_ray.evaluation.arms import arms_of
from hba_ray.runs.plan import plan
from hba_ray.runs.run import run_experiment
from hba_ray.specs import ExperimentSpec, load_spec
from hba_ray.steps.base import Context, Step
from hba_ray.steps.results.evaluate import PREDICTIONS
from hba_ray.steps.run import do_step
from hba_ray.steps.stages.sft import transfer_spec
from hba_ray.store.folders import Storage, done
from tests.helpers.experiments import small_experiment
from tests.helpers.journals import ReadableJournal
from tests.helpers.whisper import checkpoint


def spec(storage: Path, stages: tuple[str, ...] = ("sft", "transfer"), **changes: object) -> ExperimentSpec:
    held_out = {"atlas__held_out": ["toy_words", "toy nod"], "transfer__batch": 4, "stages": list(stages)}
    return small_experiment(storage, **held_out | changes)


def steps(of: ExperimentSpec, storage: Path) -> dict[str, Step]:
    return {step.name: step for step in plan(of, Storage(str(storage))).steps}


def test_each_held_out_dataset_has_a_step_and_they_share_an_arm(tmp_path):
    planned = steps(spec(tmp_path), tmp_path)
    assert [name for name in planned if name.startswith("transfer")] == ["transfer toy_words", "transfer toy_nod"]
    assert list(map(str, arms_of(spec(tmp_path)))) == ["sft", "sft+transfer"]
    assert list(map(str, arms_of(spec(tmp_path, ("transfer",))))) == ["transfer"]


def test_pretraining_is_part_of_what_a_transfer_is(tmp_path):
    pretrained, bare = (steps(spec(tmp_path, stages), tmp_path) for stages in (("sft", "transfer"), ("transfer",)))
    assert pretrained["transfer toy_nod"].fingerprint != bare["transfer toy_nod"].fingerprint
    longer = steps(spec(tmp_path, transfer__epochs=2), tmp_path)
    assert longer["sft"].fingerprint == pretrained["sft"].fingerprint
    assert longer["transfer toy_nod"].fingerprint != pretrained["transfer toy_nod"].fingerprint


def test_holding_a_dataset_out_is_another_experiment_and_nothing_held_out_is_the_old_one(tmp_path):
    plain = steps(small_experiment(tmp_path), tmp_path)
    assert steps(small_experiment(tmp_path, atlas__held_out=[]), tmp_path)["sft"].fingerprint == plain["sft"].fingerprint
    assert steps(small_experiment(tmp_path, atlas__held_out=["toy_nod"]), tmp_path)["sft"].fingerprint != plain["sft"].fingerprint


def test_batches_and_epochs_are_the_papers():
    raw = {
        "name": "x",
        "stages": ["sft", "transfer"],
        "atlas": {"source": "released", "root": "r", "held_out": ["daicwoz", "mmsd", "mosei_senti"]},
        "compute": {"workers": 8, "micro_batch": 2},
    }
    made = {name: transfer_spec(ExperimentSpec.model_validate(raw), name) for name in ("daicwoz", "mmsd", "mosei_senti")}
    assert [(one.sft.batch, one.sft.epochs) for one in made.values()] == [(4, 2), (16, 1), (32, 1)]
    assert [(one.compute.workers, one.compute.micro_batch, one.accumulation) for one in made.values()] == [(2, 2, 1), (8, 2, 1), (8, 2, 2)]


def test_transfer_without_held_out_datasets_is_refused(tmp_path):
    file = tmp_path / "spec.yaml"
    file.write_text("name: x\natlas: {source: toy}\nstages: [sft, transfer]\n")
    with pytest.raises(SpecError, match=r"atlas\.held_out names none"):
        load_spec(file)


@pytest.mark.slow
@pytest.mark.parametrize("stages", [("sft", "transfer"), ("sft",)])
def test_transfer_trains_on_what_was_said_in_the_rows_that_sft_is_not_shown(tmp_path, stages):
    pytest.importorskip("whisper")
    whisper = {"model": str(checkpoint(tmp_path / "tiny.pt")), "rows": "all"}
    changes = {"atlas__datasets": ["toy_tone", "toy_answers"], "atlas__held_out": ["toy_answers"], "atlas__limit": 4}
    spoken = spec(tmp_path, stages, **changes, descriptors__streams=["transcripts"], descriptors__transcripts=whisper)
    planned = steps(spoken, tmp_path)
    earlier: dict[str, Step] = {}
    for step in (planned["atlas"], planned["describe"]):
        do_step(Context(spoken, step, dict(earlier)), lambda line: None)
        earlier[step.name] = step
    later = Context(spoken, planned["sft" if "sft" in planned else "backbone"], earlier)
    held_out = {"toy_answers"} if "transfer" in stages else set()
    for index, said_in in ((later.whole_index, {"toy_tone"} | held_out), (later.index, {"toy_tone"})):
        heard = [line for line in index.rows_of("train").tolist() if line in index.transcripts]
        rows = [row for row in read_rows(index, heard) if isinstance(row, Row)]
        assert {row.dataset.id for row in rows} == said_in and len(rows) == len(heard)
        assert all(TAG.sub("", index.transcripts[line]).split()[0] in row.problem for line, row in zip(heard, rows, strict=True))


def test_whether_held_out_rows_are_transcribed_is_part_of_what_the_step_is(tmp_path):
    changes = {"descriptors__streams": ["transcripts"]}
    made = [steps(spec(tmp_path, stages, **changes), tmp_path)["describe"] for stages in (("sft", "transfer"), ("sft",), ("transfer",))]
    assert made[0].fingerprint == made[2].fingerprint != made[1].fingerprint


@pytest.mark.slow
def test_held_out_rows_are_trained_on_by_transfer_alone_and_evaluated_by_their_own_models(tmp_path):
    experiment = spec(tmp_path)
    made = run_experiment(plan(experiment), lambda line: None, tracker := ReadableJournal())
    planned = steps(experiment, tmp_path)
    context = Context(experiment, planned["sft"], {"atlas": planned["atlas"]})
    assert set(context.index.label_counts("train")) == {"toy_tone"}
    assert context.index.counts()["toy_words"].keys() == {"test"}
    assert set(context.whole_index.label_counts("train")) == {"toy_tone", "toy_nod", "toy_words"}
    assert (done(planned["sft"].folder) or {})["epochs"] == 2 and (done(planned["transfer toy_nod"].folder) or {})["epochs"] == 1
    own = pq.read_table(planned["evaluate sft+transfer"].folder / PREDICTIONS)
    assert set(own.column("dataset").to_pylist()) == {"toy_words", "toy_nod"}
    scores = made.report.scores["sft+transfer"]
    assert [score.dataset for score in scores.datasets] == ["toy_nod", "toy_words"] and scores.datasets[0].majority is not None
    assert "transfer/toy_nod/loss" in tracker.metrics
    models = [planned[name].folder / "model" for name in ("sft", "transfer toy_nod")]
    tensors = [sorted(file.read_bytes() for file in model.rglob("*.safetensors")) for model in models]
    assert tensors[0] and tensors[0] != tensors[1]
