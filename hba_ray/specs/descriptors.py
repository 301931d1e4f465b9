"""The `descriptors` section: which behavioural descriptors are extracted, and how they become one vector a clip.

Paper sections 3.4 and 3.6. What a table of the store holds depends on `extraction()` alone; pooling
and normalisation are applied when vectors are read, so changing them extracts nothing again.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from hba_ray.specs.base import Spec, identity_values

Stream = Literal["pose", "acoustic", "transcripts"]
VectorStream = Literal["pose", "acoustic"]
Pooling = Literal["mean_std", "quartiles"]
Normalisation = Literal["none", "l2", "z_score"]

POSE_VALUES = (33 + 478 + 21 + 21) * 3
"""Values of a frame: x, y, z of the points of pose, face, left hand, right hand."""
FUNCTIONALS, LOW_LEVEL_VALUES = 6373, 65
"""Values of ComParE_2016: of a clip, and of a frame of 10 ms."""
STREAMS: tuple[Stream, ...] = ("pose", "acoustic", "transcripts")
USUAL_STREAMS: tuple[VectorStream, ...] = ("pose", "acoustic")
"""Those of the paper's adapters."""
_PARTS = {"mean_std": 2, "quartiles": 3}


class PoseSpec(Spec):
    """Landmarks by MediaPipe Holistic, with refined face."""

    fps: float | None = Field(default=None, gt=0, le=240)
    """Frames looked at per second of video; null is every frame, as in the released features."""
    complexity: Literal[0, 1, 2] = 1
    """Size of the pose model."""
    detection_confidence: float = Field(default=0.5, ge=0, le=1)
    tracking_confidence: float = Field(default=0.5, ge=0, le=1)
    keep_frames: bool = False
    """Also keep every frame's landmarks, 6.6 KB a frame, beside the pooled vectors."""
    pooling: Pooling = "mean_std"
    """Over time: mean and population standard deviation (paper section 3.6), or the three quartiles."""
    normalisation: Normalisation = "none"
    """Of the pooled vector: `l2` divides it by its length; `z_score` uses mean and deviation of the training split."""

    @property
    def column(self) -> str:
        """Column of the table that holds the vector."""
        return self.pooling

    @property
    def width(self) -> int:
        """Values of a clip's vector; 3318 by default."""
        return POSE_VALUES * _PARTS[self.pooling]

    def extraction(self) -> dict[str, Any]:
        """What the table's content depends on."""
        return identity_values(self, exclude={"pooling", "normalisation"})


class AcousticSpec(Spec):
    """ComParE_2016 by openSMILE, from mono audio at 16 kHz."""

    features: Literal["functionals", "low_level"] = "functionals"
    """`functionals`: 6373 values of the whole clip. `low_level`: 65 values of every 10 ms, pooled over time."""
    keep_frames: bool = False
    """Also keep the low-level values of every frame, 260 bytes each; functionals have no frames."""
    pooling: Pooling = "mean_std"
    """Of low-level values over time; functionals are one vector already and are not pooled again."""
    normalisation: Normalisation = "none"
    """As for pose. The released code takes `l2`."""

    @property
    def column(self) -> str:
        return "functionals" if self.features == "functionals" else self.pooling

    @property
    def width(self) -> int:
        """Values of a clip's vector; 6373 by default."""
        return FUNCTIONALS if self.features == "functionals" else LOW_LEVEL_VALUES * _PARTS[self.pooling]

    def extraction(self) -> dict[str, Any]:
        return identity_values(self, exclude={"pooling", "normalisation"})


class TranscriptSpec(Spec):
    """Words by Whisper."""

    model: str = "large-v3"
    """Name of a Whisper model, or the path of a checkpoint of one."""
    language: str | None = None
    """Two-letter code; null lets the model find out."""
    rows: Literal["missing", "all"] = "missing"
    """`missing`: rows with sound whose modality signature lists no text; `all`: every row with sound."""

    def extraction(self) -> dict[str, Any]:
        return identity_values(self, exclude={"rows"})


class DescriptorsSpec(Spec):
    """What is extracted from the clips of an atlas."""

    streams: tuple[Stream, ...] = ()
    """Which descriptors are extracted: any of pose, acoustic, transcripts. `hba describe` takes the first two where none is named."""
    probe: bool = False
    """Also score a linear classifier on each stream's vectors alone, as arms `probe pose` and `probe acoustic`."""
    use_released: bool = True
    """Where a row ships `ext_video_feats` or `ext_audio_feats`, pool those instead of extracting."""
    pose: PoseSpec = PoseSpec()
    acoustic: AcousticSpec = AcousticSpec()
    transcripts: TranscriptSpec = TranscriptSpec()

    @field_validator("streams")
    @classmethod
    def _once_each(cls, streams: tuple[Stream, ...]) -> tuple[Stream, ...]:
        if len(set(streams)) != len(streams):
            raise ValueError(f"a stream is named twice in {list(streams)}")
        return streams

    def of(self, stream: Stream) -> PoseSpec | AcousticSpec | TranscriptSpec:
        """The settings of one stream."""
        return {"pose": self.pose, "acoustic": self.acoustic, "transcripts": self.transcripts}[stream]
