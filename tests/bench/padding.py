"""Padded tokens per real token on MELD's real lengths, in length buckets. Goal: <= 1.15.

Needs MELD's public csv files: MELD_ROOT, or shared/data/meld beside the checkout. Tokens are those of the
tiny model's tokenizer, trained on the same text.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hba_ray.convert.conversion import convert
from hba_ray.data.atlas import build_index
from hba_ray.data.feed.batches import BatchMaker, BatchSettings, padding_ratio
from hba_ray.data.feed.order import Order, plan_epoch
from hba_ray.data.feed.stream import make_here
from hba_ray.models.backbone import load_processor
from hba_ray.models.tiny import build_tiny
from hba_ray.specs import AtlasSpec, TinySpec

ROOT = Path(os.environ.get("MELD_ROOT", Path(__file__).parents[3] / "shared" / "data" / "meld"))


def measure() -> Iterator[dict[str, float | str]]:
    if not ROOT.is_dir():
        yield {"padding on MELD": "left out: set MELD_ROOT"}
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec = AtlasSpec(source="meld", root=str(ROOT))
        convert(spec, folder / "rows")
        index = build_index(spec, folder / "rows")
        build_tiny(TinySpec(vocabulary=4096), folder / "tiny", index.texts("train"))
        processor = load_processor(str(folder / "tiny"))
        for micro_batch in (2, 32):
            settings = BatchSettings(spec.media, spec.modalities, micro_batch)
            maker = BatchMaker(index, settings, processor, "train")
            windows = plan_epoch(index, Order("train", 256, micro_batch, batch=512))[:20]
            ratio = padding_ratio(list(make_here(maker, windows)))
            yield {f"padded / real tokens, micro-batch {micro_batch} (goal <= 1.15)": ratio}
