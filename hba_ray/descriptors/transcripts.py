"""Transcribes what is said in a clip, by Whisper.

Sound is decoded by `hba_ray.data.media`, since Whisper's own reader calls an ffmpeg program that may not be installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hba_ray.data.media import LONGEST_SECONDS, SAMPLE_RATE, decode_audio


class TranscriptExtractor:
    """Transcribes clips with one Whisper model, on a GPU if this process has one.

    Args:
        model: name of a Whisper model, or path of its checkpoint.
        language: spoken in the clips; None lets Whisper detect it.
    """

    def __init__(self, model: str, language: str | None):
        import torch
        import whisper

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._language = language
        self._model = whisper.load_model(model, device=self._device)

    def describe(self, clip: bytes | Path, *, where: str, keep: Path | None = None) -> dict[str, Any]:
        """The columns of a row of the transcripts table.

        Whisper samples where greedy decoding repeats itself; a fixed seed makes the text of a clip reproducible.

        Raises:
            BadMedia: the clip has no sound, or cannot be decoded.
        """
        import torch

        samples_T = decode_audio(clip, LONGEST_SECONDS, where=where)
        torch.manual_seed(0)
        said: Any = self._model.transcribe(samples_T, language=self._language, fp16=self._device == "cuda", verbose=None)
        return {
            "seconds": len(samples_T) / SAMPLE_RATE,
            "frames": len(said["segments"]),
            "text": said["text"].strip(),
            "language": said["language"],
            "segments": [{name: segment[name] for name in ("start", "end", "text")} for segment in said["segments"]],
        }
