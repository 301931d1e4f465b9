"""Extracts prosody by openSMILE: ComParE_2016 functionals of a clip, or its low-level descriptors over time.

Clips may have any sample rate and number of channels, and may be videos; openSMILE gets their sound in mono at 16 kHz.

Shapes: T samples or frames of 10 ms, D values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from hba_ray.data.media import LONGEST_SECONDS, SAMPLE_RATE, decode_audio
from hba_ray.descriptors.pooling import pooled
from hba_ray.descriptors.store import write_frames
from hba_ray.errors import BadMedia

SHORTEST_SAMPLES = 960
"""60 ms, the longest of ComParE's windows; openSMILE gives no values for less."""


class AcousticExtractor:
    """Describes the sound of clips, with one openSMILE for all of them."""

    def __init__(self, features: Literal["functionals", "low_level"]):
        import opensmile

        level = {"functionals": opensmile.FeatureLevel.Functionals, "low_level": opensmile.FeatureLevel.LowLevelDescriptors}
        self._features = features
        self._smile = opensmile.Smile(feature_set=opensmile.FeatureSet.ComParE_2016, feature_level=level[features])

    def describe(self, clip: bytes | Path, *, where: str, keep: Path | None = None) -> dict[str, Any]:
        """The columns of a row of the acoustic table.

        Args:
            keep: file for the low-level descriptors of every frame; functionals have no frames.

        Raises:
            BadMedia: the clip has no sound, cannot be decoded or is too short.
        """
        samples_T = decode_audio(clip, LONGEST_SECONDS, where=where)
        if len(samples_T) < SHORTEST_SAMPLES:
            what = f"the audio has {len(samples_T) / SAMPLE_RATE * 1000:.0f} ms; ComParE_2016 needs 60"
            raise BadMedia(where, what, reason="audio too short")
        values_TD = self._smile.process_signal(samples_T, SAMPLE_RATE).to_numpy(np.float32)
        if not np.isfinite(values_TD).all():
            raise BadMedia(where, "openSMILE gave values that are not finite", reason="no acoustic descriptors")
        if keep and self._features == "low_level":
            write_frames(keep, {"values": values_TD})
        return {
            "seconds": len(samples_T) / SAMPLE_RATE,
            "frames": len(values_TD),
            "peak": float(np.abs(samples_T).max()),
            **({"functionals": values_TD[0]} if self._features == "functionals" else pooled(values_TD)),
        }
