"""The toy atlas is whole, repeatable and honest: each label is in the stream that should carry it and nowhere else."""

import io
from collections import Counter
from functools import cache
from itertools import combinations

import numpy as np
import pytest
import soundfile
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hba_ray.data.media import decode_video, probe_audio, probe_video
from hba_ray.data.rows import Row
from hba_ray.data.toy import TARGETS, build_toy, film, speak, toy_rows
from hba_ray.specs import ToySpec


@cache
def rows() -> dict[str, list[Row]]:
    return toy_rows(ToySpec(rows=480))


def of(dataset: str, *splits: str) -> list[Row]:
    return [row for split in splits for row in rows()[split] if row.dataset.id == dataset]


def voice(clip: bytes) -> np.ndarray:
    """Loudness, and log of the strongest period in Hz: float64 [2]."""
    samples, rate = soundfile.read(io.BytesIO(clip))
    spectrum = np.abs(np.fft.rfft(samples)) ** 2
    periodicity = np.fft.irfft(spectrum)
    shortest, longest = rate // 500, rate // 80
    period = shortest + periodicity[shortest:longest].argmax()
    return np.array([samples.std(), np.log(rate / period)])


def movement(clip: bytes) -> np.ndarray:
    """How far the picture's row and column profiles move over the 8 frames that a model sees: float64 [2]."""
    frames = decode_video(clip, 8, 56 * 56, where="clip")[0].mean(axis=1)
    return np.log([1 + np.abs(np.diff(frames.mean(axis=axis), axis=0)).mean() for axis in (2, 1)])


def probe_accuracy(dataset: str, stream: str, read) -> float:
    """Accuracy of a linear probe on one stream, trained on the train split and scored on the others."""
    train, held_out = of(dataset, "train"), of(dataset, "validation", "test")
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=100))
    probe.fit([read(row.media[stream][0]) for row in train], [row.answer for row in train])
    return float(probe.score([read(row.media[stream][0]) for row in held_out], [row.answer for row in held_out]))


def test_the_default_atlas_has_480_rows_in_the_published_proportions():
    counts = {split: len(kept) for split, kept in rows().items()}
    assert sum(counts.values()) == 480
    assert abs(counts["train"] - 336) <= 2 and abs(counts["validation"] - 72) <= 2 and abs(counts["test"] - 72) <= 2


@pytest.mark.parametrize("total", [40, 97, 480])
def test_the_asked_number_of_rows_is_made_and_every_split_has_every_dataset(total):
    made = toy_rows(ToySpec(rows=total)) if total != 480 else rows()
    assert sum(map(len, made.values())) == total
    for kept in made.values():
        assert {row.dataset.id for row in kept} == set(TARGETS)


def test_every_split_has_every_target_and_signature():
    signatures = {"text", "text_audio", "text_video", "text_video_audio"}
    for split, kept in rows().items():
        assert {row.signature for row in kept} == signatures
        for dataset, targets in TARGETS.items():
            assert {row.answer for row in of(dataset, split)} == set(targets)


def test_classes_are_imbalanced_but_the_majority_is_no_good_answer():
    for dataset in ("toy_tone", "toy_nod"):
        shares = np.array(sorted(Counter(row.label for row in of(dataset, "test")).values())) / len(of(dataset, "test"))
        assert shares[-1] < 0.55 and shares[0] > 0.15 and shares[-1] > shares[0]


def test_no_recording_is_in_two_splits():
    clips = {split: {row.clip_id for row in kept} for split, kept in rows().items()}
    media = {split: {clip for row in kept for clips in row.media.values() for clip in clips} for split, kept in rows().items()}
    for first, second in combinations(rows(), 2):
        assert not clips[first] & clips[second] and not media[first] & media[second]
    names = [row.sample_id for kept in rows().values() for row in kept]
    assert len(set(names)) == len(names)


def test_prompts_mark_and_name_the_clips_that_are_there():
    for row in rows()["train"]:
        for modality in ("video", "audio"):
            present = modality in row.media
            assert (f"<{modality}>\n" in row.problem) == present
            assert (f"{modality} clip" in row.problem) == present
        for label in row.dataset.labels:
            assert label in row.problem.splitlines()[-1]


def test_the_voice_tells_the_emotion():
    assert probe_accuracy("toy_tone", "audio", voice) >= 0.95


def test_the_picture_tells_the_sentiment_and_the_answer():
    assert probe_accuracy("toy_nod", "video", movement) >= 0.95
    assert probe_accuracy("toy_answers", "video", movement) >= 0.95


@pytest.mark.parametrize("dataset", ["toy_tone", "toy_nod", "toy_answers"])
def test_the_prompt_does_not_tell_the_label(dataset):
    train, held_out = of(dataset, "train"), of(dataset, "validation", "test")
    probe = make_pipeline(CountVectorizer(ngram_range=(1, 2)), LogisticRegression())
    probe.fit([row.problem for row in train], [row.answer for row in train])
    accuracy = probe.score([row.problem for row in held_out], [row.answer for row in held_out])
    majority = Counter(row.answer for row in held_out).most_common(1)[0][1] / len(held_out)
    assert accuracy <= majority + 0.1


@pytest.mark.parametrize(("dataset", "stream", "read"), [("toy_tone", "video", movement), ("toy_nod", "audio", voice)])
def test_the_other_stream_does_not_tell_the_label(dataset, stream, read):
    """The average of each feature is the same for all labels, up to what chance does (F < 5)."""
    from sklearn.feature_selection import f_classif

    kept = [row for row in of(dataset, "train", "validation", "test") if stream in row.media]
    scores, _ = f_classif(np.stack([read(row.media[stream][0]) for row in kept]), [row.label for row in kept])
    assert len(kept) >= 40 and scores.max() < 5


def test_the_words_tell_sarcasm():
    train, held_out = of("toy_words", "train"), of("toy_words", "validation", "test")
    probe = make_pipeline(CountVectorizer(), LogisticRegression())
    probe.fit([row.problem for row in train], [row.label for row in train])
    assert probe.score([row.problem for row in held_out], [row.label for row in held_out]) == 1.0


def test_clips_have_the_stated_size_and_length():
    for row in rows()["test"]:
        for clip in row.media.get("audio", ()):
            assert 1.0 <= probe_audio(clip, where=row.sample_id) <= 1.4
        for clip in row.media.get("video", ()):
            info = probe_video(clip, where=row.sample_id)
            assert (info.frames, info.seconds, info.width, info.height) == (16, 2.0, 128, 128)


@pytest.mark.parametrize("layout", ["parquet", "jsonl"])
def test_the_same_seed_gives_the_same_files_and_another_seed_others(tmp_path, layout):
    trees = []
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        build_toy(ToySpec(rows=40, seed=seed), tmp_path / name, layout)
        trees.append({path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()})
    assert trees[0] == trees[1]
    assert trees[0] != trees[2]


def test_two_clips_of_one_label_differ():
    assert film("nod", np.random.default_rng(0)) != film("nod", np.random.default_rng(1))
    assert speak("sad", np.random.default_rng(0)) != speak("sad", np.random.default_rng(1))
