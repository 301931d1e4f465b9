"""The published scores that ours are set beside: Table 4 of the paper, seven models by sixteen datasets.

SOC, INT and NVC (siq2, intentqa, mimeqa) are accuracies given by a language-model judge. BAM is not
applied to MMPsy, so its two columns repeat the SFT model's.
"""

from __future__ import annotations

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
