from __future__ import annotations

import collections
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hba_ray.convert.unpickling import read_pickle
from hba_ray.errors import DataError

PLAIN = {"train": [1, 2.5, "three", None, True, ("x", b"y")], 7: {"nested": []}}
ARRAYS = {
    "floats": np.arange(6, dtype=np.float32).reshape(2, 3),
    "by column": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "texts": np.array(["a", "bcd"]),
    "bytes": np.array([b"ab", b"c"]),
    "yes": np.array([True, False]),
    "big endian": np.array([1.5, 2.5], dtype=">f8"),
    "scalar": np.float64(0.25),
    "none": np.zeros((0, 4)),
}


class Touch:
    """Makes a file when it is unpickled in the ordinary way."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


class Code:
    def __init__(self, function: Any, *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def written(folder: Path, value: Any, protocol: int | None = None) -> Path:
    path = folder / "a.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_containers_texts_numbers_and_arrays_are_read(tmp_path: Path, protocol: int):
    assert read_pickle(written(tmp_path, PLAIN, protocol)) == PLAIN
    found = read_pickle(written(tmp_path, ARRAYS, protocol))
    for name, array in ARRAYS.items():
        assert np.array_equal(found[name], array), name
        assert np.asarray(found[name]).dtype == np.asarray(array).dtype
    assert isinstance(found["scalar"], float)


def test_a_pickle_of_python_2_is_read_with_its_arrays(tmp_path: Path):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x02}q\x00U\x03caf\xe9\x94"[:-1] + b"K\x01s.")
    with pytest.raises(DataError):
        read_pickle(path)  # cut off
    path.write_bytes(b"\x80\x02}q\x00U\x04caf\xe9K\x01s.")
    assert read_pickle(path) == {"caf\u00e9": 1}


def test_nothing_in_a_pickle_is_run(tmp_path: Path):
    made = tmp_path / "made"
    with pytest.raises(DataError, match=r"holds posix\.mkdir, which is not read") as caught:
        read_pickle(written(tmp_path, {"x": Touch(made)}))
    assert caught.value.reason == "unsafe pickle"
    assert not made.exists()


@pytest.mark.parametrize(
    "value",
    [
        np.array([{}], dtype=object),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        {1, 2},
        Path("a"),
        1j,
        np.datetime64("2020-01-01"),
        Code(getattr, "a", "upper"),
        Code(eval, "1"),
        Code(np.load, "a"),
        collections.OrderedDict(a=1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_else_is_refused(tmp_path: Path, value: Any):
    with pytest.raises(DataError) as caught:
        read_pickle(written(tmp_path, value))
    assert caught.value.reason in ("unsafe pickle", "corrupt file")


def test_an_array_may_not_be_larger_than_its_bytes(tmp_path: Path):
    raw = pickle.dumps(np.arange(4, dtype=np.int64), 2)
    path = tmp_path / "a.pkl"
    path.write_bytes(raw.replace(b"K\x04\x85", b"K\x63\x85"))
    with pytest.raises(DataError) as caught:
        read_pickle(path)
    assert caught.value.reason == "corrupt file"


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"a\.pkl: cannot be read") as caught:
        read_pickle(tmp_path / "a.pkl")
    assert caught.value.reason == "missing file"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(st.data())
def test_damaged_bytes_give_a_value_or_a_data_error(tmp_path: Path, data: st.DataObject):
    raw = bytearray(pickle.dumps(ARRAYS, data.draw(st.sampled_from([2, 4, 5]))))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.pkl"
    path.write_bytes(bytes(raw[: data.draw(st.integers(1, len(raw)))]))
    try:
        read_pickle(path)
    except DataError as error:
        assert error.where == str(path)
