"""What is said in a clip, by Whisper.

The sound is decoded by our own reader: Whisper's calls an ffmpeg program, which a machine may lack.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hba_ray.data.media import LONGEST_SECONDS, SAMPLE_RATE, decode_audio


class TranscriptExtractor:
    """Holds one Whisper model, on a GPU where this process has one."""

    def __init__(self, model: str, language: str | None):
        import torch
        import whisper

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._language = language
        self._model = whisper.load_model(model, device=self._device)

    def describe(self, clip: bytes | Path, *, where: str, keep: Path | None = None) -> dict[str, Any]:
        """The columns of a row of the transcripts table.

        Whisper samples where greedy decoding goes in circles; a fixed seed gives each clip the same text every time.

        Raises:
            BadMedia: no sound, or not to be decoded.
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
