"""MediaPipe in its own environment, on Ray: our vectors are those of MediaPipe by hand, and actors change nothing."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from hba_ray.actions.check_atlas import examine
from hba_ray.cluster.session import ray_session
from hba_ray.data.atlas import AtlasIndex, build_index
from hba_ray.data.toy import film, speak
from hba_ray.descriptors.environments import build, default_folder
from hba_ray.descriptors.extract import Summary, extract
from hba_ray.descriptors.pooling import mean_std, quartiles
from hba_ray.descriptors.pose import PARTS
from hba_ray.descriptors.store import read_frames
from hba_ray.descriptors.tables import table_of
from hba_ray.descriptors.vectors import Descriptors
from hba_ray.errors import EnvironmentMissing
from hba_ray.specs import AtlasSpec, ComputeSpec
from hba_ray.specs.sections.descriptors import DescriptorsSpec, PoseSpec

from .conftest import movie, row, write_rows

pytestmark = [pytest.mark.ray, pytest.mark.slow]
COMPUTE = ComputeSpec(cpus=4, fork=True)
SPEC = DescriptorsSpec(streams=("pose",), pose=PoseSpec(keep_frames=True))

BY_HAND = """
import sys, av, numpy as np
from mediapipe.python.solutions.holistic import Holistic
for path in sys.argv[1:]:
    rows = []
    with av.open(path) as container, Holistic(model_complexity=1, refine_face_landmarks=True) as holistic:
        for frame in container.decode(video=0):
            found = holistic.process(frame.to_ndarray(format="rgb24"))
            row = []
            for part, count in (("pose", 33), ("face", 478), ("left_hand", 21), ("right_hand", 21)):
                points = getattr(found, part + "_landmarks")
                row += [[p.x, p.y, p.z] for p in points.landmark] if points else [[0, 0, 0]] * count
            rows.append(np.array(row, np.float32))
    np.save(path + ".npy", np.stack(rows))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    try:
        return build("pose", default_folder("local", tmp_path_factory.mktemp("unused")))
    except EnvironmentMissing as missing:
        if "uv, which builds" in missing.what:
            pytest.skip("there is no uv")
        raise


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Six videos: the three motions, one of them twice, a clip without a face and one of a single frame."""
    folder = tmp_path_factory.mktemp("atlas")
    rng = np.random.default_rng(0)
    nod = film("nod", rng)
    clips = {"nod": nod, "shake": film("shake", rng), "still": film("still", rng), "again": nod, "nobody": movie(8, side=128)}
    clips |= {"single": movie(1, side=128), "damaged": nod[: len(nod) // 2], "sound": speak("sad", rng)}
    for name, clip in clips.items():
        (folder / f"{name}.mp4").write_bytes(clip)
    rows = [row(name, "toy_nod", "neutral", videos=[f"{name}.mp4"]) for name in clips]
    write_rows(folder, rows)
    return folder


@pytest.fixture(scope="module")
def session(python: Path, tmp_path_factory) -> Iterator[None]:
    with ray_session(COMPUTE, tmp_path_factory.mktemp("log")):
        yield


@pytest.fixture(scope="module")
def index(folder: Path) -> AtlasIndex:
    return build_index(AtlasSpec(root=str(folder)), folder)


def run(index: AtlasIndex, store: Path, actors: int = 2, spec: DescriptorsSpec = SPEC) -> Summary:
    return extract(spec, index, ("train",), store, compute=COMPUTE.model_copy(update={"extractors": actors}), on_bad_row="drop")


@pytest.fixture(scope="module")
def store(index: AtlasIndex, session, tmp_path_factory) -> Path:
    store = tmp_path_factory.mktemp("store")
    summary = run(index, store).streams["pose"]
    assert (summary.rows, summary.described, summary.clips, summary.extracted) == (8, 6, 7, 7)
    assert sum(summary.bad.values()) == 2 and summary.bad["no video stream"] == 1
    return store


def test_vectors_equal_mediapipe_by_hand_on_the_same_frames(store, index, folder, python):
    names = ("nod", "shake", "still", "again")
    script = [str(python), "-c", BY_HAND, *(str(folder / f"{name}.mp4") for name in names)]
    subprocess.run(script, check=True, capture_output=True, timeout=300)
    matrix_BD, present_B = Descriptors.open(store, SPEC, index, ("train",)).vectors("pose", range(4))
    assert present_B.all() and matrix_BD.shape == (4, 3318)
    for vector_D, name in zip(matrix_BD, names, strict=True):
        points_TP3 = np.load(folder / f"{name}.mp4.npy")
        assert points_TP3.shape == (16, 553, 3)
        assert np.array_equal(vector_D, mean_std(points_TP3.reshape(16, -1))), name
        face_found = points_TP3[:, 33 : 33 + 478].any(axis=(1, 2))
        pose_found = points_TP3[:, :33].any(axis=(1, 2))
        assert (face_found & pose_found).mean() >= 0.95, name


def test_frames_that_were_kept_pool_to_the_vectors(store, index):
    table = table_of(store, SPEC, "pose")
    clip = Descriptors.open(store, SPEC, index, ("train",)).columns["pose"].clips[1].decode()
    kept = read_frames(table.frames_file(clip))
    assert kept["values"].shape == (16, 1659) and kept["detected"].shape == (16, 4) and kept["visibility"].shape == (16, 33)
    assert np.array_equal(table.read([clip], "mean_std")[0], mean_std(kept["values"]))
    assert np.array_equal(table.read([clip], "quartiles")[0], quartiles(kept["values"]))


def test_released_files_of_a_clip_give_its_own_vector(store, index, folder, tmp_path, session):
    table = table_of(store, SPEC, "pose")
    clip = Descriptors.open(store, SPEC, index, ("train",)).columns["pose"].clips[0].decode()
    values_TPC = read_frames(table.frames_file(clip))["values"].reshape(16, -1, 3)
    parts = np.split(values_TPC, np.cumsum(list(PARTS.values()))[:-1], axis=1)
    torch.save(dict(zip(PARTS, parts, strict=True)), tmp_path / "nod.pt")
    (tmp_path / "nod.mp4").write_bytes((folder / "nod.mp4").read_bytes())
    record = row("nod", "toy_nod", "neutral", videos=["nod.mp4"], ext_video_feats=["nod.pt"])
    write_rows(tmp_path, [record])
    shipped = build_index(AtlasSpec(root=str(tmp_path)), tmp_path)
    assert run(shipped, tmp_path / "store").streams["pose"].described == 1
    ours, _ = Descriptors.open(store, SPEC, index, ("train",)).vectors("pose", [0])
    theirs, _ = Descriptors.open(tmp_path / "store", SPEC, shipped, ("train",)).vectors("pose", [0])
    assert np.array_equal(ours, theirs)


def test_one_actor_makes_the_bytes_of_two(store, index, tmp_path, session):
    run(index, tmp_path, actors=1)
    ours, theirs = ({file.name: file.read_bytes() for file in folder.glob("pose-*/?.parquet")} for folder in (store, tmp_path))
    assert ours == theirs and len(ours) > 3


def test_a_clip_without_a_face_and_one_of_a_single_frame_have_vectors(store, index):
    matrix_BD, present_B = Descriptors.open(store, SPEC, index, ("train",)).vectors("pose", range(8))
    assert present_B.tolist() == [True] * 6 + [False] * 2
    assert not matrix_BD[4:].any()
    health = examine(store, SPEC, index, ("train",))[0]
    assert (health.rows, health.described, health.faceless, health.missing) == (8, 6, 2, 0)
    assert health.face_share is not None and 0.6 < health.face_share < 0.7


def test_a_second_run_extracts_nothing(store, index, session):
    assert run(index, store).streams["pose"].extracted == 0
