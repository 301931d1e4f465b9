"""Label consolidation: every spelling that a source uses becomes the benchmark's one (paper section 3.3)."""

from __future__ import annotations

from difflib import get_close_matches

from hba_ray.data.tasks import SPLIT_SURPRISE, Dataset
from hba_ray.errors import DataError

CONSOLIDATED: dict[str, str] = {
    "angry": "anger",
    "disgusted": "disgust",
    "fearful": "fear",
    "joy": "happy",
    "happiness": "happy",
    "sadness": "sad",
    "surprised": "surprise",
    "pleasant surprise": "positive surprise",
    "pleasant_surprise": "positive surprise",
    "strongly negative": "highly negative",
    "strongly positive": "highly positive",
    "humor": "humour",
    "not humor": "not humour",
    "non-humour": "not humour",
    "sarcastic": "sarcasm",
    "not sarcastic": "not sarcasm",
    "depressed": "depression",
    "not depressed": "no depression",
    "with ptsd": "ptsd",
    "without ptsd": "no ptsd",
}
"""Source spelling -> the released label map's spelling."""


def consolidate(label: str, dataset: Dataset, *, where: str, split_surprise: bool = False) -> str:
    """The benchmark's spelling of a dataset's label.

    Args:
        split_surprise: also accept positive and negative surprise, where the row says which.

    Raises:
        DataError: the dataset has no such label; names the nearest one.
    """
    plain = " ".join(label.strip().lower().split())
    plain = CONSOLIDATED.get(plain, plain)
    if plain in dataset.labels:
        return plain
    if plain in SPLIT_SURPRISE and "surprise" in dataset.labels:
        return plain if split_surprise else "surprise"
    near = get_close_matches(plain, dataset.labels, n=1)
    hint = f"did you mean '{near[0]}'?" if near else ""
    raise DataError(where, f"'{label}' is not a label of {dataset.id} ({', '.join(dataset.labels)})", hint, reason="unknown label")
