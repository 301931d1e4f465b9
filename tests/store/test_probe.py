"""A storage that would let two processes do one step is refused before the first step."""

import errno
import fcntl
from pathlib import Path

import pytest

from hba_ray.errors import EnvironmentMissing
from hba_ray.store.probe import check_storage


def test_an_ordinary_folder_passes_and_nothing_is_left_in_it(tmp_path: Path):
    check_storage(tmp_path, by_several=True)
    assert list(tmp_path.iterdir()) == []


def test_locks_that_keep_nobody_out_are_refused(tmp_path: Path):
    with pytest.raises(EnvironmentMissing, match="does not keep others out") as refused:
        check_storage(tmp_path, flock=lambda file, how: None)
    assert refused.value.exit_code == 5
    assert refused.value.where == str(tmp_path)
    assert "compute.storage=" in refused.value.way_out


def test_a_file_system_without_locks_is_refused(tmp_path: Path):
    def flock(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with pytest.raises(EnvironmentMissing, match="No locks available"):
        check_storage(tmp_path, flock=flock)


@pytest.mark.parametrize("option", ["nolock", "local_lock=all", "local_lock=flock", "localflock"])
def test_locks_of_one_machine_are_refused_where_several_write(tmp_path: Path, option: str):
    mounts = tmp_path / "mounts"
    place = tmp_path / "shared runs"
    place.mkdir()
    escaped = str(place.resolve()).replace(" ", "\\040")
    mounts.write_text(f"disk / ext4 rw 0 0\nhost:/x {escaped} nfs4 rw,hard,{option} 0 0\n")
    check_storage(place, mounts=mounts)
    check_storage(tmp_path, by_several=True, mounts=mounts)
    with pytest.raises(EnvironmentMissing, match=f"mounted with {option}"):
        check_storage(place, by_several=True, mounts=mounts, flock=fcntl.flock)
