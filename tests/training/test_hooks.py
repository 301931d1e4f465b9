"""What a checkpoint's writing says where there is no room for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hba_ray.errors import EnvironmentMissing
from hba_ray.training.hooks import written
from tests.helpers.limits import files_of_at_most


def test_a_scratch_folder_without_room_is_named_with_the_way_out(tmp_path: Path):
    with pytest.raises(EnvironmentMissing, match="TMPDIR") as refused, files_of_at_most(1 << 20), written(tmp_path):
        torch.save({"weight": torch.zeros(1 << 20)}, tmp_path / "states.pt")
    assert refused.value.where == str(tmp_path) and "cannot be written" in refused.value.what


def test_other_errors_of_the_engine_are_left_alone(tmp_path: Path):
    with pytest.raises(RuntimeError, match="a rank is lost"), written(tmp_path):
        raise RuntimeError("a rank is lost")
