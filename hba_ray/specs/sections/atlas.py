"""The `atlas` section: where the rows come from, which of them are used, and how much of each clip."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from hba_ray.errors import SpecError
from hba_ray.specs.base import Added, Seed, Spec, folder_or_bucket, local_folder
from hba_ray.specs.sections.corpora import CorporaSpec, Corpus
from hba_ray.specs.sections.own import OwnDataset, declared_in, read_declaration

Modality = Literal["text", "audio", "video", "image"]
Split = Literal["train", "validation", "test"]
Source = Literal["released", "toy", "own", Corpus]
Layout = Literal["auto", "parquet", "jsonl"]
OnBadRow = Literal["fail", "drop"]

SOURCES_READ_AS_THEY_ARE = ("released", "toy")
"""Values of `atlas.source` that need no converter."""
OUR_PROMPTS = "standard"
"""Value of `atlas.prompts` that stands for `convert/prompts.yaml`."""


class MediaSpec(Spec):
    """How much of a clip reaches the model. Defaults are those of the released code (audio_utils.py, vision_utils.py)."""

    audio_seconds: float = Field(default=10.0, gt=0, le=300)
    """Seconds of audio kept, from the start of the clip."""
    video_frames: int = Field(default=4, ge=2, le=768)
    """Frames taken from a video, evenly spaced from its first to its last. The number is even, since the vision tower reads
    frames in pairs."""
    video_pixels: int = Field(default=147_456, ge=56 * 56)
    """Most pixels of a frame or an image; a larger one is scaled down and keeps its aspect ratio."""
    video_min_pixels: Annotated[int, Added(before=0)] = Field(default=0, ge=0)
    """Fewest pixels of a frame; a smaller one is enlarged to the next multiples of 28 pixels, which may exceed `video_pixels`. The
    released code enlarges to `video_pixels`. A number above `video_pixels` counts as that one."""
    image_pixels: Annotated[int | None, Added(before=None)] = Field(default=None, ge=56 * 56)
    """Most pixels of an image; null is `video_pixels`."""
    image_min_pixels: Annotated[int, Added(before=0)] = Field(default=0, ge=0)
    """Fewest pixels of an image, as `video_min_pixels` of a frame."""

    @model_validator(mode="after")
    def _even_frames(self) -> MediaSpec:
        if self.video_frames % 2:
            raise ValueError(f"video_frames is {self.video_frames}; the vision tower reads frames in pairs, so give an even number")
        return self

    def check_window(self, seconds: float, model: str) -> None:
        """Makes sure that a model takes as much of a sound as is asked for; its processor would cut the rest off without a word.

        Args:
            seconds: of sound that the model's feature extractor takes.
            model: as the spec names it.

        Raises:
            SpecError: it takes less.
        """
        if self.audio_seconds > seconds:
            what = f"{self.audio_seconds:g} s of each sound are asked for, and the feature extractor of {model} takes {seconds:g} s"
            raise SpecError("atlas.media.audio_seconds", what, f"lower it to {seconds:g}, or give another backbone")


TOY_SHARES = {"train": 0.70, "validation": 0.15, "test": 0.15}
"""Of the toy atlas's rows, in its three splits."""


class ToySpec(Spec):
    """A generated atlas for trying things out: small, the same for the same seed, learnable, with real WAV and MP4 files."""

    rows: int = Field(default=480, ge=40, le=100_000)
    """Rows of all datasets and splits together."""
    seed: Seed = 0
    """Seed of the generator; another seed gives other rows."""


class SampleSpec(Spec):
    """A stratified sample of an atlas: of each dataset so many rows of a split, with the same shares of labels as in the whole."""

    train: int | None = Field(default=None, ge=1)
    """Rows of each dataset's training split; null keeps all."""
    validation: int | None = Field(default=None, ge=1)
    """Rows of each dataset's validation split; null keeps all."""
    test: int | None = Field(default=None, ge=1)
    """Rows of each dataset's test split; null keeps all."""
    seed: Seed = 0
    """Seed of the draw."""


