"""A tiny model, built once, and model inputs from small clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration

from hba_ray.data.tasks import BENCHMARK_HEADS, CLASS_TASKS
from hba_ray.models.backbone import apply_training, load_backbone, load_processor
from hba_ray.models.omni import OmniSapiens
from hba_ray.models.tiny import build_tiny
from hba_ray.specs.sections.model import ModelSpec, TinySpec

torch.set_num_threads(1)

FRAME = 56
SLOTS = {task.id: slot for slot, task in enumerate(CLASS_TASKS)}


@dataclass(frozen=True)
class Sample:
    """A prompt with clips, and an answer or a class."""

    text: str
    audio: np.ndarray | None = None
    video: Tensor | None = None
    answer: str | None = None
    label: tuple[str, str] | None = None


def sound(seed: int, seconds: float = 0.5) -> np.ndarray:
    """A tone whose pitch rises with the seed: unlike noise, tones of two seeds differ clearly after pooling."""
    return (0.5 * np.sin(2 * np.pi * 150 * seed * np.arange(int(16_000 * seconds)) / 16_000)).astype(np.float32)


def frames(seed: int, count: int = 4) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 255, (count, 3, FRAME, FRAME), dtype=np.uint8))


@dataclass(frozen=True)
class Tiny:
    """The tiny model's folder and processor, samples for it, and what turns samples into model inputs."""

    spec: TinySpec
    texts: tuple[str, ...]
    folder: Path
    processor: Qwen2_5OmniProcessor
    mixed: tuple[Sample, ...]
    """One row of each modality mix, both kinds of target, all of different lengths."""

    def tokens(self, answer: str) -> list[int]:
        return self.processor.tokenizer(f"{answer}<|im_end|>")["input_ids"]

    def prompt(self, sample: Sample) -> str:
        content = [{"type": kind} for kind in ("video", "audio") if getattr(sample, kind) is not None]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": sample.text}]}]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def inputs(self, samples: Sequence[Sample], *, side: str = "right", answers: bool = True) -> dict[str, Tensor]:
        """Processor tensors of `samples`, with the answers appended unless they are to be generated."""
        texts = [self.prompt(sample) + (f"{sample.answer}<|im_end|>" if answers and sample.answer else "") for sample in samples]
        audio = [sample.audio for sample in samples if sample.audio is not None]
        video = [sample.video for sample in samples if sample.video is not None]
        options: dict[str, Any] = {"return_tensors": "pt", "padding": True, "padding_side": side}
        if audio:
            options["audio"] = audio
        if video:
            size = {"shortest_edge": FRAME * FRAME, "longest_edge": FRAME * FRAME}
            options.update(videos=video, fps=2.0, do_sample_frames=False, size=size)
        inputs = dict(self.processor(text=texts, **options))
        if audio:
            longest = int(inputs["feature_attention_mask"].sum(dim=1).max())
            inputs["input_features"] = inputs["input_features"][..., :longest]
            inputs["feature_attention_mask"] = inputs["feature_attention_mask"][:, :longest]
        if video:
            inputs["video_second_per_grid"] = torch.as_tensor(inputs["video_second_per_grid"])
        return inputs

    def batch(self, samples: Sequence[Sample], weight: Sequence[float] | None = None) -> dict[str, Any]:
        """The arguments of `OmniSapiens.forward`."""
        inputs = self.inputs(samples)
        labels = torch.full_like(inputs["input_ids"], -100)
        for row, sample in enumerate(samples):
            if sample.answer:
                end = int(inputs["attention_mask"][row].sum())
                start = end - len(self.tokens(sample.answer))
                labels[row, start:end] = inputs["input_ids"][row, start:end]
        return {
            "inputs": inputs,
            "class_index_B": torch.tensor([BENCHMARK_HEADS.index(*sample.label) if sample.label else -100 for sample in samples]),
            "task_slot_B": torch.tensor([SLOTS[sample.label[0]] if sample.label else -1 for sample in samples]),
            "answer_labels_BS": labels,
            "weight_B": torch.ones(len(samples)) if weight is None else torch.tensor(weight),
        }


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    spec = TinySpec.model_validate({"hidden": 64, "layers": 3, "heads": 2, "vocabulary": 512})
    texts = ("What emotion does the speaker express?", "Does the person nod, or shake the head?", "The person waves and smiles.")
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_tiny(spec, folder, texts, audio_seconds=1.5)
    mixed = (
        Sample(texts[0], audio=sound(1), video=frames(1), label=("EMO", "happy")),
        Sample(texts[1] * 2, audio=sound(2, 1.1), answer="the person nods"),
        Sample(texts[0], video=frames(3, 6), label=("SEN", "negative")),
        Sample(texts[2] * 3, label=("SAR", "sarcasm")),
        Sample(texts[1], video=frames(4), answer="she waves, and smiles"),
    )
    return Tiny(spec, texts, folder, load_processor(str(folder)), mixed)


@pytest.fixture
def thinker(tiny: Tiny) -> Qwen2_5OmniThinkerForConditionalGeneration:
    return load_backbone(str(tiny.folder), dtype=torch.float32)


@pytest.fixture
def make_model(tiny: Tiny) -> Callable[..., OmniSapiens]:
    """A fresh OmniSapiens in eval mode; LoRA's B matrices are random, so that LoRA does something."""

    def make(
        train: str = "lora", scope: str = "llm", rank: int = 4, *, media: bool = True, seed: int = 0, gradient_checkpointing: bool = False
    ) -> OmniSapiens:
        torch.manual_seed(seed)
        thinker = load_backbone(str(tiny.folder), dtype=torch.float32)
        spec = ModelSpec.model_validate({"train": train, "lora": {"rank": rank, "alpha": 2 * rank, "dropout": 0.0, "scope": scope}})
        backbone = apply_training(thinker, spec, gradient_checkpointing=gradient_checkpointing)
        for name, weight in backbone.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.05)
        return OmniSapiens(backbone, tiny.spec.hidden, media_to_backbone=media).eval()

    return make
