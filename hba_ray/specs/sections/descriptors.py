"""The `descriptors` section: which behavioural descriptors are extracted, and how they become one vector a clip.

Paper sections 3.4 and 3.6. What is stored of a clip depends on the fields of `extraction()` alone. Pooling and
normalisation are applied when vectors are read, so nothing is extracted again when they change.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from hba_ray.specs.base import Spec, identity_values, once_each

Stream = Literal["pose", "acoustic", "transcripts"]
VectorStream = Literal["pose", "acoustic"]
Pooling = Literal["mean_std", "quartiles"]
Normalisation = Literal["none", "l2", "z_score"]

POSE_VALUES = (33 + 478 + 21 + 21) * 3
"""Values of a video frame: x, y, z of the points of the pose, the face, the left and the right hand."""
FUNCTIONALS, LOW_LEVEL_VALUES = 6373, 65
"""Values of openSMILE's ComParE_2016: functionals of a whole clip, and low-level values of a frame of 10 ms."""
STREAMS: tuple[Stream, ...] = ("pose", "acoustic", "transcripts")
USUAL_STREAMS: tuple[VectorStream, ...] = ("pose", "acoustic")
"""The streams of the paper's adapters."""
_STATISTICS = {"mean_std": 2, "quartiles": 3}
"""Numbers into which pooling turns the values of one feature over time."""


class PoseSpec(Spec):
    """Landmarks of body, face and hands by MediaPipe Holistic, with refined face landmarks."""

    fps: float | None = Field(default=None, gt=0, le=240)
    """Frames per second of video that are analysed; null is every frame, as in the released features."""
    complexity: Literal[0, 1, 2] = 1
    """Size of MediaPipe's pose model, its `model_complexity`."""
    detection_confidence: float = Field(default=0.5, ge=0, le=1)
    """MediaPipe's `min_detection_confidence`."""
    tracking_confidence: float = Field(default=0.5, ge=0, le=1)
    """MediaPipe's `min_tracking_confidence`."""
    keep_frames: bool = False
    """Also store the landmarks of every frame, 6.6 KB each, beside the pooled vectors."""
    pooling: Pooling = "mean_std"
    """How frames become one vector: mean and population standard deviation of each value over time (paper section 3.6), or its
    three quartiles."""
    normalisation: Normalisation = "none"
    """What is done to the pooled vector: `l2` divides it by its length, `z_score` standardises each value by its mean and
    deviation over the training split."""

    @property
    def column(self) -> str:
        """Column of the stored table that holds the pooled vector."""
        return self.pooling

    @property
    def width(self) -> int:
        """Values of a clip's vector; 3318 by default."""
        return POSE_VALUES * _STATISTICS[self.pooling]

    def extraction(self) -> dict[str, Any]:
        """The fields that what is stored depends on."""
        return identity_values(self, exclude={"pooling", "normalisation"})


class AcousticSpec(Spec):
    """The features ComParE_2016 by openSMILE, from mono audio at 16 kHz."""

    features: Literal["functionals", "low_level"] = "functionals"
    """`functionals` are 6373 values of the whole clip; `low_level` are 65 values every 10 ms, pooled over time."""
    keep_frames: bool = False
    """Also store the low-level values of every frame, 260 bytes each; functionals have no frames."""
    pooling: Pooling = "mean_std"
    """How low-level values are pooled over time. Functionals are one vector already, so they are not pooled."""
    normalisation: Normalisation = "none"
    """What is done to the vector, as for pose. The released code uses `l2`."""

    @property
    def column(self) -> str:
        """Column of the stored table that holds the vector."""
        return "functionals" if self.features == "functionals" else self.pooling

    @property
    def width(self) -> int:
        """Values of a clip's vector; 6373 by default."""
        return FUNCTIONALS if self.features == "functionals" else LOW_LEVEL_VALUES * _STATISTICS[self.pooling]

    def extraction(self) -> dict[str, Any]:
        return identity_values(self, exclude={"pooling", "normalisation"})


class TranscriptSpec(Spec):
    """Transcripts of speech by Whisper."""

    model: str = "large-v3"
    """Name of a Whisper model, path of a checkpoint or of a model.bin of CTranslate2, or `package:NAME` of an installed package
    that carries one."""
    language: str | None = None
    """Two-letter code of the language; null lets the model detect it."""
    rows: Literal["missing", "all"] = "missing"
    """Which rows are transcribed: `missing` are rows with sound whose `modality_signature` lists no text, `all` are all with sound."""

    def extraction(self) -> dict[str, Any]:
        return identity_values(self, exclude={"rows"})


class DescriptorsSpec(Spec):
    """What is extracted from the clips of an atlas, and how."""

    streams: tuple[Stream, ...] = ()
    """Which descriptors are extracted: any of pose, acoustic and transcripts. Those that `bam.streams` needs are added. Where none
    is named, `hba describe` extracts pose and acoustic."""
    probe: bool = False
    """Also train and score a linear classifier on the vectors of each stream alone, as arms `probe pose` and `probe acoustic`."""
    use_released: bool = True
    """Where a row has features of the release (`ext_video_feats`, `ext_audio_feats`), pool those instead of extracting."""
    pose: PoseSpec = PoseSpec()
    acoustic: AcousticSpec = AcousticSpec()
    transcripts: TranscriptSpec = TranscriptSpec()

    @field_validator("streams")
    @classmethod
    def _once_each(cls, streams: tuple[Stream, ...]) -> tuple[Stream, ...]:
        return once_each(streams, "a stream")

    def of(self, stream: Stream) -> PoseSpec | AcousticSpec | TranscriptSpec:
        """The settings of one stream."""
        return {"pose": self.pose, "acoustic": self.acoustic, "transcripts": self.transcripts}[stream]
