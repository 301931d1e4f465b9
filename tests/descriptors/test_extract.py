"""From an odd atlas to vectors: every clip once, every defect counted or located, and nothing done twice."""

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from hba_ray.actions.check_atlas import examine
from hba_ray.descriptors import pools
from hba_ray.descriptors.extract import Summary, extract
from hba_ray.descriptors.tables import table_of
from hba_ray.descriptors.vectors import Descriptors
from hba_ray.errors import BadMedia, DataError, EnvironmentMissing
from hba_ray.specs import ComputeSpec
from hba_ray.specs.sections.descriptors import AcousticSpec, DescriptorsSpec, TranscriptSpec
from tests.helpers.indices import index_of

pytest.importorskip("opensmile")

HERE = ComputeSpec(workers=0)
ACOUSTIC = DescriptorsSpec(streams=("acoustic",))
NAMES = (
    *("voice", "same", "stereo", "short", "empty", "nothing", "silence", "dumb video", "cut video", "one frame", "speaking video"),
    *("text", "shipped", "unsafe"),
)
WITH_SOUND = ("voice", "same", "stereo", "silence", "speaking video", "shipped")


def run(folder: Path, store: Path, spec: DescriptorsSpec = ACOUSTIC, on_bad_row="drop", **rest) -> Summary:
    return extract(spec, index_of(folder), ("train",), store, compute=HERE, on_bad_row=on_bad_row, **rest)


