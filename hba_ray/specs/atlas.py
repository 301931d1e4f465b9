"""The `atlas` section: which rows an experiment sees, and how much of each clip."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hba_ray.specs.base import Seed, Spec

Modality = Literal["text", "audio", "video", "image"]
Split = Literal["train", "validation", "test"]


class MediaSpec(Spec):
    """How much of a clip reaches the model (released code: audio_utils.py, vision_utils.py)."""

    audio_seconds: float = Field(default=10.0, gt=0, le=300)
    """Seconds of audio kept, from the start of the clip."""
    video_frames: int = Field(default=4, ge=2, le=768)
    """Frames taken from a video, evenly spaced from its first to its last; an even number, since
    the vision tower reads frames in pairs."""
    video_pixels: int = Field(default=147_456, ge=56 * 56)
    """Pixels of a frame or an image at most; a larger one is scaled down, keeping its shape."""

    @model_validator(mode="after")
    def _even_frames(self) -> MediaSpec:
        if self.video_frames % 2:
            raise ValueError(f"video_frames is {self.video_frames}; the vision tower reads frames in pairs, so give an even number")
        return self


class ToySpec(Spec):
    """The generated atlas: small, deterministic, learnable, with real WAV and MP4 files."""

    rows: int = Field(default=480, ge=40, le=100_000)
    """Rows over all datasets and splits."""
    seed: Seed = 0
    """Seed of the generator; another seed, another atlas."""


class AtlasSpec(Spec):
    """Where the rows come from and which of them are used."""

    source: Literal["released", "toy", "meld", "mustard", "cremad"] = "released"
    """`released`: `root` holds the released parquet or jsonl files; `toy`: generated;
    `meld`, `mustard`, `cremad`: converted from the dataset's own public files in `root`."""
    root: str | None = None
    """Folder of the atlas, or of the public files that a converter reads. Not used by `toy`."""
    format: Literal["auto", "parquet", "jsonl"] = "auto"
    """Layout to read where `root` holds both; `toy` is written in both and read as parquet by default."""
    datasets: tuple[str, ...] | None = None
    """Datasets to use, by id or alias (`hba atlas list`); all by default."""
    held_out: tuple[str, ...] = ()
    """Datasets, by id or alias, that no stage trains or validates on, but `transfer`; they are evaluated all the same."""
    modalities: tuple[Modality, ...] = ("text", "audio", "video", "image")
    """Modalities shown to the model. A modality left out is withheld from every row; text stays."""
    on_bad_row: Literal["fail", "drop"] = "fail"
    """A corrupt clip, a missing file, an unknown label: stop with its place, or drop the row and count it."""
    limit: int | None = Field(default=None, ge=1)
    """Rows kept of each dataset in each split, the first ones; for trying things out."""
    split_surprise: bool = False
    """Tell positive from negative surprise where a dataset says which (paper section 3.3).
    Off by default: the released labels have one surprise."""
    split_by: Literal["group", "clip"] = "group"
    """Where a converter makes the split: `group` keeps an actor or a scene in one split, as near to
    Table 7's counts as that allows; `clip` gives its exact counts."""
    media: MediaSpec = MediaSpec()
    toy: ToySpec = ToySpec()

    @model_validator(mode="after")
    def _consistent(self) -> AtlasSpec:
        if self.source != "toy" and not self.root:
            raise ValueError(f"root is missing; source '{self.source}' reads files: give atlas.root=FOLDER, or atlas.source=toy")
        if "text" not in self.modalities:
            raise ValueError("modalities must contain text: the question itself is text")
        if self.datasets is not None and not self.datasets:
            raise ValueError("datasets is empty; leave it out to use all of them")
        return self
