"""BAM with the model in the loop: it trains what BAM on stored states trains, and goes on where it was cut off."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hba_ray.cluster.session import ray_session
from hba_ray.errors import DataError
from hba_ray.models.bam import DescriptorBatch
from hba_ray.specs.sections.bam import AUTHORS_BAM
from hba_ray.training.bam import train_bam
from hba_ray.training.bam_job import BamJob, Supply, TrainedBam
from hba_ray.training.launch import launch_stages
from hba_ray.training.live import live_job, train_live
from tests.helpers.bam_jobs import BamShop, describe_by_noise, make_shop
from tests.helpers.damaged_rows import with_broken_clip
from tests.helpers.killer import Killer
from tests.helpers.sft_jobs import Cut, lines

ALL = ("toy_tone", "toy_nod", "toy_answers")


@pytest.fixture(scope="module")
def shop(small_index, tiny_backbone, tmp_path_factory) -> BamShop:
    return make_shop(small_index, tiny_backbone, tmp_path_factory.mktemp("bam"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def live(job: BamJob, datasets, folder: Path) -> list[TrainedBam]:
    return train_live(job, datasets, describe_by_noise, folder, folder / "work")[0]


@pytest.mark.parametrize("settings", [{}, {"decoder_injection": "post_norm", "norm": "zscore", "dropout_of": "stream"}])
def test_stored_and_live_states_give_the_same_losses_and_adapters(shop: BamShop, tmp_path, settings):
    """With dropout, however large the micro-batches are, and where the last step of an epoch is shorter."""
    fields = {"epochs": 3, "batch": 4, "lr": 5e-3} | settings
    stored = shop.with_states(shop.with_states(shop.job(**fields)), open_answers=True)
    in_loop = shop.job({"compute": {"micro_batch": 2}}, **fields, states="live")
    assert stored.bam.dropout > 0 and not in_loop.states_folder("train", open_answers=True).is_relative_to(tmp_path)
    pairs = zip(train_bam(stored, ALL, describe_by_noise, tmp_path / "a"), live(in_loop, ALL, tmp_path / "b"), strict=True)
    for one, other in pairs:
        assert len(one.losses) == 6 and len(one.validation) == 3
        assert one.losses == pytest.approx(other.losses, rel=1e-5) and one.validation == pytest.approx(other.validation, rel=1e-5)
        assert (one.dataset, one.best_epoch, one.without_gradients) == (other.dataset, other.best_epoch, other.without_gradients)
        kept, same = weights(one.folder), weights(other.folder)
        assert kept.keys() == same.keys()
        for name, tensor in kept.items():
            torch.testing.assert_close(same[name], tensor, rtol=1e-2, atol=1e-4)


def test_a_run_cut_off_after_a_checkpoint_ends_as_if_it_had_not_been(shop: BamShop, tmp_path, cut_after):
    job = shop.job({"compute": {"checkpoint_every": 1}}, states="live", epochs=2)
    whole = live(job, ALL[:2], tmp_path / "whole")
    cut_after(3)
    with pytest.raises(Cut):
        live(job, ALL[:2], tmp_path / "cut")
    (log,) = (tmp_path / "cut" / "work").glob("toy_tone-*/metrics.jsonl")
    before = lines(log)
    resumed = live(job, ALL[:2], tmp_path / "cut")
    assert lines(log)[: len(before)] == before, "steps that were done are not done again"
    assert [(one.losses, one.validation, one.best_epoch) for one in resumed] == [
        (one.losses, one.validation, one.best_epoch) for one in whole
    ]
    for one, other in zip(whole, resumed, strict=True):
        assert (one.folder / "adapters.safetensors").read_bytes() == (other.folder / "adapters.safetensors").read_bytes()
    finished = {path: path.stat().st_ino for one in resumed for path in one.folder.iterdir()}
    assert live(job, ALL[:2], tmp_path / "cut") == resumed
    assert {path: path.stat().st_ino for path in finished} == finished, "finished adapters are left alone"


@pytest.mark.parametrize("zero", [1, 3])
def test_the_zero_stage_changes_nothing(shop: BamShop, tmp_path, zero):
    one, other = (
        live(shop.job({"compute": {"zero": stage}}, states="live", epochs=1), ("toy_tone", "toy_answers"), tmp_path / str(stage))
        for stage in (2, zero)
    )
    assert [a.losses for a in one] == [pytest.approx(b.losses, rel=1e-6) for b in other]
    for a, b in zip(one, other, strict=True):
        kept, same = weights(a.folder), weights(b.folder)
        assert kept.keys() == same.keys()
        for name, tensor in kept.items():
            torch.testing.assert_close(same[name], tensor, rtol=1e-5, atol=1e-7)


def test_only_adapters_and_the_named_head_change(shop: BamShop, tmp_path):
    job = shop.job(states="live", epochs=1)
    files = {path: path.read_bytes() for folder in (shop.model, shop.backbone) for path in folder.iterdir()}
    live(job, ALL, tmp_path)
    assert all(path.read_bytes() == content for path, content in files.items())
    supply = Supply(job)
    for dataset in ALL:
        saved = weights(tmp_path / dataset)
        start = supply.head(dataset).state_dict()
        assert {name for name in saved if name.startswith("head.")} == {f"head.{name}" for name in start}
        assert all(not torch.equal(saved[f"head.{name}"], tensor) for name, tensor in start.items())
    rows = [index for index, (task, _) in enumerate(supply.classes) if task == "EMO"]
    assert len(weights(tmp_path / "toy_tone")["head.bias"]) == len(rows) == 8


def test_the_released_settings_train_and_leave_lm_head_alone(shop: BamShop, tmp_path):
    classes, answers = live(shop.job(**AUTHORS_BAM | {"batch": 4, "epochs": 2}), ("toy_tone", "toy_answers"), tmp_path)
    assert not (answers.folder / "head.safetensors").exists() and (classes.folder / "head.safetensors").exists()
    assert classes.best_epoch == answers.best_epoch == 1, "the last epoch is kept"
    quiet = shop.job(**AUTHORS_BAM | {"batch": 4, "epochs": 2, "backbone_mode": "eval"})
    (still,) = live(quiet, ["toy_tone"], tmp_path / "eval")
    assert still.losses != classes.losses, "LoRA's dropout is active in the backbone"


def test_the_model_is_loaded_once_for_all_datasets_where_they_are_trained(shop: BamShop, tmp_path):
    job = shop.job(states="live", epochs=1)
    supply = Supply(job)
    jobs = [live_job(job, dataset, describe_by_noise, tmp_path, supply) for dataset in ALL[:2]]
    sent = [live for live in pickle.loads(pickle.dumps(jobs)) if live is not None]
    launch_stages([(live, live.folder) for live in sent], tmp_path)
    assert len(sent) == 2 and sent[0].supply is sent[1].supply and "sft" in vars(sent[0].supply)
    assert "sft" not in vars(supply), "and not where they come from"


def test_a_bad_row_is_dropped_and_counted_or_ends_training(shop: BamShop, toy, tmp_path):
    index, row = with_broken_clip(toy.jsonl, tmp_path / "broken")
    dataset = row.split()[0] if row in ALL else next(name for name in ALL if name in row)
    broken = replace(shop, index=index, folder=tmp_path)
    with pytest.raises(DataError) as raised:
        live(broken.job(states="live", epochs=1, batch=16), [dataset], tmp_path / "fail")
    assert row in raised.value.where
    job = broken.job({"atlas": {"on_bad_row": "drop"}}, states="live", epochs=2, batch=16)
    (trained,), drops = train_live(job, [dataset], describe_by_noise, tmp_path / "drop", tmp_path / "work")
    assert len(drops) == 1 and drops[0].dataset == dataset and trained.losses


def test_streams_that_no_row_has_get_no_adapter_and_broken_descriptors_are_refused(shop: BamShop, tmp_path):
    def pose_only(split, sample_ids):
        given = describe_by_noise(split, sample_ids)
        return given | {"acoustic": DescriptorBatch(given["acoustic"].vectors_BD, torch.zeros(len(sample_ids), dtype=torch.bool))}

    def broken(split, sample_ids):
        given = describe_by_noise(split, sample_ids)
        given["pose"].vectors_BD[0, 3] = torch.inf
        return given

    job = shop.job(states="live", epochs=1)
    made = live_job(job, "toy_tone", pose_only, tmp_path, Supply(job))
    assert made is not None and made.outset.widths == {"pose": 12}
    with pytest.raises(DataError, match=r"descriptors of toy_nod \(train\): stream 'pose' of .* not finite"):
        live_job(job, "toy_nod", broken, tmp_path, Supply(job))


@pytest.mark.ray
@pytest.mark.slow
def test_a_stage_cut_off_here_goes_on_with_workers_of_ray_fed_by_ray(shop: BamShop, tmp_path, cut_after):
    compute = {"cpus": 4, "cpus_per_worker": 0.5, "cpus_per_loader": 0.5, "object_store_mib": 200, "checkpoint_every": 1, "micro_batch": 2}
    here, on_ray = (shop.job({"compute": compute | {"workers": n, "zero": 1}}, states="live", epochs=2) for n in (0, 2))
    one_worker = shop.job({"compute": compute | {"workers": 1, "zero": 1}}, states="live", epochs=2)
    datasets = ("toy_tone", "toy_answers")
    whole = live(here, datasets, tmp_path / "whole")
    cut_after(2)
    with pytest.raises(Cut):
        live(here, datasets, tmp_path / "cut")
    with ray_session(one_worker.spec.compute, tmp_path / "logs"):
        resumed = live(one_worker, datasets, tmp_path / "cut")
        both = live(on_ray, datasets, tmp_path / "two")
    runs = [path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("checkpoint_manager_snapshot.json")]
    assert runs == [Path("work", "train", "checkpoint_manager_snapshot.json")], "the same workers train all datasets"
    for made in (resumed, both):
        assert [one.losses for one in made] == [pytest.approx(one.losses, rel=1e-5) for one in whole]
        assert [one.validation for one in made] == [pytest.approx(one.validation, rel=1e-5) for one in whole]


@pytest.mark.ray
@pytest.mark.chaos
def test_a_killed_worker_goes_on_at_the_dataset_at_which_it_was(shop: BamShop, tmp_path):
    compute = {"cpus": 4, "cpus_per_worker": 0.5, "cpus_per_loader": 0.5, "object_store_mib": 200, "checkpoint_every": 1, "micro_batch": 2}
    job = shop.job({"compute": compute | {"workers": 1, "zero": 1}}, states="live", epochs=2)
    datasets, told = ("toy_tone", "toy_answers"), []
    whole = live(shop.job({"compute": compute | {"workers": 0, "zero": 1}}, states="live", epochs=2), datasets, tmp_path / "whole")
    work = tmp_path / "killed" / "work"
    killer = Killer(lambda: any(len(lines(log)) > 1 for log in work.glob("toy_answers-*/metrics.jsonl")))
    with ray_session(job.spec.compute, tmp_path / "logs"):
        killer.start()
        made = train_live(job, datasets, describe_by_noise, tmp_path / "killed", work, told.append)[0]
    assert killer.killed and told == list(datasets)
    assert [one.losses for one in made] == [pytest.approx(one.losses, rel=1e-5) for one in whole]
