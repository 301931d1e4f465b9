"""On several workers: the same losses under every ZeRO stage, after a killed worker, and errors that come out whole."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hba_ray.errors import BadMedia, CheckpointError, EnvironmentMissing
from hba_ray.specs import ComputeSpec
from hba_ray.training.launch import launch_stage, state_in
from tests.helpers.damaged_rows import with_broken_clip
from tests.helpers.killer import Killer
from tests.helpers.sft_jobs import Cut, Workshop, lines, losses, small_spec

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]
SHARED = {"cpus": 6, "cpus_per_worker": 0.5, "cpus_per_loader": 0.5, "micro_batch": 4, "object_store_mib": 200}


@pytest.fixture(scope="module", autouse=True)
def ray_cluster(tmp_path_factory) -> Iterator[None]:
    """One Ray for all tests here: each start costs ten seconds and more."""
    from hba_ray.cluster.session import ray_session

    with ray_session(ComputeSpec(cpus=6, object_store_mib=200, fork=True), tmp_path_factory.mktemp("logs")):
        yield


@pytest.fixture(scope="module")
def two_workers(small_index, tiny_backbone, tmp_path_factory) -> tuple[Path, list[float]]:
    """The model and the losses of an uninterrupted run on two workers, ZeRO 1."""
    workshop = Workshop(small_index, tiny_backbone, tmp_path_factory.mktemp("two"))
    spec = small_spec(compute=SHARED | {"workers": 2, "zero": 1})
    trained = launch_stage(workshop.job(spec), workshop.folder / "run")
    return trained.model, losses(workshop.folder / "job.jsonl")


def committed(folder: Path) -> bool:
    """Whether the controller has registered a checkpoint of the run."""
    snapshot = folder / "train" / "checkpoint_manager_snapshot.json"
    return snapshot.exists() and "checkpoint_" in snapshot.read_text()


def test_one_worker_on_ray_does_what_this_process_does(workshop: Workshop):
    for workers in (0, 1):
        spec = small_spec(compute=SHARED | {"workers": workers})
        launch_stage(workshop.job(spec, str(workers)), workshop.folder / str(workers))
    assert losses(workshop.folder / "1.jsonl") == pytest.approx(losses(workshop.folder / "0.jsonl"), rel=1e-6)


def test_a_run_that_was_cut_off_in_this_process_goes_on_on_ray_and_is_then_finished_for_both(workshop: Workshop, cut_after):
    here, on_ray = (small_spec(compute=SHARED | {"workers": workers, "checkpoint_every": 1}) for workers in (0, 1))
    whole = launch_stage(workshop.job(here, "whole"), workshop.folder / "whole")
    cut_after(2)
    with pytest.raises(Cut):
        launch_stage(workshop.job(here), workshop.folder / "run")
    log, folder = workshop.folder / "job.jsonl", workshop.folder / "run"
    before = lines(log)
    with pytest.raises(CheckpointError, match=r"was written with compute\.workers=1, and is now 2"):
        launch_stage(workshop.job(small_spec(compute=SHARED | {"workers": 2})), folder)
    assert lines(log) == before
    resumed = launch_stage(workshop.job(on_ray), folder)
    assert lines(log)[: len(before)] == before, "steps that were done are not done again"
    assert losses(log) == pytest.approx(losses(workshop.folder / "whole.jsonl"), rel=1e-6)
    assert resumed.state.step == whole.state.step
    again = launch_stage(workshop.job(here), folder)  # finds the finished checkpoint of Ray, and trains no step
    assert again.state == resumed.state and len(lines(log)) == len(losses(workshop.folder / "whole.jsonl"))


@pytest.mark.chaos
def test_a_run_that_was_lost_on_ray_goes_on_in_this_process(workshop: Workshop):
    folder, log = workshop.folder / "run", workshop.folder / "job.jsonl"
    killer = Killer(lambda: committed(folder))
    killer.start()
    with pytest.raises(EnvironmentMissing, match="given up after 0 failures"):
        launch_stage(workshop.job(small_spec(sft={"epochs": 50}, compute=SHARED | {"workers": 1, "max_failures": 0})), folder)
    state = state_in(folder)
    assert state is not None and 0 < state.step < 150 and not state.finished
    before = [line for line in lines(log) if line["step"] <= state.step]
    launch_stage(workshop.job(small_spec(sft={"epochs": 50, "patience": 1}, compute={"workers": 0})), folder)
    assert lines(log)[: len(before)] == before and lines(log)[len(before)]["step"] == state.step + 1


def test_two_workers_take_the_steps_of_this_process(workshop: Workshop, two_workers):
    """Whose micro-batches are of another size and who has more threads, too: `compute` changes no result."""
    launch_stage(workshop.job(small_spec(compute={"workers": 0, "cpus_per_worker": 2, "micro_batch": 2})), workshop.folder / "run")
    assert torch.get_num_threads() == 2
    assert losses(workshop.folder / "job.jsonl") == pytest.approx(two_workers[1], rel=1e-4)


def test_zero_3_gives_the_losses_of_zero_1(workshop: Workshop, two_workers):
    launch_stage(workshop.job(small_spec(compute=SHARED | {"workers": 2, "zero": 3})), workshop.folder / "run")
    assert losses(workshop.folder / "job.jsonl") == pytest.approx(two_workers[1], rel=1e-5)


@pytest.mark.chaos
def test_a_killed_worker_changes_nothing_in_the_result(workshop: Workshop, two_workers):
    """Under ZeRO 2, which thereby gives the losses of ZeRO 1, too."""
    spec = small_spec(compute=SHARED | {"workers": 2, "zero": 2, "checkpoint_every": 1})
    killer = Killer(lambda: committed(workshop.folder / "run"))
    killer.start()
    trained = launch_stage(workshop.job(spec), workshop.folder / "run")
    assert killer.killed
    log = lines(workshop.folder / "job.jsonl")
    steps = [line["step"] for line in log if "epochs_done" not in line]
    assert steps == list(range(1, trained.state.step + 1))
    assert [line["epochs_done"] for line in log if "epochs_done" in line] == [1, 2]
    assert losses(workshop.folder / "job.jsonl") == pytest.approx(two_workers[1], rel=1e-5)
    assert tensors(trained.model) == pytest.approx(tensors(two_workers[0]), rel=1e-3, abs=1e-5)


def tensors(model: Path) -> list[float]:
    """The sum of each trained tensor."""
    from safetensors.torch import load_file

    return [float(tensor.sum()) for _, tensor in sorted(load_file(model / "model.safetensors").items())]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_row_ends_training_at_once_with_its_own_error(workshop: Workshop, toy, tmp_path, workers):
    index, row = with_broken_clip(toy.jsonl, tmp_path / "broken")
    spec = small_spec(compute=SHARED | {"workers": workers, "max_failures": 100})  # tried again, it would never end
    with pytest.raises(BadMedia) as raised:
        launch_stage(workshop.with_index(index).job(spec), workshop.folder / "run")
    assert row in raised.value.where


@pytest.mark.chaos
def test_workers_that_are_lost_too_often_are_given_up(workshop: Workshop):
    killer = Killer((workshop.folder / "job.jsonl").exists)
    killer.start()
    spec = small_spec(sft={"epochs": 50}, compute=SHARED | {"workers": 1, "max_failures": 0})
    with pytest.raises(EnvironmentMissing, match="given up after 0 failures"):
        launch_stage(workshop.job(spec), workshop.folder / "run")
    assert killer.killed
