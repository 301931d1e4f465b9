"""Memory to merge the sharded checkpoint of reinforcement learning into whole tensors: no more than about one shard of it.

In a process of its own, on a checkpoint of 320 MB by four workers; a memory of both whole would be 320 MB and more.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.helpers.sharded import peak_of_merging, write_sharded

WORLD = 4


def measure() -> Iterator[dict[str, float | str]]:
    with tempfile.TemporaryDirectory() as name:
        actor, out = Path(name) / "actor", Path(name) / "out"
        largest = write_sharded(actor, {f"thinker.{i}": (torch.full((1000, 8000), float(i)), 0) for i in range(10)}, WORLD)
        out.mkdir()
        yield {"peak memory of merging, over its largest shard (goal <= 1.5)": peak_of_merging(actor, out) / largest}
