"""The descriptors that BAM's adapters are given: each dataset's streams, normalised as the spec says.

Letters: B rows, D values of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hba_ray.data.atlas import AtlasIndex
from hba_ray.data.tasks import DATASETS, find_dataset
from hba_ray.descriptors.pooling import ZScoreStatistics, normalise
from hba_ray.descriptors.vectors import Descriptors
from hba_ray.errors import SpecError
from hba_ray.models.bam import DescriptorBatch
from hba_ray.specs.base import fingerprint
from hba_ray.specs.sections.bam import BamSpec, Stream
from hba_ray.specs.sections.descriptors import AcousticSpec, DescriptorsSpec, PoseSpec

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


@dataclass(frozen=True)
class Described:
    """Gives the descriptors of samples, as `training.bam.Describe` wants them, from the extracted ones. Picklable.

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
