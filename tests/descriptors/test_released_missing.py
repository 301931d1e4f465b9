"""A descriptor file that is not there concerns the stages that read it, and no other."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from hba_ray.data.atlas import read_rows
from hba_ray.data.rows import Row
from hba_ray.descriptors.extract import Summary, extract
from hba_ray.descriptors.vectors import Descriptors
from hba_ray.errors import BadMedia
from hba_ray.specs import ComputeSpec
from hba_ray.specs.sections.descriptors import DescriptorsSpec
from tests.descriptors.conftest import row, write_rows
from tests.helpers.indices import index_of

ACOUSTIC = DescriptorsSpec(streams=("acoustic",))


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    """Three rows: one with its file, one without, and one with a pipe in its place."""
    folder = tmp_path / "atlas"
    folder.mkdir()
    torch.save({"features": torch.ones(1, 6373)}, folder / "there.pt")
    os.mkfifo(folder / "pipe.pt")
    write_rows(folder, [row(name, ext_audio_feats=[f"{name}.pt"]) for name in ("there", "gone", "pipe")])
    return folder


def run(folder: Path, on_bad_row="drop") -> Summary:
    store = folder.parent / "store"
    return extract(ACOUSTIC, index_of(folder), ("train",), store, compute=ComputeSpec(workers=0), on_bad_row=on_bad_row)


def test_rows_are_kept_where_nobody_reads_the_file(atlas):
    index = index_of(atlas)
    rows = list(read_rows(index, range(3)))
    assert not index.drops and [one.sample_id for one in rows if isinstance(one, Row)] == ["there", "gone", "pipe"]


def test_a_stage_that_reads_the_file_masks_and_counts_the_row(atlas):
    summary = run(atlas)
    assert summary.streams["acoustic"].bad == {"missing file": 2} and not summary.unreadable
    _, present_B = Descriptors.open(atlas.parent / "store", ACOUSTIC, index_of(atlas), ("train",)).vectors("acoustic", range(3))
    assert present_B.tolist() == [True, False, False]


def test_or_refuses_it_with_its_place(atlas):
    with pytest.raises(BadMedia, match=r"train\.jsonl row 1 .*gone\.pt"):
        run(atlas, on_bad_row="fail")


def test_a_file_that_has_come_back_is_read(atlas):
    run(atlas)
    torch.save({"features": torch.full((1, 6373), 2.0)}, atlas / "gone.pt")
    assert run(atlas).streams["acoustic"].bad == {"missing file": 1}
    vectors_BD, _ = Descriptors.open(atlas.parent / "store", ACOUSTIC, index_of(atlas), ("train",)).vectors("acoustic", [1])
    assert np.array_equal(vectors_BD[0], np.full(6373, 2, np.float32))
