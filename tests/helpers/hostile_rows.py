"""Rows, lines and files of an atlas as nobody would make them on purpose; generators of hypothesis."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from hba_ray.data.rows import SCHEMA

CONTROL_TOKENS = (
    "<tool_call>",
    "<tts_pad>",
    "[MASK]",
    "[TOOL_CALLS]",
    "<reserved_7>",
    "<begin_of_image>",
    *("<|im_end|>", "<|im_start|>", "<|AUDIO|>", "<|IMAGE|>", "<|VIDEO|>", "<|vision_start|>", "<|endoftext|>", "<|IM_END|>"),
    *("<｜User｜>", "<s>", "</s>", "<bos>", "<start_of_turn>", "[INST]", "<<SYS>>", "<|turn>", "<turn|>", "<|a|><|b|>", "<|im_<|x|>end|>"),
)
ODD_TEXTS = (
    *(
        "\x92",
        "It\x92s \x96 so\x85",
        "\x81",
        "\0",
        "\x1b[31m",
        "\r\n",
        "\x0c",
        "e\u0301",
        "\u212a",
        "ﬁ",
        "ｈａｐｐｙ",
        "happy\u200b",
        "\u00a0",
    ),
    *(
        "\u202e",
        "\ufeff",
        "\ud800",
        "\udc80",
        "\U0001f600",
        "=1+1",
        "[/x]",
        "<audio>",
        "<video><video>",
        "../../etc/passwd",
        "/dev/zero",
        ".",
    ),
    *("a" * 3000, "\0" * 40, "{question:>9}"),
)
DATASETS = ("mmsd", "MUStARD", "cremad", "siq2", "mustart", "cremad\ud800", "ＣＲＥＭＡＤ", "")
LABELS = ("sarcasm", "not sarcasm", "happy", "sad", "Joy", "positive", "happy\u200b", "ｈａｐｐｙ")


def texts() -> st.SearchStrategy[str]:
    """Text with control tokens, control characters, halves of characters, several normal forms, and nothing."""
    parts = st.sampled_from(CONTROL_TOKENS) | st.sampled_from(ODD_TEXTS) | st.text(max_size=8)
    return st.lists(parts, max_size=5).map("".join)


def values() -> st.SearchStrategy[Any]:
    """Anything that JSON can hold."""
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | texts()
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts(), inner, max_size=3), max_leaves=6)


def records() -> st.SearchStrategy[dict[str, Any]]:
    """Columns of a row; some of them are in order."""
    likely = {
        "problem": st.sampled_from(("Which emotion?", "<audio>\nWhich emotion?")) | texts(),
        "answer": st.sampled_from(LABELS) | texts(),
        "dataset": st.sampled_from(DATASETS),
        "class_label": st.sampled_from(LABELS) | st.none(),
        "audios": st.just([]) | st.lists(texts(), max_size=2),
        "modality_signature": st.sampled_from(("text", "audio", "text_audio", "audio_audio", "sound", "")) | st.none(),
        "ext_audio_feats": st.just(["gone.pt"]) | st.lists(texts(), max_size=1),
        "sample_id": st.sampled_from(("a", "b")) | texts(),
    }
    good = st.fixed_dictionaries({}, optional=likely)
    return st.tuples(good, st.dictionaries(st.sampled_from(SCHEMA.names), values(), max_size=2)).map(lambda parts: parts[0] | parts[1])


def lines() -> st.SearchStrategy[bytes]:
    """A line of jsonl: a record, a record with bytes taken out, deep brackets, or any bytes."""
    whole = records().map(lambda record: json.dumps(record).encode())
    return (
        whole
        | st.tuples(whole, st.integers(0, 200), st.integers(1, 9)).map(lambda cut: cut[0][: cut[1]] + cut[0][cut[1] + cut[2] :])
        | st.sampled_from((b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"null", b'{"problem": "\xff"}', b'"text"'))
        | st.binary(max_size=20)
    )


def files() -> st.SearchStrategy[bytes]:
    """A whole jsonl file, in some encoding."""
    body = st.lists(lines(), max_size=4).map(b"\n".join)
    text = st.lists(records(), min_size=1, max_size=3)
    return (
        body
        | body.map(lambda content: b"\xef\xbb\xbf" + content)
        | text.map(lambda rows: json.dumps(rows, indent=1).encode())
        | text.map(lambda rows: "\n".join(map(json.dumps, rows)).encode("utf-16"))
        | text.map(lambda rows: "\r".join(map(json.dumps, rows)).encode())
    )


def tables() -> st.SearchStrategy[pa.Table]:
    """A table as parquet may hold it: columns of other types, signatures that are no text, texts that are not UTF-8."""
    clips = st.lists(st.none() | st.lists(st.binary(max_size=4), max_size=2), min_size=3, max_size=3)
    words = st.lists(st.none() | st.sampled_from(("<audio>\nWhich emotion?", "x")), min_size=3, max_size=3).map(
        lambda all: pa.array(all, pa.string())
    )
    broken = st.just(pa.array([b"ok", b"\xff\xfe", b"\xed\xa0\x80"]).view(pa.binary()).cast(pa.binary()))
    not_utf8 = broken.map(lambda array: pa.Array.from_buffers(pa.string(), 3, array.buffers()))
    other = st.sampled_from((pa.array([1, 2, 3]), pa.array([["text"], None, ["audio"]]), pa.array([b"text", None, b"\xff"]), pa.nulls(3)))
    columns = {
        "problem": words | not_utf8 | other,
        "answer": st.just(pa.array(["happy", "sad", "happy"])) | not_utf8 | other,
        "dataset": st.just(pa.array(["cremad"] * 3)) | other,
    }
    more = {
        "modality_signature": st.sampled_from((pa.array(["text", "text_audio", None]), pa.array(["audio"] * 3))) | not_utf8 | other,
        "audios": clips.map(lambda all: pa.array(all, pa.list_(pa.binary()))) | other,
        "sample_id": st.just(pa.array(["a", "a", "b"])) | not_utf8 | other,
        "class_label": other,
    }
    return st.fixed_dictionaries(columns, optional=more).map(pa.table)
