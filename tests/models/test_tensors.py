"""Folders are written whole or not at all; what the readers refuse stands in `test_checkpoints_hostile`."""

import errno
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hba_ray.models.tensors import new_folder
from tests.helpers.limits import files_of_at_most


def test_a_draft_is_removed_when_its_block_fails(tmp_path: Path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / "deep" / "folder") as draft:
        (draft / "half").write_text("x")
        raise RuntimeError
    assert list((tmp_path / "deep").iterdir()) == []


def test_what_the_disk_says_is_said_for_safetensors_too(tmp_path: Path):
    with pytest.raises(OSError, match=r"model'$") as refused, files_of_at_most(1 << 20), new_folder(tmp_path / "model") as draft:
        save_file({"weight": torch.zeros(1 << 20)}, draft / "model.safetensors")
    assert refused.value.errno == errno.EFBIG and list(tmp_path.iterdir()) == []


def test_a_folder_that_another_process_finished_first_is_replaced(tmp_path: Path):
    with new_folder(tmp_path / "one") as draft:
        (draft / "mine").touch()
        with new_folder(tmp_path / "one") as other:
            (other / "theirs").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["one", "one/mine"]
