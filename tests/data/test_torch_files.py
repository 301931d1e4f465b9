"""Files of `torch.save` are read as torch reads them; whatever is no such file is refused."""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hba_ray.data.torch_files import ForeignObjectError, TorchFileError, load_torch_file
from tests.helpers.hostile_checkpoints import entries, zipped


def saved(content: Any, **settings: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **settings)
    return file.getvalue()


def with_pickle(pickled: bytes) -> bytes:
    """A file with another pickle in it, and right checksums."""
    parts = entries(io.BytesIO(saved({"a": torch.zeros(4)})))
    return zipped({name: pickled if name.endswith("data.pkl") else part for name, part in parts.items()})


BASE = torch.arange(24.0).reshape(4, 6)
TENSORS = {
    "whole": BASE,
    "transposed": BASE.T,
    "part of a larger one": BASE[1:3, ::2],
    "one value for all": torch.ones(1).expand(3, 4),
    "without values": torch.zeros(0, 5),
    "a single number": torch.tensor(3.5),
    "a parameter": torch.nn.Parameter(torch.ones(2, 3)),
    **{str(dtype): torch.tensor([0, 1, 3]).to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32,
                                                                    torch.int16, torch.int8, torch.uint8, torch.bool)},
}  # fmt: skip
ARRAYS = {
    "by rows": np.arange(6, dtype=np.float32).reshape(2, 3),
    "by columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "of the other order of bytes": np.arange(5, dtype=">i4"),
    "without values": np.zeros((0, 3), np.int16),
    "a single number": np.array(2.5),
    "yes and no": np.array([True, False]),
}
PLAIN = {"text": "ä", "bytes": b"\x00\xff", "none": b"", "list": [1, -1, 1 << 40, 1.5, None, True], "pair": (1, (2, ())), 3: {"a": {}}}


@pytest.mark.parametrize("as_file", [True, False])
def test_what_torch_saves_is_read_as_torch_reads_it(tmp_path: Path, as_file: bool):
    content = saved(OrderedDict(tensors=TENSORS, arrays=ARRAYS, plain=PLAIN, number=np.float32(1.5), size=BASE.shape))
    (tmp_path / "a.pt").write_bytes(content)
    read = load_torch_file(tmp_path / "a.pt" if as_file else content)
    assert read["plain"] == PLAIN and read["number"] == np.float32(1.5) and read["size"] == (4, 6)
    for name, tensor in TENSORS.items():
        assert torch.equal(read["tensors"][name], tensor) and read["tensors"][name].dtype == tensor.dtype, name
        assert not read["tensors"][name].requires_grad
    for name, array in ARRAYS.items():
        assert np.array_equal(read["arrays"][name], array) and read["arrays"][name].dtype == array.dtype, name


def test_a_flipped_bit_is_found():
    content = bytearray(saved({"a": torch.ones(1000)}))
    content[len(content) // 2] ^= 1
    with pytest.raises(TorchFileError, match="data/0' in it has other bytes than its checksum says"):
        load_torch_file(bytes(content))


def test_the_old_format_is_refused_with_what_makes_it_new():
    old = saved({"a": torch.ones(3)}, _use_new_zipfile_serialization=False)
    with pytest.raises(TorchFileError, match="is no zip file") as refused:
        load_torch_file(old)
    assert "torch.save(torch.load(FILE), FILE)" in refused.value.way_out


@pytest.mark.parametrize(
    "foreign",
    [
        b"cos\nsystem\n(X\x01\x00\x00\x00xtR.",
        b"cnumpy\nload\n.",
        b"ctorch._utils\n_rebuild_nested_tensor\n.",
        pickle.dumps({"a": Path("x")}, 2),
    ],
)
def test_other_objects_are_refused_by_name(foreign: bytes):
    with pytest.raises(
        ForeignObjectError, match=r"holds a pickled object, '(os\.system|numpy\.load|torch\._utils\._rebuild_nested_tensor|pathlib\.)"
    ):
        load_torch_file(with_pickle(foreign))


def dtype(code: bytes, order: bytes = b"<") -> bytes:
    return (
        b"cnumpy\ndtype\nX"
        + struct.pack("<I", len(code))
        + code
        + b"\x89\x88\x87R(K\x03X\x01\x00\x00\x00"
        + order
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )


def array(shape: bytes, kind: bytes) -> bytes:
    """The pickle of a numpy array of eight bytes."""
    raw = b"c_codecs\nencode\nX\x08\x00\x00\x00abcdefghX\x06\x00\x00\x00latin1\x86R"
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85X\x01\x00\x00\x00b\x87R(K\x01"
        + shape
        + kind
        + b"\x89"
        + raw
        + b"tb."
    )


def tensor(size: bytes, stride: bytes, offset: int = 0, count: int = 4) -> bytes:
    """The pickle of a tensor on the four numbers of `with_pickle`."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK" + bytes([count]) + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K" + bytes([offset]) + size + stride + b"\x89NtR."


def test_the_pickles_below_are_right_but_for_what_is_wrong_in_them():
    assert load_torch_file(with_pickle(array(b"K\x02\x85", dtype(b"f4")))).shape == (2,)
    assert load_torch_file(with_pickle(tensor(b"K\x04\x85", b"K\x01\x85"))).tolist() == [0, 0, 0, 0]


NESTED = b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"K\x01s."
DOUBLED = b"\x80\x02}" + b")q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"K\x01s."


@pytest.mark.parametrize(
    "harmful",
    [
        array(b"K\x02\x85", dtype(b"O8", b"|")),
        array(b"K\x02\x85", dtype(b"V8", b"|")),
        array(b"K\x02\x85", dtype(b"f4", b"x")),
        array(b"J\xff\xff\xff\x7f\x85", dtype(b"f4")),
        array(b"K\x03\x85", dtype(b"f4")),
        tensor(b"K\x05\x85", b"K\x01\x85"),
        tensor(b"K\x04\x85", b"K\x01\x85", offset=1),
        tensor(b"K\x04\x85", b"K\x01\x85", count=5),
        tensor(b"K\x02\x85", b"J\xff\xff\xff\xff\x85"),
        tensor(b"J\xff\xff\xff\xff\x85", b"K\x01\x85"),
        tensor(b"(" + b"K\x01" * 90 + b"t", b"(" + b"K\x01" * 90 + b"t"),
        NESTED,
        DOUBLED,
        b"\x80\x02K\x01r\xff\xff\xff\x7f0.",
        b"\x80\x02X\xff\xff\xff\x7fa.",
        b"t.",
        b"\x85.",
        b"",
        b".",
    ],
)
def test_what_would_read_other_memory_or_take_for_ever_is_refused(harmful: bytes):
    with pytest.raises(TorchFileError):
        load_torch_file(with_pickle(harmful))


def test_parts_that_claim_more_than_the_file_holds_are_refused():
    content = bytearray(saved({"a": torch.zeros(4)}))
    place = content.index(b"PK\1\2") + 24  # the unpacked size in the list of members at the end of a zip file
    content[place : place + 4] = (3 << 30).to_bytes(4, "little")
    with pytest.raises(TorchFileError, match="longer than the file"):
        load_torch_file(bytes(content))
    packed = zipped(entries(io.BytesIO(saved({"a": torch.zeros(4)}))), zipfile.ZIP_DEFLATED)
    with pytest.raises(TorchFileError, match="compressed"):
        load_torch_file(packed)
