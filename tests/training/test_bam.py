"""Training the adapters: stored and live states agree, only what is named changes, and descriptors that say something help."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hba_ray.cluster.session import ray_session
from hba_ray.data.predictions import Columns
from hba_ray.errors import CheckpointError, DataError, TrainingError
from hba_ray.models.bam import Bam, DescriptorBatch, Head
from hba_ray.models.checkpoints import load_adapters
from hba_ray.steps.stages.bam import AdaptersOfDataset, BamResult, BamSteps
from hba_ray.training import bam as training
from hba_ray.training.bam import DescribedSplit, class_probabilities, train_bam, train_bam_on_ray
from hba_ray.training.bam_job import BamJob, Supply
from tests.helpers.bam_jobs import BamShop, describe_by_label, describe_by_noise, make_shop, words_atlas

ALL = ("toy_tone", "toy_nod", "toy_answers")


@pytest.fixture(scope="module")
def shop(small_index, tiny_backbone, tmp_path_factory) -> BamShop:
    """With stores of both kinds for training and validation."""
    shop = make_shop(small_index, tiny_backbone, tmp_path_factory.mktemp("bam"))
    shop.with_states(shop.with_states(shop.job()), open_answers=True)
    return shop


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def test_a_run_repeats_itself_and_another_seed_does_not(shop: BamShop, tmp_path):
    job = shop.job(epochs=2)
    one, same = (train_bam(job, ["toy_nod"], describe_by_noise, tmp_path / name)[0] for name in ("one", "same"))
    assert one.losses == same.losses
    assert (one.folder / "adapters.safetensors").read_bytes() == (same.folder / "adapters.safetensors").read_bytes()
    seeded = replace(job, spec=job.spec.model_copy(update={"seed": 1}))
    assert train_bam(seeded, ["toy_nod"], describe_by_noise, tmp_path / "seed")[0].losses != one.losses


def test_the_epoch_of_the_lowest_validation_loss_is_kept(shop: BamShop, tmp_path):
    fields = {"lr": 5e-2, "head_lr": 5e-2, "dropout": 0.0}  # too large a step: it gets worse again
    (best,) = train_bam(shop.job(epochs=8, **fields), ["toy_nod"], describe_by_noise, tmp_path / "all")
    assert best.best_epoch == best.validation.index(min(best.validation)) < 7
    until_best = shop.job(epochs=best.best_epoch + 1, keep="last", **fields)
    (last,) = train_bam(until_best, ["toy_nod"], describe_by_noise, tmp_path / "some")
    kept, stopped = weights(best.folder), weights(last.folder)
    assert kept.keys() == stopped.keys() and all(torch.equal(kept[name], stopped[name]) for name in kept)


def test_finished_adapters_are_left_and_those_of_other_descriptors_are_not(shop: BamShop, tmp_path, monkeypatch):
    job = shop.job(epochs=1)
    (first,) = train_bam(job, ["toy_nod"], describe_by_noise, tmp_path)
    runs: Counter[str] = Counter()
    fit = training._Run.fit
    monkeypatch.setattr(training._Run, "fit", lambda self: (runs.update([self.dataset]), fit(self))[1])
    assert train_bam(job, ["toy_nod"], describe_by_noise, tmp_path) == [first] and not runs

    def others(split, sample_ids):
        return {stream: DescriptorBatch(2 * one.vectors_BD, one.present_B) for stream, one in describe_by_noise(split, sample_ids).items()}

    (second,) = train_bam(job, ["toy_nod"], others, tmp_path)
    assert runs == {"toy_nod": 1} and second.folder == first.folder
    with pytest.raises(CheckpointError, match="another SFT model"):
        load_adapters(first.folder, base="another", hidden=64)


def test_a_stream_without_rows_has_no_adapter_and_a_dataset_without_streams_none_at_all(shop: BamShop, tmp_path):
    def pose_only(split, sample_ids):
        given = describe_by_noise(split, sample_ids)
        return given | {"acoustic": DescriptorBatch(given["acoustic"].vectors_BD, torch.zeros(len(sample_ids), dtype=torch.bool))}

    def nothing(split, sample_ids):
        return {
            stream: DescriptorBatch(one.vectors_BD, torch.zeros_like(one.present_B)) for stream, one in pose_only(split, sample_ids).items()
        }

    (one,) = train_bam(shop.job(epochs=1), ["toy_tone"], pose_only, tmp_path)
    assert json.loads((one.folder / "adapters.json").read_text())["widths"] == {"pose": 12}
    assert train_bam(shop.job(epochs=1), ["toy_words"], nothing, tmp_path) == []
    assert not (tmp_path / "toy_words").exists()


def test_descriptors_that_cannot_be_used_are_refused_with_their_row(shop: BamShop, tmp_path):
    def broken(split, sample_ids):
        given = describe_by_noise(split, sample_ids)
        given["pose"].vectors_BD[2, 3] = torch.inf
        return given

    with pytest.raises(DataError, match=r"descriptors of toy_nod \(train\): stream 'pose' of .* not finite"):
        train_bam(shop.job(), ["toy_nod"], broken, tmp_path)
    with pytest.raises(DataError, match="hold no stream 'acoustic', only pose"):
        train_bam(shop.job(), ["toy_nod"], lambda s, ids: {"pose": describe_by_noise(s, ids)["pose"]}, tmp_path)
    with pytest.raises(DataError, match="rows for 5 samples"):
        train_bam(shop.job(), ["toy_nod"], lambda s, ids: describe_by_noise(s, ids[1:]), tmp_path)


def test_a_loss_that_is_no_number_names_dataset_and_step(shop: BamShop, tmp_path):
    with pytest.raises(TrainingError, match="BAM on toy_nod, "):
        train_bam(shop.job(lr=1e30, norm="none"), ["toy_nod"], describe_by_noise, tmp_path)


@dataclass(frozen=True)
class Indifferent:
    """Rows whose loss does not depend on delta."""

    samples: list[Columns]

    def load(self, rows: torch.Tensor) -> None: ...

    def loss_sum(self, states: None, delta_BH: torch.Tensor, head: Head | None) -> torch.Tensor:
        return (0 * delta_BH).sum()


def test_training_in_which_every_gradient_was_0_is_told_from_other_training(shop: BamShop, tmp_path):
    job = shop.job()
    supply = Supply(job)
    source = supply.source("toy_nod", "train")
    descriptors = DescribedSplit.of(describe_by_noise, job.bam, source, "toy_nod", "train", supply.device).descriptors
    bam = Bam(job.bam, {stream: given.vectors_BD.shape[1] for stream, given in descriptors.items()}, supply.hidden, None)
    bam.fit_norms(descriptors)
    run = training._Run(job, "toy_nod", bam, DescribedSplit(Indifferent(source.samples), descriptors), None)
    run.fit()
    assert run.without_gradients
    for _ in ("trained", "found finished"):
        (trained,) = train_bam(job, ["toy_nod"], describe_by_noise, tmp_path)
        assert not trained.without_gradients
    said = BamSteps().notes(
        job.spec, BamResult(datasets={"toy_nod": AdaptersOfDataset(without_gradients=True), "toy_tone": AdaptersOfDataset()})
    )
    assert "BAM learnt nothing on toy_nod: the gradient of every step was 0." in said


def test_missing_and_stale_states_stop_training(shop: BamShop, tmp_path):
    with pytest.raises(DataError, match=r"states\.json: is missing"):
        train_bam(shop.with_folder(tmp_path).job(), ["toy_nod"], describe_by_noise, tmp_path)
    with pytest.raises(DataError, match="stored was fp32, is bf16"):
        train_bam(shop.job(cache_precision="bf16"), ["toy_nod"], describe_by_noise, tmp_path)


def accuracy(job: BamJob, folder: Path, describe) -> float:
    supply = Supply(job)
    source = supply.source("toy_words", "test")
    bam, _ = load_adapters(folder, base=job.base, hidden=supply.hidden)
    part = DescribedSplit.of(describe, job.bam, source, "toy_words", "test", "cpu")
    return float((class_probabilities(bam, part).argmax(1) == source.states.class_B).float().mean())


@pytest.fixture(scope="module")
def words(tiny_backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    index, label_of = words_atlas(folder / "atlas", {"train": 240, "validation": 60, "test": 120})
    shop = make_shop(index, tiny_backbone, folder)
    shop.with_states(shop.job(), "train", "validation", "test")
    return shop, label_of


def test_descriptors_that_carry_the_label_lift_a_task_above_chance_and_shuffled_ones_do_not(words, tmp_path):
    shop, label_of = words
    share = max(Counter(label for name, label in label_of.items() if name.startswith("test")).values()) / 120
    reached = {}
    for shuffled in (False, True):
        describe = describe_by_label(label_of, shuffled)
        job = shop.job(streams=["pose"], epochs=8, batch=16)
        (trained,) = train_bam(job, ["toy_words"], describe, tmp_path / str(shuffled))
        reached[shuffled] = accuracy(job, trained.folder, describe)
    assert reached[False] > 0.9
    assert reached[True] < share + 0.12


def test_without_a_validation_split_the_last_epoch_is_kept(words, tmp_path):
    shop, label_of = words
    table = shop.index.table.filter([split != "validation" for split in shop.index.table.column("split").to_pylist()])
    alone = replace(shop, index=replace(shop.index, table=table), folder=tmp_path)
    job = alone.with_states(alone.job(streams=["pose"], epochs=2, batch=32), "train")
    (trained,) = train_bam(job, ["toy_words"], describe_by_label(label_of), tmp_path / "bam")
    assert (trained.validation, trained.best_epoch, len(trained.losses)) == ((), 1, 16)


def test_a_dataset_whose_rows_were_all_dropped_is_left_out(shop: BamShop, tmp_path):
    held = shop.index.table.column("dataset").to_pylist()
    others = replace(shop.index, table=shop.index.table.filter([dataset != "toy_nod" for dataset in held]))
    job = replace(shop, index=others, folder=tmp_path).job(epochs=1)
    shop.with_states(job)
    supply = Supply(job)
    source = supply.source("toy_nod", "train")
    assert source.samples == [] and len(source.states.class_B) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "has_rows", lambda *where: True)
        assert training._train_dataset(job, "toy_nod", supply, describe_by_noise, tmp_path / "toy_nod") is None


@pytest.mark.ray
@pytest.mark.slow
def test_ray_tasks_side_by_side_give_the_same_adapters(shop: BamShop, tmp_path):
    job = shop.job(epochs=1)
    here = train_bam(job, ALL, describe_by_noise, tmp_path / "here")
    with ray_session(job.spec.compute, tmp_path / "logs"):
        there = train_bam_on_ray(job, ALL, describe_by_noise, tmp_path / "there")
        with pytest.raises(DataError, match="states of something else"):
            train_bam_on_ray(shop.job(cache_precision="bf16"), ["toy_nod"], describe_by_noise, tmp_path / "stale")
    assert [one.dataset for one in there] == list(ALL)
    assert [one.losses for one in there] == [pytest.approx(one.losses, rel=1e-6) for one in here]
