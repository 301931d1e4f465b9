"""The feed at real size: rows of a 720p video and a sound of ten seconds each, shown as four frames and ten seconds.

CPU time is of the whole row, from its bytes to a micro-batch. A key frame every 250 frames, as x264 sets them, forbids to decode
much less than the whole clip: three of four frames lie far behind one. What is not needed is left out there too: frames that
no other is made from. With a key frame a second most of the clip is sought over.
"""

import io
import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pyarrow as pa
import soundfile

from hba_ray.cluster.session import ray_session
from hba_ray.data.atlas import INDEX_SCHEMA, AtlasIndex, build_index
from hba_ray.data.feed.batches import BatchMaker, BatchSettings, MicroBatch
from hba_ray.data.feed.order import Order, plan_epoch
from hba_ray.data.feed.packing import Packing
from hba_ray.data.feed.spread import spread_here
from hba_ray.data.feed.stream import TASK_ROWS, make_here, make_on_ray, row_bytes
from hba_ray.data.packed import Pack
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS
from hba_ray.data.writers import write_parquet
from hba_ray.models.backbone import load_processor
from hba_ray.models.tiny import build_tiny
from hba_ray.specs import AtlasSpec, ComputeSpec, TinySpec

HEIGHT, WIDTH, FRAMES, RATE = 720, 1280, 300, 30
ROWS, COSTED_ROWS, MICRO_BATCH = 192, 8, 2
STREAMED_ROWS = 64
"""Of a window that the reader reads."""
WINDOW_ROWS = 16
"""Of a window in which the object store is counted."""
FILLING_SECONDS = 60.0
"""In which the loaders decode more than may wait."""
EPOCH_ROWS = 101_964


def measure() -> Iterator[dict[str, float | str]]:
    yield from planning()
    sound = _sound()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = BatchSettings(AtlasSpec(root="-").media, ("text", "audio", "video", "image"), MICRO_BATCH)
        load = partial(load_processor, str(folder / "tiny"))
        for group in (250, 30):
            index = _atlas(folder / str(group), _film(group), sound)
            if not (folder / "tiny").exists():
                build_tiny(TinySpec(), folder / "tiny", index.texts("train"))
            few = index.take(np.arange(COSTED_ROWS))
            Packing(few, settings.media, folder / f"pack{group}").write(spread_here)
            packed, maker = replace(few, pack=Pack(str(folder / f"pack{group}"))), partial(BatchMaker, settings=settings, processor=load())
            for said, rows in (("", few), (", packed", packed)):
                cost = cpu_seconds(partial(_make_all, maker), rows) / COSTED_ROWS
                yield {f"CPU-seconds a row, a key frame every {group}{said} (goal <= {0.02 if said else 0.15})": cost}
        windows = plan_epoch(index, Order("train", STREAMED_ROWS, MICRO_BATCH))
        with ray_session(ComputeSpec(cpus=4, storage=name, fork=True), folder / "logs"):
            stream = partial(make_on_ray, index, settings, "train", load, windows)
            _, one, two = (streamed(stream, loaders) for loaders in (2, 1, 2))  # first, both load what they need
            yield {"rows/s, 2 loaders over 1 (goal >= 1.7 on two free cores)": two[0] / one[0]}
            yield {"CPU-seconds a row by 2 loaders over those by 1; what the load of the machine changes least": two[1] / one[1]}
            yield {"load of the machine, a minute's mean": os.getloadavg()[0]}
            filled = most_in_store(stream, loaders=2)
            most = filled / (2 * WINDOW_ROWS * row_bytes(settings.media))
            yield {f"object store at most, windows of {WINDOW_ROWS} rows a loader (goal <= 2)": most}


