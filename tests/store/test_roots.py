"""A released atlas in a bucket is the same atlas: its rows, its clips and the names of what is made of it."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from hba_ray.data.atlas import build_index, read_rows
from hba_ray.data.rows import Row
from hba_ray.errors import DataError
from hba_ray.runs.plan import plan
from hba_ray.specs import ExperimentSpec
from hba_ray.steps.inputs.atlas import AtlasSteps
from hba_ray.steps.needs.software import Packages
from hba_ray.store.bucket import Bucket
from hba_ray.store.mirror import mirror_of
from hba_ray.store.roots import root_here, stated_roots
from tests.conftest import Toy
from tests.helpers.experiments import small_experiment

pytestmark = pytest.mark.slow


def released(storage: Path, root: object) -> ExperimentSpec:
    return small_experiment(storage, atlas={"source": "released", "root": str(root)})


def put(folder: Path, address: str) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    Bucket(address).upload({path.relative_to(folder).as_posix(): path for path in files})


def first_clips(spec: ExperimentSpec) -> list[dict]:
    index = build_index(spec.atlas, [root for root in stated_roots(spec.atlas) if root is not None])
    rows = [row for row in read_rows(index, range(4)) if isinstance(row, Row)]
    held = [clip for row in rows for clips in row.files.values() for clip in clips]
    return [{"sample": [row.sample_id for row in rows], "bytes": [clip if isinstance(clip, bytes) else clip.read_bytes() for clip in held]}]


def fingerprint(spec: ExperimentSpec) -> str:
    return plan(spec).steps[0].fingerprint


@pytest.mark.parametrize("layout", ["parquet", "jsonl"])
def test_an_atlas_in_a_bucket_has_the_rows_of_its_folder(bucket: str, toy: Toy, layout: str, tmp_path: Path, monkeypatch):
    folder: Path = getattr(toy, layout)
    put(folder, bucket)
    local, remote = released(tmp_path / "runs", folder), released(tmp_path / "runs", bucket)
    monkeypatch.setenv("HBA_SCRATCH", str(tmp_path / "a"))
    assert first_clips(remote) == first_clips(local)
    named = fingerprint(remote)
    if layout == "parquet":
        assert named == fingerprint(local)
    fetched = mirror_of(root_here(bucket))
    assert fetched is not None
    read = fetched.bucket.moved["read"]
    assert fingerprint(remote) == named
    assert fetched.bucket.moved["read"] == read, "what is here is not fetched again"
    monkeypatch.setenv("HBA_SCRATCH", str(tmp_path / "b"))
    assert fingerprint(remote) == named, "another machine has other times of change, and the same atlas"


def test_an_atlas_that_is_not_in_the_bucket_is_refused(bucket: str, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HBA_SCRATCH", str(tmp_path / "a"))
    with pytest.raises(DataError, match="holds no"):
        fingerprint(released(tmp_path / "runs", bucket))


def test_where_a_bucket_is_read_its_client_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HBA_SCRATCH", str(tmp_path))

    def extras(spec: ExperimentSpec) -> list[str]:
        return [need.extra for need in islice(AtlasSteps().needs(spec), 2) if isinstance(need, Packages)]  # data are looked at after them

    assert extras(released(tmp_path / "runs", "s3://bucket/atlas")) == extras(small_experiment("s3://bucket/runs")) == ["train", "bucket"]
    assert extras(released(tmp_path / "runs", tmp_path)) == ["train"]
