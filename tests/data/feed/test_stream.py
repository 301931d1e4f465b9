"""Ray Data hands on what this process would make itself: the same batches, the same errors, nothing large on the way in."""

import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch

from hba_ray.data.atlas import AtlasIndex, build_index
from hba_ray.data.feed.batches import BatchMaker, BatchSettings, MicroBatch
from hba_ray.data.feed.order import Order, Window, plan_epoch
from hba_ray.data.feed.spread import spread_here, spread_on_ray
from hba_ray.data.feed.stream import make_here, make_on_ray, map_with_model_actors, micro_batch_dataset
from hba_ray.errors import BadMedia, CheckpointError
from hba_ray.models.backbone import load_processor
from hba_ray.specs import AtlasSpec, ComputeSpec, MediaSpec
from tests.helpers.damaged_rows import with_broken_clip

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SETTINGS = BatchSettings(
    media=MediaSpec(audio_seconds=1, video_frames=2, video_pixels=56 * 56), modalities=("text", "audio", "video", "image"), micro_batch=3
)


@pytest.fixture(scope="module", autouse=True)
def ray_cluster(tmp_path_factory) -> Iterator[None]:
    """One Ray for all tests here: each start costs ten seconds and more."""
    from hba_ray.cluster.session import ray_session

    with ray_session(ComputeSpec(cpus=4, object_store_mib=200, fork=True), tmp_path_factory.mktemp("logs")):
        yield


@pytest.fixture(scope="module")
def index(toy) -> AtlasIndex:
    return build_index(AtlasSpec(root=str(toy.parquet)), toy.parquet)


@pytest.fixture(scope="module")
def load(tiny_backbone):
    return partial(load_processor, str(tiny_backbone))


def windows_of(index: AtlasIndex, rows: int = 7) -> list[Window]:
    return plan_epoch(index, Order("train", rows, SETTINGS.micro_batch, seed=3))


def here(index, settings, load, windows) -> list[MicroBatch]:
    return list(make_here(BatchMaker(index, settings, load(), "train"), windows))


def assert_same(made: list[MicroBatch], expected: list[MicroBatch]) -> None:
    assert [batch.rows for batch in made] == [batch.rows for batch in expected]
    assert [batch.drops for batch in made] == [batch.drops for batch in expected]
    for batch, other in zip(made, expected, strict=True):
        assert batch.inputs.keys() == other.inputs.keys()
        for name, tensor in batch.inputs.items():
            assert torch.equal(tensor, other.inputs[name]), name
        for name in ("class_index", "task_slot", "answer_labels", "weight"):
            assert torch.equal(getattr(batch, name), getattr(other, name)), name


def test_ray_gives_the_same_batches_in_the_same_order(index, load):
    windows = windows_of(index)
    assert len(windows) > 4
    made = list(make_on_ray(index, SETTINGS, "train", load, windows, loaders=2, cpus_per_loader=1))
    assert_same(made, here(index, SETTINGS, load, windows))


def test_a_bad_row_comes_out_whole_and_the_next_stream_works(toy, tmp_path, load):
    index, row = with_broken_clip(toy.jsonl, tmp_path / "broken")
    windows = windows_of(index)
    with pytest.raises(BadMedia) as expected:
        here(index, SETTINGS, load, windows)
    with pytest.raises(BadMedia) as raised:
        list(make_on_ray(index, SETTINGS, "train", load, windows, loaders=2))
    assert row in raised.value.where
    assert (raised.value.args, raised.value.reason) == (expected.value.args, expected.value.reason)

    dropping = replace(SETTINGS, on_bad_row="drop")
    made = list(make_on_ray(index, dropping, "train", load, windows, loaders=2))
    assert_same(made, here(index, dropping, load, windows))
    assert [drop.reason for batch in made for drop in batch.drops] == ["truncated audio"]
    assert sum(float(batch.weight.sum()) for batch in made) == len(index.rows_of("train")) - 1


def test_a_stream_that_is_left_early_frees_its_loaders(index, load):
    windows = windows_of(index)
    stream = make_on_ray(index, SETTINGS, "train", load, windows, loaders=4)
    first = next(stream)
    stream.close()
    again = next(make_on_ray(index, SETTINGS, "train", load, windows, loaders=4))
    assert_same([again], [first])


def test_models_get_every_batch_in_order_and_what_they_refuse_comes_out_whole(index, load):
    windows = windows_of(index)

    def load_model(refuses: bool):
        if refuses:
            raise CheckpointError("model", "is damaged", "train it again")
        return lambda batch: (os.environ["HBA_SEEN"], [row["sample_id"] for row in batch.rows])

    def made(refuses: bool) -> list[tuple[str, list[str]]]:
        batches = micro_batch_dataset(index, SETTINGS, "train", load, windows, loaders=1, cpus_per_loader=1)
        return list(map_with_model_actors(batches, partial(load_model, refuses), ComputeSpec(workers=2), {"HBA_SEEN": "yes"}))

    expected = [("yes", [row["sample_id"] for row in batch.rows]) for batch in here(index, SETTINGS, load, windows)]
    assert made(refuses=False) == expected
    with pytest.raises(CheckpointError, match="train it again"):
        made(refuses=True)


def test_what_travels_to_a_loader_is_row_numbers_and_no_clip(index, load, toy, monkeypatch):
    import ray
    import ray.data

    sent: list[int] = []
    put, from_items = ray.put, ray.data.from_items
    monkeypatch.setattr(ray, "put", lambda value: (sent.append(len(pickle.dumps(value))), put(value))[1])
    monkeypatch.setattr(ray.data, "from_items", lambda items, **how: (sent.append(len(pickle.dumps(items))), from_items(items, **how))[1])
    micro_batch_dataset(index, SETTINGS, "train", load, windows_of(index), loaders=1, cpus_per_loader=1)
    assert sum(sent) < 500 * len(index.table)
    assert sum(sent) < sum(file.stat().st_size for file in toy.parquet.glob("*.parquet")) / 20


def test_several_loaders_share_the_tasks_of_a_window_and_the_batches_stay_what_they_are(index, load):
    (window,) = plan_epoch(index, Order("train", 10_000, SETTINGS.micro_batch, seed=3))
    made = list(make_on_ray(index, SETTINGS, "train", load, [window], loaders=3, cpus_per_loader=1))
    assert_same(made, here(index, SETTINGS, load, [window]))


def test_work_is_spread_over_the_cluster_and_comes_back_in_order():
    assert list(spread_on_ray(partial(divmod, 100), [7, 3, 9])) == list(spread_here(partial(divmod, 100), [7, 3, 9]))
    assert list(spread_on_ray(partial(divmod, 100), [])) == []
    with pytest.raises(BadMedia, match="row 3"):
        list(spread_on_ray(refuse, [1, 3]))


def refuse(number: int) -> int:
    if number == 3:
        raise BadMedia("row 3", "is broken", reason="corrupt audio")
    return number