def planning() -> Iterator[dict[str, float | str]]:
    """An epoch of the atlas's rows in row groups of the released size."""
    lines = np.arange(EPOCH_ROWS)
    columns = {"shard": lines // 124, "group": lines * 0, "position": lines % 124, "characters": lines * 0 + 200}
    texts = {"split": "train", "dataset": "cremad", "label": "sad", "modality_signature": "text_video_audio"}
    table = pa.table({**columns, **{name: [value] * EPOCH_ROWS for name, value in texts.items()}}).select(INDEX_SCHEMA.names)
    index = AtlasIndex("-", (), table.cast(INDEX_SCHEMA))
    order = Order("train", 256, MICRO_BATCH, batch=512)
    yield {f"seconds to plan {EPOCH_ROWS} rows (goal <= 0.5)": cpu_seconds(partial(plan_epoch, order=order), index)}
    tracemalloc.start()
    plan_epoch(index, order)
    yield {"MiB to plan them (goal <= 300)": tracemalloc.get_traced_memory()[1] / 2**20}
    tracemalloc.stop()


def _make_all(maker: Callable[..., BatchMaker], index: AtlasIndex) -> list[MicroBatch]:
    return list(make_here(maker(index=index, split="train"), plan_epoch(index, Order("train", STREAMED_ROWS, MICRO_BATCH))))


def cpu_seconds(work: Callable[[Any], object], given: Any) -> float:
    """CPU seconds of this process; the work is done once before."""
    work(given)
    began = time.process_time()
    work(given)
    return time.process_time() - began


def streamed(stream: Callable[..., Iterator[MicroBatch]], loaders: int) -> tuple[float, float]:
    """Rows a second, and CPU seconds a row of all processes of Ray, from when each loader has begun until one has no more to do."""
    batches, edge = stream(loaders=loaders), loaders * TASK_ROWS
    for _ in range(edge // MICRO_BATCH):
        next(batches)
    used, began, rows = _cpu_of_ray(), time.perf_counter(), ROWS - 2 * edge
    for _ in range(rows // MICRO_BATCH):
        next(batches)
    measured = rows / (time.perf_counter() - began), (_cpu_of_ray() - used) / rows
    assert len(list(batches)) == edge // MICRO_BATCH
    return measured


def _cpu_of_ray() -> float:
    return sum(sum(process.cpu_times()[:2]) for process in psutil.Process().children(recursive=True))


def most_in_store(stream: Callable[..., Iterator[MicroBatch]], loaders: int) -> float:
    """The most bytes that a stream puts into the object store while nobody takes them, beyond those that were there."""
    import ray

    def used() -> float:
        return ray.cluster_resources()["object_store_memory"] - ray.available_resources().get("object_store_memory", 0.0)

    before, batches = used(), stream(loaders=loaders)
    next(batches)
    most, ends = 0.0, time.monotonic() + FILLING_SECONDS
    while time.monotonic() < ends:
        most = max(most, used() - before)
        time.sleep(0.2)
    return most


def _film(group: int) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    picture, made = np.kron(noise, np.ones((8, 8, 1), np.uint8)), io.BytesIO()
    with av.open(made, "w", format="mp4") as film:
        stream: Any = film.add_stream("libx264", rate=RATE, options={"g": str(group), "keyint_min": str(group), "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(FRAMES):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(picture, 3 * number, axis=1), format="rgb24")))
        film.mux(stream.encode())
    return made.getvalue()


def _sound() -> bytes:
    made = io.BytesIO()
    samples_T = np.random.default_rng(0).standard_normal(160_000).astype(np.float32) * 0.1
    soundfile.write(made, samples_T, 16_000, format="WAV", subtype="PCM_16")
    return made.getvalue()


def _atlas(folder: Path, film: bytes, sound: bytes) -> AtlasIndex:
    names, asked = (f"{number:03d}" for number in range(ROWS)), "<video>\n<audio>\nHow does the speaker feel?"
    media = {"video": (film,), "audio": (sound,)}
    rows = [Row(name, name, DATASETS["cremad"], f"{asked} {name}", "sad", "sad", media) for name in names]
    write_parquet(iter(rows), folder, "train", rows_per_group=16, rows_per_file=ROWS)
    return build_index(AtlasSpec(root=str(folder)), folder)
