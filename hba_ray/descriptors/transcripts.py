"""Transcribes what is said in a clip, by openai-whisper, from weights of its own, of a checkpoint, or of a model.bin of CTranslate2.

Sound is decoded by `hba_ray.data.media`, since Whisper's own reader calls an ffmpeg program that may not be installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hba_ray.data.media import LONGEST_SECONDS, SAMPLE_RATE, decode_audio
from hba_ray.descriptors.ctranslate2 import dimensions, read_whisper
from hba_ray.errors import CheckpointError


class TranscriptExtractor:
    """Transcribes clips with one Whisper model, on a GPU if this process has one.

    Args:
        model: name of a Whisper model, or path of its checkpoint or of a model.bin of CTranslate2.
        language: spoken in the clips; None lets Whisper detect it.
    """

    def __init__(self, model: str, language: str | None):
        import torch
        import whisper

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._language = language
        of_ctranslate2 = model.endswith(".bin")
        self._model = _load(Path(model)).to(self._device) if of_ctranslate2 else whisper.load_model(model, device=self._device)

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


def _load(file: Path) -> Any:
    """The Whisper of a model.bin of CTranslate2.

    Raises:
        CheckpointError: it cannot be read, or is no whole Whisper.
    """
    import torch
    from whisper.model import ModelDimensions, Whisper

    weights = read_whisper(file)
    if "decoder.token_embedding.weight" not in weights:
        raise CheckpointError(str(file), "holds an encoder alone", "give a whole Whisper")
    model = Whisper(ModelDimensions(**dimensions(weights)))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return model.eval()
