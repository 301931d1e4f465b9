"""What the paper prints and ours is set beside: scores (Table 4, seven models by sixteen datasets), and what describes its atlas.

SOC, INT and NVC (siq2, intentqa, mimeqa) are accuracies given by a language-model judge. BAM is not
applied to MMPsy, so its two columns repeat the SFT model's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PublishedModel = Literal[
    "Gemma-3-4B",
    "HumanOmniV2-7B",
    "Qwen2.5-Omni-7B",
    "Qwen2.5-VL-7B",
    "OmniSapiens-7B RL",
    "OmniSapiens-7B SFT",
    "OmniSapiens-7B BAM",
]

COLUMNS: tuple[str, ...] = (
    *("cremad", "meld_emotion", "mosei_emotion", "tess", "urfunny", "intentqa", "ptsd_in_the_wild", "mmpsy_anxiety"),
    *("mmpsy_depression", "daicwoz", "meld_senti", "chsimsv2", "mosei_senti", "mmsd", "siq2", "mimeqa"),
)
"""Dataset ids in the order of the paper's columns."""

_ROWS: dict[PublishedModel, tuple[float, ...]] = {
    "Gemma-3-4B": (0.495, 0.642, 0.565, 0.499, 0.597, 0.227, 0.499, 0.601, 0.788, 0.137, 0.785, 0.813, 0.617, 0.529, 0.191, 0.023),
    "HumanOmniV2-7B": (0.560, 0.633, 0.558, 0.637, 0.638, 0.263, 0.824, 0.527, 0.672, 0.636, 0.768, 0.825, 0.633, 0.395, 0.282, 0.093),
    "Qwen2.5-Omni-7B": (0.521, 0.661, 0.580, 0.568, 0.543, 0.254, 0.760, 0.793, 0.791, 0.636, 0.700, 0.714, 0.602, 0.656, 0.254, 0.069),
    "Qwen2.5-VL-7B": (0.501, 0.571, 0.592, 0.499, 0.583, 0.249, 0.755, 0.631, 0.653, 0.623, 0.674, 0.524, 0.317, 0.511, 0.231, 0.098),
    "OmniSapiens-7B RL": (0.501, 0.699, 0.581, 0.510, 0.639, 0.486, 0.968, 0.919, 0.814, 0.729, 0.571, 0.393, 0.224, 0.647, 0.304, 0.133),
    "OmniSapiens-7B SFT": (0.542, 0.709, 0.614, 0.658, 0.532, 0.256, 1.00, 0.909, 0.839, 0.626, 0.746, 0.813, 0.744, 0.624, 0.257, 0.121),
    "OmniSapiens-7B BAM": (0.548, 0.711, 0.607, 0.715, 0.644, 0.177, 1.00, 0.909, 0.839, 0.738, 0.744, 0.837, 0.775, 0.795, 0.201, 0.162),
}

PUBLISHED: dict[tuple[PublishedModel, str], float] = {
    (model, dataset): value for model, values in _ROWS.items() for dataset, value in zip(COLUMNS, values, strict=True)
}
"""(model, dataset id) -> score, 0..1."""


def published_score(model: PublishedModel, dataset: str) -> float | None:
    """The published score, 0..1, or None where the paper has none.

    >>> published_score("OmniSapiens-7B SFT", "tess")
    0.658
    """
    return PUBLISHED.get((model, dataset))


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of Table 1.

    Attributes:
        thousands: of samples.
        is_real: whether people are in them, and no model made them.
        inputs: kinds of input that it has, of `INPUTS`.
    """

    name: str
    thousands: float
    is_real: bool
    inputs: frozenset[str]


INPUTS = ("raw clips", "descriptors", "audio", "video", "text")
"""Kinds of input that Table 1 looks at, its columns Raw, BD, Aud, Vis and Txt."""


def _benchmark(name: str, thousands: float, *inputs: str, is_real: bool = True) -> Benchmark:
    return Benchmark(name, thousands, is_real, frozenset({"raw clips", *inputs}))


OTHER_BENCHMARKS = (
    _benchmark("EAV", 8.4, "audio", "video"),
    _benchmark("eMotions", 27, "audio", "video"),
    _benchmark("MMHU", 57, "video", "text"),
    _benchmark("EMO-SUPERB", 85, "audio", "text", is_real=False),
    _benchmark("HumanOmni", 2400, "audio", "video", "text", is_real=False),
)
"""Table 1: the benchmarks that the paper sets beside its own. Their dimensions and tasks are not stored: in the copy of the table that
was read, lines have unequal numbers of cells, so that it is not sure which column a tick stands in."""
ATLAS = _benchmark("Human Behavior Atlas", 101, *INPUTS)
"""Its own line, which has all dimensions and all tasks."""

FIGURE_1 = {"video_share": 0.836, "long_share": 0.292, "videos": 35_046, "audio_clips": 10_287, "transcripts": 25_385}
"""Figure 1: the share of samples with video, and of clips of more than 20 seconds; section 1: how many of each there are."""
