"""The sentence encoder: what it says, what it keeps, and where it is looked for."""

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from hba_ray.errors import EnvironmentMissing
from hba_ray.rl import rewards as module
from hba_ray.rl.rewards import Encoder, encoder_folder, shared_encoder
from hba_ray.specs.sections.grpo import EncoderSpec

needs_encoder = pytest.mark.skipif(
    find_spec("sentence_transformers") is None or find_spec(EncoderSpec().package) is None, reason="the sentence encoder is not installed"
)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return shared_encoder(EncoderSpec())


@needs_encoder
def test_near_words_are_nearer_than_far_ones(encoder: Encoder):
    same, near, far = encoder.similarities([("happy", "happy"), ("happy", "joyful"), ("happy", "bookkeeping")])
    assert same == 1.0
    assert 1 > near > far


@needs_encoder
def test_a_text_is_worth_the_same_in_any_batch_and_from_memory(encoder: Encoder):
    fresh = Encoder(encoder_folder(EncoderSpec()))
    alone = fresh.similarities([("sad", "She was let down by her friend.")])
    many = encoder.similarities([("sad", "She was let down by her friend."), *((str(n), "word " * n) for n in range(1, 40))])
    assert alone[0] == many[0] == encoder.similarities([("sad", "She was let down by her friend.")])[0]


@needs_encoder
def test_each_text_is_encoded_once(encoder: Encoder, monkeypatch: pytest.MonkeyPatch):
    encoded = []
    encode = encoder._model.encode
    monkeypatch.setattr(encoder._model, "encode", lambda texts, **options: encoded.extend(texts) or encode(texts, **options))
    encoder.similarities([("once upon", "a time"), ("a time", "once upon"), ("once upon", "once upon")])
    encoder.similarities([("once upon", "a time")])
    assert sorted(encoded) == ["a time", "once upon"]


@needs_encoder
def test_what_was_used_last_is_kept(encoder: Encoder, monkeypatch: pytest.MonkeyPatch):
    fresh = Encoder(encoder_folder(EncoderSpec()))
    monkeypatch.setattr(module, "KEPT_TEXTS", 2)
    fresh.embed(["a", "b"])
    fresh.embed(["a", "c", "d"])
    fresh.embed(["c"])
    assert list(fresh._kept) == ["d", "c"]


@needs_encoder
def test_nothing_and_empty_and_endless_texts_are_taken(encoder: Encoder):
    assert encoder.similarities([]) == []
    assert encoder.embed([]).size == 0
    assert np.allclose(np.linalg.norm(encoder.embed(["", "x" * 10**6, "\ud83d"]), axis=1), 1, atol=1e-5)


@needs_encoder
def test_threads_share_one_encoder(encoder: Encoder):
    with ThreadPoolExecutor(8) as pool:
        seen = set(pool.map(lambda _: id(shared_encoder(EncoderSpec())), range(16)))
        values = set(pool.map(lambda n: encoder.similarities([("thread", f"loom {n % 2}")])[0], range(16)))
    assert seen == {id(encoder)} and len(values) == 2


def test_a_package_or_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(EnvironmentMissing, match="no package 'no_such_encoder'"):
        shared_encoder(EncoderSpec(package="no_such_encoder"))
    with pytest.raises(EnvironmentMissing, match=r"is no sentence-transformers model"):
        shared_encoder(EncoderSpec(path=str(tmp_path)))
