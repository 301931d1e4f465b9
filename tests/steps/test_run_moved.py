"""A storage, and the data of a released atlas, are moved: nothing finished is done again, and nothing reads where they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hba_ray.actions.export import export_run
from hba_ray.data.atlas import AtlasIndex, build_index
from hba_ray.runs.opened import open_run, rebuild_page
from hba_ray.runs.plan import plan
from hba_ray.runs.run import Finished, run_experiment
from hba_ray.specs import AtlasSpec, ExperimentSpec
from hba_ray.store.folders import ledger
from tests.helpers.experiments import small_experiment
from tests.helpers.journals import ReadableJournal

pytestmark = pytest.mark.usefixtures("made_up")
TOY = {"source": "toy", "toy": {"rows": 80}, "limit": 6}
MEDIA = {"media": {"audio_seconds": 1, "video_frames": 2, "video_pixels": 3136}}
BAM = {"hidden": 16, "epochs": 1, "batch": 4, "cache_precision": "fp32"}


def spec_of(storage: Path, **changes: object) -> ExperimentSpec:
    return small_experiment(storage, **{"atlas": TOY | MEDIA, "sft__epochs": 1, **changes})


def run(spec: ExperimentSpec) -> Finished:
    return run_experiment(plan(spec), lambda line: None, ReadableJournal())


def events(made: Finished, event: str) -> list[str]:
    return [line["step"] for line in ledger(made.folder) if line["event"] == event]


def naming(place: Path, folder: Path) -> list[str]:
    """Files below a folder that name a place."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return [path.relative_to(folder).as_posix() for path in files if str(place).encode() in path.read_bytes()]


@pytest.mark.slow
def test_a_moved_storage_is_reported_evaluated_and_extended_from_where_it_is(tmp_path: Path):
    old, new = tmp_path / "old", tmp_path / "elsewhere" / "new"
    before = run(spec_of(old))
    page = before.page.read_text()
    new.parent.mkdir()
    shutil.move(old, new)
    folder = new / before.folder.name
    assert naming(old, new / "steps") == []
    assert naming(old, folder) == ["resolved.yaml"], "what was asked for, and so where"
    assert rebuild_page(folder).read_text() == page and 'class="row"' in page and '"video/mp4"' in page

    again = run(spec_of(new))
    assert events(again, "reused") == ["atlas", "backbone", "sft", "evaluate sft"] and again.report.scores == before.report.scores
    other = run(spec_of(new, evaluate__max_new_tokens=5))
    assert events(other, "done") == ["evaluate sft"]
    longer = run(spec_of(new, stages=["sft", "bam"], bam=BAM))
    assert events(longer, "reused") == ["atlas", "backbone", "sft", "evaluate sft"]
    assert longer.report.scores["sft"] == before.report.scores["sft"] and set(longer.report.scores) == {"sft", "sft+bam"}
    assert (export_run(open_run(folder)) / "config.json").exists() and not old.exists()
    assert naming(old, new / "steps") == []


def test_an_atlas_whose_data_have_moved_is_read_where_the_spec_says_now(toy, tmp_path: Path):
    first, second = tmp_path / "disk1", tmp_path / "disk2"
    for layout in ("parquet", "jsonl"):
        shutil.copytree(getattr(toy, layout), first / layout)
    for layout in ("parquet", "jsonl"):

        def rows_of(place: Path, layout: str = layout) -> ExperimentSpec:
            atlas = {"source": "released", "root": str(place / layout), "limit": 2, **MEDIA}
            return small_experiment(tmp_path / f"runs-{layout}", atlas=atlas, sft__epochs=1)

        before = run(rows_of(first))
        assert naming(first, before.folder.parent / "steps") == []
    shutil.move(first, second)
    for layout in ("parquet", "jsonl"):
        again = run(rows_of(second, layout))
        assert events(again, "reused") == ["atlas", "backbone", "sft", "evaluate sft"]
        assert "No clips" not in again.page.read_text()


@pytest.mark.parametrize("kept", [True, False])
def test_an_index_of_a_former_version_is_found_again_in_the_folder_of_its_step(toy, tmp_path: Path, kept: bool):
    old, new = tmp_path / "old" / "atlas-0123456789ab", tmp_path / "new" / "atlas-0123456789ab"
    shutil.copytree(toy.parquet, old / "rows")
    index = build_index(AtlasSpec(root=str(old / "rows")), old / "rows")
    index.save(old)
    stated = json.loads((old / "index.json").read_text())
    assert stated.pop("roots") == ["rows"] and all("/" not in name for name, *_ in stated["shards"])
    stated |= {"root": index.root, "shards": [[shard.path, shard.split] for shard in index.shards]}
    (old / "index.json").write_text(json.dumps(stated))
    assert AtlasIndex.load(old).shards == index.shards
    (shutil.copytree if kept else shutil.move)(old, new)
    found = AtlasIndex.load(new)
    assert found.root == str(new / "rows") and {Path(shard.path).parent for shard in found.shards} == {new / "rows"}
    elsewhere = AtlasIndex.load(new, stated=(tmp_path / "disk",))
    assert {Path(shard.path).parent for shard in elsewhere.shards} == {tmp_path / "disk"}