def contents(store: Path) -> dict[str, bytes]:
    return {str(file.relative_to(store)): file.read_bytes() for file in sorted(store.glob("acoustic-*/*.parquet"))}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the clips that are described from now on."""
    clips: list[str] = []
    original = pools.Worker.describe

    def describe(self, clip, content, where):
        clips.append(clip)
        return original(self, clip, content, where)

    monkeypatch.setattr(pools.Worker, "describe", describe)
    return clips


def test_defects_are_counted_and_masked_row_by_row(odd_atlas, tmp_path):
    told = []
    summary = run(odd_atlas, tmp_path, progress=lambda *now: told.append(now)).streams["acoustic"]
    assert summary.rows == len(NAMES) and summary.described == len(WITH_SOUND)
    assert summary.absent == 3, "the text row and two videos without sound"
    assert (
        summary.bad["unsafe descriptors"] == summary.bad["audio too short"] == summary.bad["empty audio"] == summary.bad["empty file"] == 1
    )
    assert summary.described + summary.absent + sum(summary.bad.values()) == summary.rows
    assert told[0] == ("clips", 14, 14) and told[-1] == ("acoustic", summary.extracted, summary.extracted)
    descriptors = Descriptors.open(tmp_path, ACOUSTIC, index_of(odd_atlas), ("train",))
    matrix_BD, present_B = descriptors.vectors("acoustic", range(len(NAMES)))
    assert matrix_BD.shape == (14, 6373) and matrix_BD.dtype == np.float32
    assert {name for name, present in zip(NAMES, present_B, strict=True) if present} == set(WITH_SOUND)
    assert not matrix_BD[~present_B].any() and matrix_BD[present_B].any(axis=1).all()
    assert np.array_equal(matrix_BD[NAMES.index("shipped")], np.arange(6373, dtype=np.float32))


def test_the_same_clip_in_two_datasets_is_extracted_once(odd_atlas, tmp_path, counted):
    summary = run(odd_atlas, tmp_path).streams["acoustic"]
    assert len(counted) == len(set(counted)) == summary.extracted == summary.clips
    assert summary.clips == summary.rows - 1 - 1, "one row has no clip, one has another's"
    matrix_BD, _ = Descriptors.open(tmp_path, ACOUSTIC, index_of(odd_atlas), ("train",)).vectors("acoustic", [0, 1])
    assert np.array_equal(matrix_BD[0], matrix_BD[1])


def test_a_bad_clip_ends_the_run_with_its_place_also_the_second_time(odd_atlas, tmp_path, counted):
    for _ in range(2):
        with pytest.raises(BadMedia, match=r"train\.jsonl row \d+ \(toy_tone\)") as refused:
            run(odd_atlas, tmp_path, on_bad_row="fail")
        assert refused.value.reason
    done = len(counted)
    run(odd_atlas, tmp_path)
    assert len(counted) == len(set(counted)) > done, "what was finished before the error is kept"


def test_a_finished_store_reads_no_clip_again(odd_atlas, tmp_path, counted, monkeypatch):
    first = run(odd_atlas, tmp_path)
    before = contents(tmp_path)
    counted.clear()
    monkeypatch.setattr("hba_ray.descriptors.keys.read_rows", None)
    again = run(odd_atlas, tmp_path).streams["acoustic"]
    assert not counted and again.extracted == 0 and again.described == first.streams["acoustic"].described
    assert contents(tmp_path) == before


def test_interrupted_runs_end_with_the_bytes_of_one_run(odd_atlas, tmp_path, counted):
    run(odd_atlas, tmp_path / "whole")
    counted.clear()

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "acoustic" and done:
            raise KeyboardInterrupt

    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            run(odd_atlas, tmp_path / "parts", progress=interrupt)
    assert len(counted) == 4
    run(odd_atlas, tmp_path / "parts")
    assert len(counted) == len(set(counted)), "no finished clip was extracted again"
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_other_settings_never_mix_and_pooling_is_no_setting(tmp_path):
    tables = {
        name: table_of(tmp_path, spec, "acoustic").folder.name
        for name, spec in {
            "functionals": ACOUSTIC,
            "l2": DescriptorsSpec(acoustic=AcousticSpec(normalisation="l2")),
            "low": DescriptorsSpec(acoustic=AcousticSpec(features="low_level")),
            "quartiles": DescriptorsSpec(acoustic=AcousticSpec(features="low_level", pooling="quartiles")),
        }.items()
    }
    assert tables["functionals"] == tables["l2"] != tables["low"] == tables["quartiles"]


def test_shipped_features_can_be_left_aside(odd_atlas, tmp_path):
    spec = DescriptorsSpec(streams=("acoustic",), use_released=False)
    run(odd_atlas, tmp_path, spec)
    matrix_BD, present_B = Descriptors.open(tmp_path, spec, index_of(odd_atlas), ("train",)).vectors("acoustic", [0, 12, 13])
    assert present_B.all() and np.array_equal(matrix_BD[0], matrix_BD[1]) and np.array_equal(matrix_BD[0], matrix_BD[2])


def test_low_level_vectors_are_pooled_as_asked_when_they_are_read(odd_atlas, tmp_path):
    spec = DescriptorsSpec(streams=("acoustic",), acoustic=AcousticSpec(features="low_level", keep_frames=True))
    run(odd_atlas, tmp_path, spec)
    for pooling, width in (("mean_std", 130), ("quartiles", 195)):
        other = DescriptorsSpec(streams=("acoustic",), acoustic=AcousticSpec(features="low_level", keep_frames=True, pooling=pooling))
        matrix_BD, present_B = Descriptors.open(tmp_path, other, index_of(odd_atlas), ("train",)).vectors("acoustic", range(14))
        assert matrix_BD.shape == (14, width) == (14, other.acoustic.width) and present_B.sum() == 7, "shipped functionals are left aside"
    assert len(list(tmp_path.glob("acoustic-*/frames/*/*.parquet"))) == 4


def test_a_changed_clip_is_noticed_and_its_vector_replaced(odd_atlas, tmp_path):
    run(odd_atlas, tmp_path)
    index = index_of(odd_atlas)
    other = (odd_atlas / "stereo.wav").read_bytes()
    (odd_atlas / "voice.wav").write_bytes(other + bytes(2))
    with pytest.raises(DataError, match="changed since") as refused:
        Descriptors.open(tmp_path, ACOUSTIC, index, ("train",))
    assert refused.value.reason == "missing descriptors"
    (odd_atlas / "voice.wav").write_bytes(other)
    run(odd_atlas, tmp_path)
    matrix_BD, _ = Descriptors.open(tmp_path, ACOUSTIC, index, ("train",)).vectors("acoustic", [0, 2])
    assert np.array_equal(matrix_BD[0], matrix_BD[1])


def test_descriptors_are_found_after_atlas_and_store_were_moved(odd_atlas, tmp_path, counted):
    run(odd_atlas, tmp_path / "store")
    here, _ = Descriptors.open(tmp_path / "store", ACOUSTIC, index_of(odd_atlas), ("train",)).vectors("acoustic", range(14))
    made = len(counted)
    shutil.copytree(odd_atlas, tmp_path / "elsewhere")  # with other times of change
    (tmp_path / "store").rename(tmp_path / "moved")
    there, _ = Descriptors.open(tmp_path / "moved", ACOUSTIC, index_of(tmp_path / "elsewhere"), ("train",)).vectors("acoustic", range(14))
    assert np.array_equal(here, there)
    assert len(counted) == made


def test_vectors_of_rows_that_were_not_extracted_are_refused(odd_atlas, tmp_path):
    index = index_of(odd_atlas)
    with pytest.raises(DataError, match="hba describe"):
        Descriptors.open(tmp_path, ACOUSTIC, index, ("train",))
    run(odd_atlas, tmp_path)
    other = DescriptorsSpec(streams=("acoustic",), acoustic=AcousticSpec(features="low_level"))
    with pytest.raises(DataError, match="holds no row of clip"):
        Descriptors.open(tmp_path, other, index, ("train",)).vectors("acoustic", [0])


def test_z_score_statistics_come_from_present_rows_only(odd_atlas, tmp_path):
    run(odd_atlas, tmp_path)
    descriptors = Descriptors.open(tmp_path, ACOUSTIC, index_of(odd_atlas), ("train",))
    matrix_BD, present_B = descriptors.vectors("acoustic", range(14))
    statistics = descriptors.z_score("acoustic", range(14), batch=3)
    assert np.allclose(statistics.mean_D, matrix_BD[present_B].mean(axis=0, dtype=np.float64), rtol=1e-6)


def test_a_missing_file_is_located_or_counted(odd_atlas, tmp_path):
    index = index_of(odd_atlas)
    (odd_atlas / "voice.wav").unlink()
    with pytest.raises(DataError, match="is not there"):
        extract(ACOUSTIC, index, ("train",), tmp_path, compute=HERE)
    summary = extract(ACOUSTIC, index, ("train",), tmp_path, compute=HERE, on_bad_row="drop")
    assert summary.unreadable == {"missing file": 3}
    assert summary.streams["acoustic"].described == len(WITH_SOUND) - 2


def test_health_says_what_is_wrong_by_dataset(odd_atlas, tmp_path):
    index = index_of(odd_atlas)
    before = {(one.dataset, one.stream): one for one in examine(tmp_path, ACOUSTIC, index, ("train",))}
    tone = before["toy_tone", "acoustic"]
    assert (tone.rows, tone.missing) == (13, 12), "one row is text alone"
    run(odd_atlas, tmp_path)
    tone, nod = (one for one in sorted(examine(tmp_path, ACOUSTIC, index, ("train",)), key=lambda one: -one.rows))
    assert (tone.missing, tone.described, tone.silent) == (0, 5, 1)
    assert sum(tone.bad.values()) + tone.described == tone.clips
    assert (nod.dataset, nod.rows, nod.described, nod.silent) == ("toy_nod", 1, 1, 0) and nod.seconds > 0.9


def test_an_extractor_that_is_not_installed_here_is_named(odd_atlas, tmp_path):
    from hba_ray.descriptors import environments

    if environments.ENVIRONMENTS["pose"].is_here:
        pytest.skip("MediaPipe is installed beside this package")
    with pytest.raises(EnvironmentMissing, match=r"mediapipe==0\.10\.21 is not installed") as refused:
        run(odd_atlas, tmp_path, DescriptorsSpec(streams=("pose",)))
    assert "compute.workers" in refused.value.way_out


def test_transcripts_are_for_rows_whose_signature_has_no_text(odd_atlas, tmp_path):
    spec = DescriptorsSpec(streams=("transcripts",), transcripts=TranscriptSpec(rows="missing"))
    summary = run(odd_atlas, tmp_path, spec).streams["transcripts"]
    assert summary.described == 0 and summary.extracted == 0 and summary.absent == 14


def test_tables_are_parquet_that_says_what_it_holds(odd_atlas, tmp_path):
    run(odd_atlas, tmp_path)
    folder = next(tmp_path.glob("acoustic-*"))
    assert '"opensmile==2.6.0"' in (folder / "about.json").read_text()
    rows = [row for file in folder.glob("?.parquet") for row in pq.read_table(file).to_pylist()]
    silence = [row for row in rows if row["peak"] == 0.0]
    assert len(silence) == 1 and len(silence[0]["functionals"]) == 6373
    assert not os.listdir(folder / "frames") if (folder / "frames").exists() else True


def test_silent_sounds_and_rows_of_text_alone_are_counted_as_what_they_are(odd_atlas, tmp_path):
    index = index_of(odd_atlas)
    assert sum(one.missing for one in examine(tmp_path, ACOUSTIC, index, ("train",))) == len(NAMES) - 1, "one row is text alone"
    assert run(odd_atlas, tmp_path).streams["acoustic"].silent == 1
