"""Released `.pt` features pool to our own vectors; nothing in them is run."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from hba_ray.descriptors.pooling import mean_std
from hba_ray.descriptors.pose import PARTS
from hba_ray.descriptors.released import ReleasedExtractor, load_released
from hba_ray.errors import BadMedia


def pt(content) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def landmarks(frames: int = 6, **points: int) -> dict:
    rng = np.random.default_rng(0)
    sizes = PARTS | points
    parts = {name: rng.random((frames, count, 3), np.float32) for name, count in sizes.items()}
    return {**parts, "frame_indices": list(range(frames)), "total_frames": frames, "video_path": "clips/a.mp4"}


@pytest.mark.parametrize("kind", ["arrays", "tensors"])
def test_pose_files_pool_to_the_vector_of_their_landmarks(kind):
    content = landmarks()
    flat_TD = np.concatenate([content[name].reshape(6, -1) for name in PARTS], axis=1)
    assert flat_TD.shape == (6, 1659)
    if kind == "tensors":
        content = {name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in content.items()}
    row = ReleasedExtractor("pose").describe(pt(content), where="row 1")
    assert row["mean_std"].shape == (3318,)
    assert np.array_equal(row["mean_std"], mean_std(flat_TD))
    assert row["frames"] == 6 and row["detected"].tolist() == [1, 1, 1, 1]


def test_a_clip_whose_face_was_never_found_keeps_every_point_in_its_place():
    content = landmarks(face=468)
    content["face"][:] = 0
    row = ReleasedExtractor("pose").describe(pt(content), where="row 1")
    mean_D, std_D = np.split(row["mean_std"], 2)
    hands = mean_D[(33 + 478) * 3 :]
    assert np.allclose(hands[:63], content["left_hand"].reshape(6, -1).mean(axis=0), atol=1e-6)
    assert not mean_D[99 : 99 + 478 * 3].any() and not std_D[99 : 99 + 478 * 3].any()
    assert row["detected"].tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize(
    "features", [np.arange(6373, dtype=np.float32)[None], np.arange(6373, dtype=np.float64), torch.arange(6373.0)[None]]
)
def test_functionals_are_taken_as_they_are(features):
    row = ReleasedExtractor("acoustic").describe(pt({"features": features, "feature_names": ["a"], "feature_set": None}), where="row 1")
    assert np.array_equal(row["functionals"], np.arange(6373, dtype=np.float32))


class Trap:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_a_pickled_object_is_refused_and_does_not_run(tmp_path: Path):
    trap = tmp_path / "sprung"
    with pytest.raises(BadMedia, match=r"row 9: .* pickled object") as refused:
        ReleasedExtractor("pose").describe(pt({"pose": Trap(trap)}), where="row 9")
    assert refused.value.reason == "unsafe descriptors"
    assert not trap.exists()


def test_a_path_is_read_like_bytes(tmp_path: Path):
    (tmp_path / "a.pt").write_bytes(pt(landmarks()))
    assert np.array_equal(load_released(tmp_path / "a.pt", where="row 1")["pose"], landmarks()["pose"])


@pytest.mark.parametrize(
    ("stream", "content", "reason"),
    [
        ("pose", b"", "corrupt descriptors"),
        ("pose", b"not a file of torch's", "unsafe descriptors"),
        ("pose", pt(landmarks())[:2000], "corrupt descriptors"),
        ("pose", pt([1, 2]), "corrupt descriptors"),
        ("pose", pt({"pose": np.zeros((2, 33, 3))}), "descriptor shape"),
        ("pose", pt({name: torch.zeros(0, points, 3) for name, points in PARTS.items()}), "descriptor shape"),
        ("pose", pt(landmarks(face=479)), "descriptor shape"),
        ("pose", pt({**landmarks(), "face": np.zeros((5, 478, 3))}), "descriptor shape"),
        ("pose", pt({**landmarks(), "face": np.full((6, 478, 3), np.nan)}), "corrupt descriptors"),
        ("acoustic", pt({"features": np.zeros((1, 88))}), "descriptor shape"),
        ("acoustic", pt({"features": "many"}), "descriptor shape"),
    ],
)
def test_what_is_not_of_the_released_form_is_located_and_countable(stream, content, reason):
    with pytest.raises(BadMedia) as refused:
        ReleasedExtractor(stream).describe(content, where="row 4")
    assert refused.value.reason == reason and refused.value.where == "row 4"
