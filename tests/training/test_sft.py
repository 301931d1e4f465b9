"""The worker's line in this process: it learns, repeats itself exactly, and goes on where it was cut off."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from hba_ray.data.atlas import AtlasIndex, build_index
from hba_ray.errors import CheckpointError, DataError, TrainingError
from hba_ray.specs import AtlasSpec
from hba_ray.steps.stages.resume import always_zero
from hba_ray.training.hooks import StepLog
from hba_ray.training.launch import launch_stage
from tests.helpers.sft_jobs import Cut, Workshop, first_gradient, lines, losses, small_spec


@pytest.fixture
def train_rows(toy, tmp_path: Path) -> AtlasIndex:
    """An atlas without a validation split."""
    shutil.copy(next(toy.parquet.glob("train-*.parquet")), tmp_path)
    return build_index(AtlasSpec(root=str(tmp_path), limit=3), tmp_path)


def test_a_run_repeats_itself_exactly_and_learns(workshop: Workshop):
    spec = small_spec(sft={"epochs": 6})
    first, second = (launch_stage(workshop.job(spec, name), workshop.folder / name) for name in ("one", "two"))
    assert losses(workshop.folder / "one.jsonl") == losses(workshop.folder / "two.jsonl")
    assert first.state == second.state
    assert (first.model / "model.safetensors").read_bytes() == (second.model / "model.safetensors").read_bytes()
    validation = [line["validation_loss"] for line in lines(workshop.folder / "one.jsonl") if "validation_loss" in line]
    assert validation[-1] < validation[0]


@pytest.mark.parametrize(("step", "heads"), [(1, "states"), (2, "standardised"), (3, "states"), (4, "standardised")])
def test_a_run_cut_off_after_any_checkpoint_ends_as_if_it_had_not_been(workshop: Workshop, cut_after, step, heads):
    model = {"train": "lora", "lora": {"rank": 4, "dropout": 0.3}, "heads_learn_on": heads}
    spec = small_spec(compute={"checkpoint_every": 1}, model=model)
    whole = launch_stage(workshop.job(spec, "whole"), workshop.folder / "whole")
    cut_after(step)
    with pytest.raises(Cut):
        launch_stage(workshop.job(spec, "cut"), workshop.folder / "cut")
    resumed = launch_stage(workshop.job(spec, "cut"), workshop.folder / "cut")
    assert resumed.state == whole.state
    assert losses(workshop.folder / "cut.jsonl") == losses(workshop.folder / "whole.jsonl")
    assert (resumed.model / "model.safetensors").read_bytes() == (whole.model / "model.safetensors").read_bytes()


@pytest.mark.parametrize("window", [2, 8, 64])
def test_micro_batch_and_accumulation_do_not_change_the_step(workshop: Workshop, window):
    """Nor does a window that holds a piece of a step, one, or all steps of an epoch."""
    runs = {}
    for micro_batch in (8, 4, 2):
        spec = small_spec(sft={"shuffle_window": window}, compute={"micro_batch": micro_batch})
        launch_stage(workshop.job(spec, str(micro_batch)), workshop.folder / str(micro_batch))
        runs[micro_batch] = losses(workshop.folder / f"{micro_batch}.jsonl")
    assert len(runs[8]) == 8
    assert runs[4] == pytest.approx(runs[8], rel=1e-4)
    assert runs[2] == pytest.approx(runs[8], rel=1e-4)


def test_the_gradient_of_a_step_does_not_depend_on_the_micro_batch(workshop: Workshop):
    """In fp32 and without dropout, to the rounding of sums: each row weighs 1/sft.batch, and padding weighs nothing."""
    whole = first_gradient(workshop.job(small_spec(compute={"micro_batch": 8})))
    assert float(whole.abs().max()) > 0.01
    for micro_batch in (4, 2, 1):
        parts = first_gradient(workshop.job(small_spec(compute={"micro_batch": micro_batch})))
        assert float((parts - whole).norm() / whole.norm()) < 1e-5


def test_the_learning_rate_in_the_log_is_the_one_that_the_step_used(workshop: Workshop):
    spec = small_spec(sft={"warmup_steps": 4, "lr": 1e-3})
    launch_stage(workshop.job(spec), workshop.folder / "run")
    steps = [line for line in lines(workshop.folder / "job.jsonl") if "lr" in line]
    assert [line["lr"] for line in steps[:5]] == pytest.approx([0.0, 0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert steps[1]["gradient_norm"] == pytest.approx(steps[0]["gradient_norm"], rel=0.5) and steps[0]["gradient_norm"] > 0


def test_the_first_step_of_a_warm_up_uses_the_rate_0_and_moves_nothing(workshop: Workshop):
    """Which a log of the next step's rate would contradict."""
    spec = small_spec(sft={"epochs": 1, "batch": 20, "warmup_steps": 1}, compute={"micro_batch": 4})
    launch_stage(workshop.job(spec), workshop.folder / "run")
    (step,) = [line for line in lines(workshop.folder / "job.jsonl") if "lr" in line]
    assert step["lr"] == 0.0


