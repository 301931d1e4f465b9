"""A finished step's list of files names files of its own folder alone."""

from pathlib import Path

import pytest

from hba_ray.errors import DataError
from hba_ray.store.finished import FILES, known_files


@pytest.mark.parametrize("name", ["../../secret.txt", "/etc/hostname", "model/../../other/model.safetensors"])
def test_a_list_that_names_a_file_outside_its_folder_is_damaged(name: str, tmp_path: Path):
    with pytest.raises(DataError, match="which is not in the folder"):
        known_files(tmp_path, {FILES: {name: {"size": 1, "sha256": "0" * 32}}})
