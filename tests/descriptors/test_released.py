"""Released `.pt` features pool to our own vectors; nothing in them is run."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hba_ray.descriptors.pooling import mean_std
from hba_ray.descriptors.pose import PARTS
from hba_ray.descriptors.released import ReleasedExtractor, load_released
from hba_ray.errors import BadMedia
from tests.helpers.hostile import hostile
from tests.helpers.hostile_checkpoints import entries, zipped


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


@pytest.mark.parametrize(
    "changed",
    [
        lambda values: values.to(torch.bfloat16),
        lambda values: values.requires_grad_(),
        lambda values: values.half(),
        lambda values: values.double(),
    ],
)
def test_tensors_are_read_whatever_their_precision_and_history(changed):
    values = torch.randint(0, 200, (1, 6373)).float()  # whole numbers that bfloat16 holds exactly
    row = ReleasedExtractor("acoustic").describe(pt({"features": changed(values.clone())}), where="row 1")
    assert row["functionals"].dtype == np.float32 and np.array_equal(row["functionals"], values[0].numpy())


def test_another_set_of_features_is_named():
    with pytest.raises(BadMedia, match=r"row 2: 'features' is \[1, 88\], not \[1, 6373\]\n.* eGeMAPS functionals"):
        ReleasedExtractor("acoustic").describe(pt({"features": torch.zeros(1, 88)}), where="row 2")


def test_a_value_that_is_not_finite_is_refused_with_its_row_and_place():
    content = landmarks()
    content["left_hand"][2, 20, 1] = np.nan
    with pytest.raises(BadMedia, match=r"row 7: 'left_hand' holds values that are not finite: nan at \[2, 20, 1\]"):
        ReleasedExtractor("pose").describe(pt(content), where="row 7")


def test_a_few_bytes_that_claim_a_huge_tensor_are_refused():
    huge = torch.zeros(1).expand(1 << 40)
    with pytest.raises(BadMedia, match="'features' is a tensor of 1099511627776 values"):
        load_released(pt({"features": huge}), where="row 1")


@pytest.mark.parametrize("make", [lambda file: None, os.mkfifo, os.mkdir, lambda file: os.symlink("/dev/zero", file)])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, make):
    make(tmp_path / "a.pt")
    with pytest.raises(BadMedia, match=r"row 1: there is no descriptor file 'a\.pt'") as refused:
        load_released(tmp_path / "a.pt", where="row 1")
    assert refused.value.reason == "missing file"


SOUND = (
    pt({"features": np.zeros((1, 6373), np.float32)}),
    pt({"features": torch.zeros(1, 6373)}),
    pt({name: torch.zeros(1, count, 3) for name, count in PARTS.items()}),
    pickle.dumps({"features": np.zeros((1, 6373), np.float32)}, 2),
)


def damaged(content: bytes, damage: list[tuple[int, int, bytes]]) -> bytes:
    for place, taken, put in damage:
        content = content[:place] + put + content[place + taken :]
    return content


@hostile("checkpoints")
@given(
    st.sampled_from(SOUND),
    st.lists(st.tuples(st.integers(0, 700), st.integers(0, 6), st.binary(max_size=4)), min_size=1, max_size=6),
    st.booleans(),
)
def test_a_damaged_file_is_read_or_refused(content: bytes, damage: list[tuple[int, int, bytes]], within: bool):
    """Damaged as a whole, or in the pickle within, with a checksum that is right."""
    if within and zipfile.is_zipfile(io.BytesIO(content)):
        parts = {name: damaged(part, damage) if name.endswith("data.pkl") else part for name, part in entries(io.BytesIO(content)).items()}
        content = zipped(parts)
    else:
        content = damaged(content, damage)
    for stream in ("pose", "acoustic"):
        try:
            row = ReleasedExtractor(stream).describe(content, where="row 1")
        except BadMedia as refused:
            assert refused.where == "row 1" and refused.reason
        else:
            assert row["frames"] >= 1


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
        ("pose", b"not a file of torch's", "corrupt descriptors"),
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
