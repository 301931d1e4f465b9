"""The descriptors that BAM's adapters are given: each dataset's streams, normalised as the spec says, all at once or streamed.

Letters: B rows, D values of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hba_ray.data.atlas import AtlasIndex
from hba_ray.data.feed.batches import MicroBatch
from hba_ray.data.tasks import DATASETS, find_dataset
from hba_ray.descriptors.pooling import ZScoreStatistics, normalise
from hba_ray.descriptors.vectors import Descriptors
from hba_ray.errors import DataError, SpecError
from hba_ray.models.bam import DescriptorBatch
from hba_ray.specs.base import fingerprint
from hba_ray.specs.sections.bam import BamSpec, Stream
from hba_ray.specs.sections.descriptors import AcousticSpec, DescriptorsSpec, PoseSpec

Describe = Callable[[str, Sequence[str]], Mapping[str, DescriptorBatch]]
"""(split, sample ids) -> stream -> vectors float32 [R, D] and whether each row has the stream."""

MODALITY: dict[Stream, str] = {"pose": "V", "acoustic": "A"}
"""Stream -> the letter of Table 2 that a dataset must have."""


def streams_of(bam: BamSpec, dataset: str) -> tuple[Stream, ...]:
    """The streams that a dataset (its id) has adapters for; none where only text is its own, as on MMPsy in the paper.

    >>> streams_of(BamSpec(), "tess"), streams_of(BamSpec(), "mmpsy_anxiety")
    (('acoustic',), ())
    """
    if bam.datasets is not None and dataset not in {find_dataset(name, where="bam.datasets").id for name in bam.datasets}:
        return ()
    return tuple(stream for stream in bam.streams if MODALITY[stream] in DATASETS[dataset].modalities)


def adapted_datasets(bam: BamSpec, index: AtlasIndex) -> list[str]:
    """The datasets of an atlas that have adapters.

    Raises:
        SpecError: there is none.
    """
    held = index.counts()
    names = [dataset for dataset in DATASETS if dataset in held and streams_of(bam, dataset)]
    if not names:
        what = f"no dataset of the atlas ({', '.join(held)}) has one of the streams {', '.join(bam.streams)}"
        raise SpecError("bam", what, "change bam.streams, bam.datasets or atlas.datasets, or leave the stage 'bam' out")
    return names


def describe_rows(describe: Describe, bam: BamSpec, sample_ids: Sequence[str], dataset: str, split: str) -> dict[str, DescriptorBatch]:
    """Stream -> the descriptors of rows of a dataset, of the streams that `bam.streams` names.

    Raises:
        DataError: a stream is not there, of another length than the rows, or holds a value that is not finite.
    """
    given = describe(split, sample_ids)
    where = f"descriptors of {dataset} ({split})"
    for stream in bam.streams:
        if stream not in given:
            what = f"hold no stream '{stream}', only {', '.join(given) or 'none'}"
            raise DataError(where, what, "extract it, or leave it out of bam.streams", reason="missing stream")
        vectors, present = given[stream]
        if not len(vectors) == len(present) == len(sample_ids):
            raise DataError(where, f"stream '{stream}' has {len(vectors)} rows for {len(sample_ids)} samples", reason="wrong length")
        broken = (present & ~torch.isfinite(vectors).all(dim=1)).nonzero()
        if len(broken):
            what = f"stream '{stream}' of {sample_ids[int(broken[0])]} holds a value that is not finite"
            raise DataError(where, what, "extract it again", reason="not finite")
    return {stream: given[stream] for stream in bam.streams}


def dropout_seeds(seed: int, dataset: str, epoch: int, sample_ids: Sequence[str]) -> torch.Tensor:
    """The seed of each row's dropout in an epoch, int64 [B], wherever and beside whatever other rows it is trained on."""
    return torch.tensor([int(fingerprint([seed, dataset, epoch, sample_id]), 16) for sample_id in sample_ids], dtype=torch.int64)


