"""The real Whisper loads and decodes a tiny random checkpoint; sound is decoded by us, without an ffmpeg program."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from hba_ray.data.media import decode_audio
from hba_ray.data.toy import speak
from hba_ray.descriptors.extract import extract
from hba_ray.descriptors.tables import table_of
from hba_ray.descriptors.transcripts import TranscriptExtractor
from hba_ray.errors import BadMedia, CheckpointError
from hba_ray.specs import ComputeSpec
from hba_ray.specs.sections.descriptors import DescriptorsSpec, TranscriptSpec
from tests.helpers.indices import index_of
from tests.helpers.packages import ESPEAK, files_of
from tests.helpers.speech import RATE, SENTENCES, Speaker, word_errors
from tests.helpers.whisper import checkpoint, write_ctranslate2

from .conftest import movie

whisper = pytest.importorskip("whisper")


def voice() -> bytes:
    return speak("sad", np.random.default_rng(1))


def test_a_clip_gives_whispers_own_text_every_time(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    file = str(checkpoint(tmp_path / "tiny.pt"))
    rows = [TranscriptExtractor(file, None).describe(clip, where="row 1") for clip in (voice(), voice())]
    assert rows[0] == rows[1]
    model = whisper.load_model(file)
    torch.manual_seed(0)
    by_hand = model.transcribe(decode_audio(voice(), 99, where=""), fp16=False)
    assert rows[0]["text"] == by_hand["text"].strip() and rows[0]["language"] == by_hand["language"]
    assert rows[0]["frames"] == len(by_hand["segments"]) and 1.0 < rows[0]["seconds"] < 1.5


def test_a_stated_language_is_not_guessed(tmp_path):
    row = TranscriptExtractor(str(checkpoint(tmp_path / "tiny.pt")), "zh").describe(movie(3, sound_seconds=0.5), where="row 1")
    assert row["language"] == "zh"


def test_a_video_without_sound_says_so(tmp_path):
    with pytest.raises(BadMedia) as refused:
        TranscriptExtractor(str(checkpoint(tmp_path / "tiny.pt")), None).describe(movie(3), where="row 2")
    assert refused.value.reason == "no audio stream"


def test_another_checkpoint_is_another_table(tmp_path):
    def folder(model: Path) -> str:
        spec = DescriptorsSpec(streams=("transcripts",), transcripts=TranscriptSpec(model=str(model)))
        return table_of(tmp_path, spec, "transcripts").folder.name

    first, other = checkpoint(tmp_path / "a.pt"), checkpoint(tmp_path / "b.pt", seed=1)
    assert folder(first) != folder(other)
    moved = tmp_path / "moved.pt"
    moved.write_bytes(first.read_bytes())
    assert folder(moved) == folder(first)


@pytest.mark.slow
def test_transcripts_of_an_atlas_are_read_back_by_row(odd_atlas, tmp_path):
    from hba_ray.descriptors.vectors import Descriptors

    spec = DescriptorsSpec(streams=("transcripts",), transcripts=TranscriptSpec(model=str(checkpoint(tmp_path / "tiny.pt")), rows="all"))
    index = index_of(odd_atlas)
    summary = extract(spec, index, ("train",), tmp_path / "store", compute=ComputeSpec(workers=0), on_bad_row="drop").streams["transcripts"]
    said = Descriptors.open(tmp_path / "store", spec, index, ("train",)).transcripts(range(14))
    assert sum(text is not None for text in said) == summary.described > 3
    assert said[0] == said[1] and said[11] is None


def test_a_model_of_ctranslate2_hears_what_the_same_checkpoint_hears(tmp_path: Path):
    """Heads are 64 wide there, as in every Whisper."""
    weights = torch.load(checkpoint(tmp_path / "tiny.pt", state=64), weights_only=True)["model_state_dict"]
    write_ctranslate2(tmp_path / "model.bin", weights)
    one, other = (TranscriptExtractor(str(tmp_path / name), None).describe(voice(), where="row 1") for name in ("tiny.pt", "model.bin"))
    assert one == other and one["text"]


def test_an_encoder_alone_hears_nothing(tmp_path: Path):
    weights = torch.load(checkpoint(tmp_path / "tiny.pt", state=64), weights_only=True)["model_state_dict"]
    encoder = {name: tensor for name, tensor in weights.items() if name.startswith("encoder.")}
    write_ctranslate2(tmp_path / "model.bin", encoder)
    with pytest.raises(CheckpointError, match="holds an encoder alone"):
        TranscriptExtractor(str(tmp_path / "model.bin"), None)


@pytest.mark.slow
def test_real_weights_hear_speech_and_hear_no_words_in_silence_and_noise(
    whisper_tiny: Path, request: pytest.FixtureRequest, tmp_path: Path
):
    library, data = (files_of(request.config, ESPEAK, name)[0] for name in ("libespeak-ng.*", "espeak-ng-data"))
    speaker, extractor = Speaker(library, data), TranscriptExtractor(str(whisper_tiny), None)
    errors = words = 0
    for number, sentence in enumerate(SENTENCES):
        row = extractor.describe(speaker.say(sentence, tmp_path / f"{number}.wav"), where=f"row {number}")
        assert row["language"] == "en" and row["frames"] >= 1
        wrong, said = word_errors(sentence, row["text"])
        errors, words = errors + wrong, words + said
    print(f"word error rate of Whisper tiny.en on espeak-ng: {errors / words:.3f} of {words} words")
    assert errors / words < 0.25
    noise_T = np.random.default_rng(0).normal(size=3 * RATE)
    for name, samples_T in {"silence": 0 * noise_T, "loud noise": 0.05 * noise_T, "quiet noise": 0.002 * noise_T}.items():
        soundfile.write(tmp_path / "no words.wav", samples_T, RATE)
        row = extractor.describe(tmp_path / "no words.wav", where=name)
        assert (row["text"], row["frames"], row["segments"]) == ("", 0, [])