def test_losses_of_weight_0_leave_gradients_of_0_in_the_log(workshop: Workshop):
    launch_stage(workshop.job(small_spec(sft={"class_loss_weight": 0, "answer_loss_weight": 0})), workshop.folder / "run")
    assert always_zero(lines(workshop.folder / "job.jsonl"), "gradient_norm")


@pytest.mark.parametrize("compute", [{"workers": 0, "micro_batch": 4}, {"workers": 2, "micro_batch": 2}, {"workers": 8, "micro_batch": 1}])
def test_the_schedule_does_not_depend_on_where_training_runs(workshop: Workshop, compute):
    rows = len(workshop.index.rows_of("train"))
    released = {"sft": {"batch": 8, "scheduler_horizon": "micro_batches"}, "compute": compute}
    job = workshop.job(small_spec(**released))
    assert workshop.job(small_spec(compute=compute)).schedule_steps == 2 * -(-rows // 8)
    assert job.schedule_steps == 2 * -(-rows // 4)
    assert replace(job, part="answers").schedule_steps == 2 * -(-rows // 2)


def test_the_model_of_the_lowest_validation_loss_is_kept(workshop: Workshop):
    spec = small_spec(sft={"epochs": 5, "lr": 3e-2, "warmup_steps": 0})  # too large a step: it gets worse again
    trained = launch_stage(workshop.job(spec), workshop.folder / "run")
    validation = [line["validation_loss"] for line in lines(workshop.folder / "job.jsonl") if "validation_loss" in line]
    assert trained.state.best_loss == min(validation)
    assert trained.state.best_epoch == validation.index(min(validation))
    assert json.loads((trained.model / "model.json").read_text())["meta"]["validation_loss"] == min(validation)


def test_patience_ends_training_early(workshop: Workshop):
    spec = small_spec(sft={"epochs": 30, "lr": 5e-2, "warmup_steps": 0, "patience": 1})
    trained = launch_stage(workshop.job(spec), workshop.folder / "run")
    assert trained.state.finished
    assert trained.state.flat_epochs == 1
    assert trained.state.epoch < 30


def test_a_loss_that_is_no_number_stops_with_its_step_and_rows(workshop: Workshop):
    spec = small_spec(sft={"lr": 1e30, "warmup_steps": 0, "max_gradient_norm": None})
    with pytest.raises(TrainingError, match="not a finite number on rows toy_"):
        launch_stage(workshop.job(spec), workshop.folder / "run")


def test_a_bad_row_stops_training_with_its_place(workshop: Workshop, toy, tmp_path):
    from hba_ray.data.atlas import build_index
    from hba_ray.specs import AtlasSpec

    source = next(toy.parquet.glob("train-*.parquet"))
    data = bytearray(source.read_bytes())
    place = data.find(b"RIFF")
    data[place : place + 4] = b"RAFF"
    (tmp_path / "atlas").mkdir()
    (tmp_path / "atlas" / source.name).write_bytes(data)
    index = build_index(AtlasSpec(root=str(tmp_path / "atlas")), tmp_path / "atlas")
    job = workshop.with_index(index).job(small_spec())
    with pytest.raises(DataError):
        launch_stage(job, workshop.folder / "run")


def test_a_damaged_checkpoint_is_refused_by_name_and_training_does_not_start_over(workshop: Workshop, cut_after):
    spec = small_spec()
    cut_after(3)
    with pytest.raises(Cut):
        launch_stage(workshop.job(spec), workshop.folder / "run")
    checkpoint = workshop.folder / "run" / "checkpoint"
    files = [*checkpoint.glob("engine/engine/*.pt"), checkpoint / "state.json", checkpoint / "layout.json"]
    assert len(files) >= 4
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CheckpointError, match=r"is damaged: .*\n  delete the step's folder") as refused:
            launch_stage(workshop.job(spec), workshop.folder / "run")
        assert refused.value.where == str(file)
        file.write_bytes(whole)
    for file in (checkpoint / "state.json", checkpoint / "engine" / "engine"):
        file.rename(workshop.folder / "gone")
        with pytest.raises(CheckpointError, match="is not a complete checkpoint: it holds no"):
            launch_stage(workshop.job(spec), workshop.folder / "run")
        (workshop.folder / "gone").rename(file)
    assert launch_stage(workshop.job(spec), workshop.folder / "run").state.finished


def test_a_step_log_with_a_damaged_line_in_it_is_gone_on_with(tmp_path: Path):
    log = StepLog(tmp_path / "metrics.jsonl")
    log.path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo\0\n{"step": 3, "loss": 1.0}\n{"step": 4')
    log.start(step=2, epoch=0)
    assert lines(log.path) == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("micro_batch", [2, 8])
def test_a_micro_batch_may_change_anywhere(workshop: Workshop, cut_after, step, micro_batch):
    """Three steps are an epoch here; a place inside one is counted in micro-batches, and is the same number of rows afterwards."""
    spec = small_spec(compute={"checkpoint_every": 1})
    whole = launch_stage(workshop.job(spec, "whole"), workshop.folder / "whole")
    cut_after(step)
    with pytest.raises(Cut):
        launch_stage(workshop.job(spec, "cut"), workshop.folder / "cut")
    other = small_spec(compute={"checkpoint_every": 1, "micro_batch": micro_batch})
    resumed = launch_stage(workshop.job(other, "cut"), workshop.folder / "cut")
    assert resumed.state.step == whole.state.step
    assert losses(workshop.folder / "cut.jsonl") == pytest.approx(losses(workshop.folder / "whole.jsonl"), rel=1e-4)


def test_a_checkpoint_whose_shards_would_not_fit_is_refused_with_both_values_and_keeps_its_log(workshop: Workshop, cut_after):
    cut_after(3)
    with pytest.raises(Cut):
        launch_stage(workshop.job(small_spec()), workshop.folder / "run")
    before = losses(workshop.folder / "job.jsonl")
    with pytest.raises(CheckpointError, match=r"was written with compute\.zero=2, and is now 3\n  run with that again"):
        launch_stage(workshop.job(small_spec(compute={"zero": 3})), workshop.folder / "run")
    assert losses(workshop.folder / "job.jsonl") == before


def test_heads_that_learnt_on_standardised_states_are_stored_for_states_as_they_are(workshop: Workshop):
    """What was trained either way goes on either way, with the validation loss that it had."""
    trained = launch_stage(workshop.job(small_spec(model={"heads_learn_on": "standardised"}), "first"), workshop.folder / "first")
    as_they_are = launch_stage(workshop.job(small_spec(), "usual"), workshop.folder / "usual")
    assert trained.state.best_loss != pytest.approx(as_they_are.state.best_loss, rel=1e-3)
    for heads in ("states", "standardised"):
        spec = small_spec(model={"heads_learn_on": heads}, sft={"epochs": 1, "lr": 1e-12})
        again = launch_stage(replace(workshop.job(spec, heads), init=str(trained.model)), workshop.folder / heads)
        assert again.state.best_loss == pytest.approx(trained.state.best_loss, rel=1e-4)


def test_without_a_validation_split_states_cannot_be_standardised(workshop: Workshop, train_rows):
    job = workshop.with_index(train_rows).job(small_spec(model={"heads_learn_on": "standardised"}))
    with pytest.raises(TrainingError, match="the validation split has 0 rows with a class"):
        launch_stage(job, workshop.folder / "run")


def test_without_a_validation_split_the_last_epoch_is_kept(workshop: Workshop, train_rows):
    trained = launch_stage(workshop.with_index(train_rows).job(small_spec()), workshop.folder / "run")
    assert (trained.state.best_loss, trained.state.best_epoch) == (None, 1)


def test_a_flipped_bit_in_a_checkpoint_is_found_before_training_goes_on(workshop: Workshop, cut_after):
    cut_after(3)
    with pytest.raises(Cut):
        launch_stage(workshop.job(small_spec()), workshop.folder / "run")
    checkpoint = workshop.folder / "run" / "checkpoint"
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and not path.name.startswith("digests-"))
    assert {"state.json", "model.safetensors"} < {file.name for file in files}
    for file in files:
        whole = file.read_bytes()
        middle = len(whole) // 2
        file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        with pytest.raises(CheckpointError) as refused:
            launch_stage(workshop.job(small_spec()), workshop.folder / "run")
        assert refused.value.where.startswith(str(file)), refused.value
        file.write_bytes(whole)
    assert launch_stage(workshop.job(small_spec()), workshop.folder / "run").state.finished
