"""Rows per second of the streaming loader against two others on the same shards, decoding included.

Goals: >= 0.8x of our own in-process iterator, >= 2x of a torch DataLoader with 2 workers that reads
shuffled rows by row group. Peak memory must not depend on the size of the atlas.

The shards are like the released ones, but few: one row group each of 124 rows, as pyarrow writes by default, rows of
ten seconds of audio and a question. A Ray that has started is measured: its first worker imports for twenty seconds.
"""

import io
import resource
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import soundfile
from torch.utils.data import DataLoader, Dataset

from hba_ray.cluster.session import ray_session
from hba_ray.data.atlas import AtlasIndex, build_index
from hba_ray.data.feed.batches import BatchMaker, BatchSettings
from hba_ray.data.feed.order import Order, plan_epoch
from hba_ray.data.feed.stream import make_here, make_on_ray
from hba_ray.data.rows import Row, parse_row
from hba_ray.data.tasks import DATASETS
from hba_ray.data.writers import write_parquet
from hba_ray.models.backbone import load_processor
from hba_ray.models.tiny import build_tiny
from hba_ray.specs import AtlasSpec, ComputeSpec, TinySpec
from tests.bench._side_by_side import speed_up

SHARDS, ROWS = 8, 124
MICRO_BATCH = 4


def rows(count: int) -> Iterator[Row]:
    generator = np.random.default_rng(0)
    for number in range(count):
        wave = io.BytesIO()
        soundfile.write(wave, generator.standard_normal(160_000).astype(np.float32) * 0.1, 16_000, format="WAV", subtype="PCM_16")
        name = f"{number:05d}"
        yield Row(name, name, DATASETS["cremad"], "<audio>\nHow does the voice sound?", "sad", "sad", {"audio": (wave.getvalue(),)})


class ByRow(Dataset):
    """What a plain map-style dataset does: each row reads the row group it lies in."""

    def __init__(self, index: AtlasIndex):
        self.index, self.lines = index, index.rows_of("train")

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, item: int) -> Row:
        line = self.index.table.slice(int(self.lines[item]), 1).to_pylist()[0]
        group = pq.ParquetFile(self.index.shards[line["shard"]].path).read_row_group(line["group"])
        return parse_row(group.slice(line["position"], 1).to_pylist()[0], where=str(item))


def measure() -> Iterator[dict[str, float | str]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_parquet(rows(SHARDS * ROWS), folder / "atlas", "train", rows_per_group=ROWS, rows_per_file=ROWS)
        spec = AtlasSpec(root=str(folder / "atlas"))
        index = build_index(spec, folder / "atlas")
        build_tiny(TinySpec(), folder / "tiny", index.texts("train"))
        load = partial(load_processor, str(folder / "tiny"))
        settings = BatchSettings(spec.media, spec.modalities, MICRO_BATCH)
        maker = BatchMaker(index, settings, load(), "train")
        windows = plan_epoch(index, Order("train", 64, MICRO_BATCH))
        here = partial(consume, partial(make_here, maker, windows))
        loader = DataLoader(
            ByRow(index), MICRO_BATCH, shuffle=True, num_workers=2, collate_fn=partial(collate, maker), persistent_workers=True
        )
        with ray_session(ComputeSpec(cpus=4, storage=name, fork=True), folder / "logs"):
            stream = partial(make_on_ray, index, settings, "train", load, windows, loaders=2, cpus_per_loader=1, prefetch=4)
            one = partial(make_on_ray, index, settings, "train", load, windows, loaders=1, cpus_per_loader=1, prefetch=4)
            yield {"streaming, 1 loader, over in-process iterator (goal >= 0.8)": speed_up(partial(consume, one), here, 3)}
            yield {"streaming, 2 loaders, over in-process iterator": speed_up(partial(consume, stream), here, 3)}
            against = speed_up(partial(consume, stream), partial(consume, lambda: loader), 3)
            yield {"streaming, 2 loaders, over torch DataLoader, 2 workers (goal >= 2)": against}
        yield {"peak memory of the consumer, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def collate(maker: BatchMaker, batch: list[Row]) -> object:
    return maker.batch(batch, [])


def consume(make) -> int:
    return sum(1 for _ in make())