def _known(root: str | None, info: ValidationInfo) -> str | None:
    """A root that can be read; of corpora that are converted, a folder."""
    is_released = info.data.get("source") == "released"
    return folder_or_bucket(root, "an atlas") if root and is_released else local_folder(root, "the files of a corpus")


class SourceSpec(Spec):
    """One of several corpora that are joined."""

    source: Source = "released"
    """As `atlas.source`."""
    root: str | None = None
    """As `atlas.root`."""
    format: Layout = "auto"
    """As `atlas.format`."""
    datasets: tuple[str, ...] | None = None
    """Datasets to use of this corpus, by id or alias; null is all. `atlas.datasets` narrows them further."""

    @field_validator("root")
    @classmethod
    def _is_known(cls, root: str | None, info: ValidationInfo) -> str | None:
        return _known(root, info)

    @model_validator(mode="after")
    def _has_root(self) -> SourceSpec:
        _check_root(self.source, self.root)
        return self


def _check_root(source: Source, root: str | None) -> None:
    if source != "toy" and not root:
        raise ValueError(f"root is missing; source '{source}' reads files: give atlas.root=FOLDER, or atlas.source=toy")


class AtlasSpec(Spec):
    """Where the rows come from and which of them are used."""

    source: Source = "released"
    """`released`: `root` holds the released parquet or jsonl files; `toy`: generated; `own`: data of your own, which a
    `dataset.yaml` in `root` describes (`hba atlas new` writes one); all others: converted from the files that the corpus's
    publishers give, in `root`."""
    root: str | None = None
    """Folder of the atlas, or of the public files that a converter reads. Not used by `toy`. A released atlas may be in a bucket, such as
    s3://BUCKET/FOLDER: its files are fetched whole into a folder of this machine."""
    sources: Annotated[tuple[SourceSpec, ...], Added(before=())] = ()
    """Several corpora whose rows are joined, each with its `source`, `root` and, if not all are wanted, `datasets`; in place of
    `source` and `root`."""
    own: Annotated[tuple[OwnDataset, ...], Added(before=())] = ()
    """What the `dataset.yaml` of each source `own` says, in order, then what released atlases declare that were built with such rows; read
    from their folders where it is empty."""
    format: Layout = "auto"
    """Layout to read; `auto` reads each split as it is, and refuses one that is there in both layouts. A toy atlas is written in
    this layout, as parquet by default."""
    datasets: tuple[str, ...] | None = None
    """Datasets to use, by id or alias; null is all. `hba atlas list` shows the ids."""
    held_out: tuple[str, ...] = ()
    """Datasets, by id or alias, on which no stage but `transfer` trains or validates. They are evaluated all the same."""
    train_also: Annotated[tuple[str, ...], Added(before=())] = ()
    """Datasets outside the paper's sixteen, by id or alias, that take part in training: IEMOCAP, or data of your own. Others of
    them are evaluated, and trained on by `transfer` where they are held out."""
    modalities: tuple[Modality, ...] = ("text", "audio", "video", "image")
    """Modalities shown to the model. One that is left out is withheld from every row; text must stay, since it holds the question."""
    on_bad_row: OnBadRow = "fail"
    """What to do about a corrupt clip, a missing file or an unknown label: `fail` stops and names the row, `drop` leaves the row
    out and counts it in the report."""
    leaks: Annotated[Literal["tell", "refuse"], Added(before="tell")] = "tell"
    """What to do about rows that are in two splits, by their content or by their sample_id: `tell` counts and names them in the
    run's notes, `refuse` stops."""
    limit: int | None = Field(default=None, ge=1)
    """Keep only so many rows of each dataset in each split, the first ones; for trying things out. Null keeps all."""
    sample: Annotated[SampleSpec | None, Added(before=None)] = None
    """Take a stratified sample, for machines without a GPU; reports name it. Null takes all rows."""
    split_surprise: bool = False
    """Use two labels, positive and negative surprise, where a dataset tells them apart (paper section 3.3). Off by default, since
    the released labels have one surprise."""
    split_by: Literal["group", "clip"] = "group"
    """How a converter divides a dataset that comes without splits: `group` keeps all clips of an actor or a scene in one split,
    with counts as near to the paper's Table 7 as that allows; `clip` gives the exact counts."""
    corpora: Annotated[CorporaSpec, Added(before=CorporaSpec())] = CorporaSpec()
    prompts: Annotated[str, Added(before=OUR_PROMPTS)] = Field(default=OUR_PROMPTS, min_length=1)
    """What rows of converted corpora are asked: `standard` is our own words (`hba_ray/convert/prompts.yaml`); or a YAML file in that
    form, of the datasets whose words you change. Rows of a released atlas and of your own data bring their prompts."""
    media: MediaSpec = MediaSpec()
    toy: ToySpec = ToySpec()

    @model_validator(mode="before")
    @classmethod
    def _declarations(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or raw.get("own"):
            return raw
        parts = raw.get("sources") or [raw]
        stated = [one if isinstance(one, dict) else {} for one in parts] if isinstance(parts, list | tuple) else []
        roots = [(one.get("source", "released"), one["root"]) for one in stated if isinstance(one.get("root"), str)]
        own = [read_declaration(root) for source, root in roots if source == "own"]
        for declared in (declared for source, root in roots if source == "released" for declared in declared_in(root)):
            own += [] if declared in own else [declared]  # rows of one dataset may come from several atlases
        return {**raw, "own": own} if own else raw

    @field_validator("root")
    @classmethod
    def _is_known(cls, root: str | None, info: ValidationInfo) -> str | None:
        return _known(root, info)

    @model_validator(mode="after")
    def _consistent(self) -> AtlasSpec:
        if len(self.own) < sum(part.source == "own" for part in self.parts):
            raise ValueError(f"own holds {len(self.own)} declarations; leave it out, and they are read from the sources")
        names = [own.dataset for own in self.own]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(
                f"two sources are declared as '{twice[0]}': give each an id of its own, since one declaration would hold for both"
            )
        if self.sources and (self.root is not None or self.source != "released"):
            raise ValueError(
                "sources joins corpora in place of source and root: make those of the spec one of the sources, or clear them "
                "(atlas.source=released atlas.root=null)"
            )
        if not self.sources:
            _check_root(self.source, self.root)
        if both := set(self.held_out) & set(self.train_also):
            raise ValueError(f"'{min(both)}' is in held_out and in train_also: it is trained on, or not")
        if self.prompts != OUR_PROMPTS and not self.is_converted:
            raise ValueError("atlas.prompts names a file, and no source is a corpus that is converted: leave it out")
        if "text" not in self.modalities:
            raise ValueError("modalities must contain text: the question itself is text")
        if self.datasets is not None and not self.datasets:
            raise ValueError("datasets is empty; leave it out to use all of them")
        return self

    @property
    def is_converted(self) -> bool:
        """Whether any source is a corpus as its publishers give it, whose rows get their prompts here."""
        return any(part.source not in (*SOURCES_READ_AS_THEY_ARE, "own") for part in self.parts)

    @property
    def parts(self) -> tuple[SourceSpec, ...]:
        """The corpora that are joined; of most specs there is one."""
        return self.sources or (SourceSpec(source=self.source, root=self.root, format=self.format),)

    def alone(self, number: int) -> AtlasSpec:
        """The section for one of its parts, as a converter takes it."""
        part = self.parts[number]
        own = self.own[sum(one.source == "own" for one in self.parts[:number]) :][:1] if part.source == "own" else ()
        return self.model_copy(update={"source": part.source, "root": part.root, "format": part.format, "sources": (), "own": own})

    @property
    def is_toy(self) -> bool:
        """Whether rows are generated, so that nothing is said about the paper."""
        return any(part.source == "toy" for part in self.parts)
