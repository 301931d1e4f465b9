"""The cache of a judge: grades outlive a torn line, a full disk is said, and two runs of a judge take turns."""

from pathlib import Path

import pytest

from hba_ray.errors import EnvironmentMissing
from hba_ray.judge.cache import Grade, open_cache
from tests.helpers.limits import files_of_at_most

GRADE = Grade(True, "", "TRUE", "stub", 1, 1)


def opened(folder: Path, fingerprint: str = "abc"):
    return open_cache(folder, fingerprint, wait_seconds=0, on_wait=lambda: None)


def test_a_full_disk_is_said_and_what_is_written_is_kept(tmp_path: Path):
    with files_of_at_most(500), pytest.raises(EnvironmentMissing, match="cannot be written to"), opened(tmp_path) as cache:
        for number in range(9):
            cache.add(str(number), GRADE, {})
    with opened(tmp_path) as cache:
        assert 0 < len(cache) < 9
        missing = [str(number) for number in range(9) if str(number) not in cache]
        for key in missing:
            cache.add(key, GRADE, {})
    with opened(tmp_path) as cache:
        assert len(cache) == 9 and cache["8"] == GRADE


def test_a_judge_is_held_by_one_run_and_another_judge_is_not(tmp_path: Path):
    waited = []
    with (
        opened(tmp_path),
        opened(tmp_path, "other"),
        pytest.raises(EnvironmentMissing, match="another process works on this"),
        open_cache(tmp_path, "abc", wait_seconds=0.01, on_wait=lambda: waited.append(1)),
    ):
        pass
    assert waited == [1]