@dataclass(frozen=True)
class Attach:
    """Gives the rows of a micro-batch their descriptors and the seeds of their dropout, in the loader that makes it; picklable.

    Attributes:
        seed: of the adapters.
    """

    describe: Describe
    bam: BamSpec
    dataset: str
    split: str
    seed: int

    def __call__(self, batch: MicroBatch, epoch: int) -> dict[str, torch.Tensor]:
        """The tensors of `streamed`; fillers, which come last, have no stream.

        Raises:
            DataError: as `describe_rows` raises it.
        """
        sample_ids = [str(row["sample_id"]) for row in batch.rows]
        fillers = len(batch.weight) - len(sample_ids)
        tensors = {_SEEDS: dropout_seeds(self.seed, self.dataset, epoch, sample_ids)}
        for stream, given in describe_rows(self.describe, self.bam, sample_ids, self.dataset, self.split).items():
            tensors |= {stream: given.vectors_BD, stream + _PRESENT: given.present_B}
        return {name: torch.cat([tensor, tensor.new_zeros(fillers, *tensor.shape[1:])]) for name, tensor in tensors.items()}


_SEEDS, _PRESENT = "seeds", " is present"


def streamed(attached: Mapping[str, torch.Tensor]) -> tuple[dict[str, DescriptorBatch], torch.Tensor]:
    """The descriptors of a micro-batch by stream, and the seeds of its rows' dropout, from what `Attach` has attached."""
    streams = [name for name in attached if name + _PRESENT in attached]
    return {stream: DescriptorBatch(attached[stream], attached[stream + _PRESENT]) for stream in streams}, attached[_SEEDS]


@dataclass(frozen=True)
class Described:
    """Gives the descriptors of samples, as `Describe` wants them, from the extracted ones. Picklable.

    Attributes:
        scales: stream -> mean and deviation over the training split, of the streams that the spec normalises by z-score.
        seed: of the permutation, where `bam.shuffle_descriptors` gives each row the descriptors of another.
    """

    extracted: Descriptors
    index: AtlasIndex
    spec: DescriptorsSpec
    bam: BamSpec
    scales: Mapping[str, ZScoreStatistics]
    seed: int

    @classmethod
    def of(cls, extracted: Descriptors, index: AtlasIndex, spec: DescriptorsSpec, bam: BamSpec, seed: int) -> Described:
        """Takes the z-score statistics from the training split.

        Raises:
            DataError: a stream is normalised by z-score and no training row has it.
        """
        train = index.rows_of("train")
        wanted: list[Stream] = [stream for stream in bam.streams if _settings(spec, stream).normalisation == "z_score"]
        return cls(extracted, index, spec, bam, {stream: extracted.z_score(stream, train) for stream in wanted}, seed)

    def __call__(self, split: str, sample_ids: Sequence[str]) -> dict[str, DescriptorBatch]:
        """Stream -> the descriptors of these samples of a split, in their order.

        Raises:
            DataError: a sample has no row of that split, or its descriptors were not extracted.
        """
        lines = np.asarray(self.extracted.lines_of(split, sample_ids), np.int64)
        datasets = self.index.table.column("dataset").take(lines).to_pylist()
        return {stream: self._stream(stream, split, lines, datasets) for stream in self.bam.streams}

    @property
    def names(self) -> dict[int, str]:
        """Line of the index -> sample id, of the rows that could be read."""
        return {line: sample for line, (sample, _) in self.extracted.names.items()}

    def _stream(self, stream: Stream, split: str, lines: np.ndarray, datasets: list[str]) -> DescriptorBatch:
        sources = self._others(stream, split, lines, datasets) if self.bam.shuffle_descriptors else lines
        matrix_BD, found_B = self.extracted.vectors(stream, sources)
        present_B = found_B & np.array([stream in streams_of(self.bam, dataset) for dataset in datasets], bool)
        matrix_BD = normalise(matrix_BD, present_B, _settings(self.spec, stream).normalisation, self.scales.get(stream))
        return DescriptorBatch(torch.from_numpy(np.ascontiguousarray(matrix_BD)), torch.from_numpy(present_B))

    def _others(self, stream: Stream, split: str, lines: np.ndarray, datasets: list[str]) -> np.ndarray:
        """For each row the line of another row of its dataset and split that has the stream; each is taken once."""
        has_clip = self.extracted.columns[stream].clips != b""
        held = self.index.table.column("dataset").to_numpy(zero_copy_only=False)
        partner = np.arange(len(has_clip))
        for dataset in sorted(set(datasets)):
            rows = self.index.rows_of(split)
            rows = rows[(held[rows] == dataset) & has_clip[rows]]
            seed = int(fingerprint([self.seed, split, dataset, stream]), 16)
            ring = np.random.default_rng(seed).permutation(rows)
            partner[ring] = np.roll(ring, 1)
        return partner[lines]


def _settings(spec: DescriptorsSpec, stream: Stream) -> PoseSpec | AcousticSpec:
    return spec.pose if stream == "pose" else spec.acoustic
