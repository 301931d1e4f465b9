"""OmniSapiens: an Omni thinker with seven classifier heads on the pooled h^(L-1) (paper section 3.5, appendix B.1).

A forward pass gives both SFT losses and the class logits; `decode` writes open answers token by token, for any thinker.

Letters in tensor names: B rows, S positions, H hidden size, V vocabulary, N answer tokens of all rows together,
25 classes (27 where surprise is split).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import GenerationConfig, Qwen2_5OmniThinkerForConditionalGeneration

from hba_ray.data.tasks import BENCHMARK_HEADS, SPLIT_SURPRISE, Heads
from hba_ray.errors import DataError, TrainingError

IGNORE = -100
"""The label of a position or row that a loss leaves out."""
_TEXT_INPUTS = ("input_ids", "attention_mask")
_TOWER_INPUTS = {"audio_tower": ("input_features",), "visual": ("pixel_values", "pixel_values_videos")}
_OTHER_TASK = torch.finfo(torch.float32).min / 2
"""Logit of a class of another task (released value): no weight in the softmax, still finite."""


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded.

    Attributes:
        temperature: of the sampling; 0 takes the most probable token.
        top_p: sampling draws from the most probable tokens that together have this probability.
        seed: of the sampling; the same batch and seed give the same answers.
    """

    max_new_tokens: int
    eos_token_id: int
    pad_token_id: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def to_transformers(self) -> GenerationConfig:
        sampling = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0} if self.temperature else {}
        return GenerationConfig(
            **({"do_sample": False} | sampling),
            max_new_tokens=self.max_new_tokens,
            num_beams=1,
            use_cache=True,
            eos_token_id=self.eos_token_id,
            pad_token_id=self.pad_token_id,
        )


@torch.no_grad()
def decode(thinker: Qwen2_5OmniThinkerForConditionalGeneration, inputs: Mapping[str, Tensor], decoding: Decoding) -> list[Tensor]:
    """Continues prompts, with a key-value cache.

    Args:
        thinker: in eval mode.
        inputs: prompts that end with the generation prompt, padded on the LEFT.

    Returns:
        Token ids of each row's answer, without the end token and what follows it.

    Raises:
        DataError: a row is padded on the right; it would be continued after its padding.
    """
    if not bool(inputs["attention_mask"][:, -1].all()):
        raise DataError("generate", "a prompt is padded on the right", "pad prompts for generation on the left", reason="right padding")
    devices = [thinker.device] if thinker.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, enabled=decoding.temperature > 0):
        if decoding.temperature > 0:
            torch.manual_seed(decoding.seed)
        sequences_BS = cast(Any, thinker).generate(**inputs, generation_config=decoding.to_transformers())
    answers_BN = sequences_BS[:, inputs["input_ids"].shape[1] :]
    ended_BN = (answers_BN == decoding.eos_token_id).cumsum(dim=1) > 0
    return [answer[~ended] for answer, ended in zip(answers_BN, ended_BN, strict=True)]


class Outputs(NamedTuple):
    """Sums over the rows of one micro-batch; means are taken over a whole optimiser step, from all workers' sums.

    Attributes:
        class_logits_B25: logits by global class index; classes of other tasks have a hugely negative one.
        class_loss_sum: cross-entropy of the class rows, summed (B times the paper's L_cls).
        answer_loss_sum: cross-entropy of the answers, summed over tokens and rows (B times L_qa).
        class_rows, answer_rows, answer_tokens: how many rows and tokens these sums are over.
        class_correct: class rows whose highest logit is their class.
    """

    class_logits_B25: Tensor
    class_loss_sum: Tensor
    answer_loss_sum: Tensor
    class_rows: Tensor
    answer_rows: Tensor
    answer_tokens: Tensor
    class_correct: Tensor


class OmniSapiens(nn.Module):
    """The model of all SFT stages.

    Args:
        backbone: a thinker, or the `PeftModel` around one (`models.backbone.apply_training`).
        hidden: H of the language model.
        media_to_backbone: False withholds audio, video and images, as the released SFT code does: their
            placeholders keep ordinary token embeddings.
        heads: those of the released layout, and those that the spec adds: one for each task of the user's own, and one for
            positive and negative surprise, whose scores join those of the emotion head. Without additions there are 25 classes.
    """

    slot_of_class_25: Tensor
    state_mean_H: Tensor
    state_deviation_H: Tensor

    def __init__(self, backbone: nn.Module, hidden: int, *, media_to_backbone: bool = True, heads: Heads = BENCHMARK_HEADS):
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleList(nn.Linear(hidden, len(task.labels)) for task in heads.tasks)
        self.hidden = hidden
        self.media_to_backbone = media_to_backbone
        if heads.split_surprise:
            self.heads.append(nn.Linear(hidden, len(SPLIT_SURPRISE)))
        self.classes = heads.classes
        slots = [heads.slot(task) for task, _ in self.classes]
        self.register_buffer("slot_of_class_25", torch.tensor(slots), persistent=False)
        self.register_buffer("state_mean_H", torch.zeros(hidden), persistent=False)
        self.register_buffer("state_deviation_H", torch.ones(hidden), persistent=False)

    def standardise(self, mean_H: Tensor, deviation_H: Tensor, *, keep: bool) -> None:
        """Lets the heads read states less their mean, over their deviation (`model.heads_learn_on`).

        Args:
            keep: whether heads are changed so that they give the logits that they gave before, as trained ones should.
        """
        self.state_mean_H.copy_(mean_H)
        self.state_deviation_H.copy_(deviation_H)
        if keep:
            with torch.no_grad():
                for head in cast(Iterable[nn.Linear], self.heads):
                    head.bias.add_(head.weight @ self.state_mean_H.to(head.weight))
                    head.weight.mul_(self.state_deviation_H.to(head.weight))

    def for_states_as_they_are(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of this model by name, with heads that give the same logits for states which are not standardised."""
        changed = dict(tensors)
        for name in (f"heads.{place}" for place in range(len(self.heads))):
            if f"{name}.weight" in tensors:
                weight_KH = tensors[f"{name}.weight"] / self.state_deviation_H.to(tensors[f"{name}.weight"])
                bias_K = tensors[f"{name}.bias"]
                changed |= {f"{name}.weight": weight_KH, f"{name}.bias": bias_K - weight_KH @ self.state_mean_H.to(weight_KH)}
        return changed

    @property
    def thinker(self) -> Qwen2_5OmniThinkerForConditionalGeneration:
        """The backbone without its PEFT wrapper; LoRA layers stay in place."""
        backbone = self.backbone.get_base_model() if isinstance(self.backbone, PeftModel) else self.backbone
        return cast(Qwen2_5OmniThinkerForConditionalGeneration, backbone)

    def forward(
        self, inputs: Mapping[str, Tensor], class_index_B: Tensor, task_slot_B: Tensor, answer_labels_BS: Tensor, weight_B: Tensor
    ) -> Outputs:
        """Losses and class logits of a micro-batch; padding may be on either side.

        Every head sees every row, and both towers are always in the graph, so that each trainable weight has a gradient
        on every worker, which is zero where the worker's rows do not use it.

        Args:
            inputs: what the processor returns, as tensors.
            class_index_B: global class index, or -100.
            task_slot_B: place of the task's head, or -1 for an open answer.
            answer_labels_BS: token ids at the positions of the answer, else -100; position t-1 predicts t.
            weight_B: 1 for a row, 0 for a filler, which contributes nothing.
        """
        real_B = weight_B > 0
        class_B = torch.where(real_B, class_index_B, IGNORE)
        next_token_BS = F.pad(answer_labels_BS[:, 1:], (0, 1), value=IGNORE).masked_fill(~real_B[:, None], IGNORE)

        h_BSH, logits_NV, target_N = self._run(inputs, next_token_BS)
        answer_loss_sum = F.cross_entropy(logits_NV.float(), target_N, ignore_index=IGNORE, reduction="sum")

        class_logits_B25 = self._classify(_masked_mean(h_BSH, inputs["attention_mask"]), task_slot_B)
        class_loss_sum = F.cross_entropy(class_logits_B25, class_B, ignore_index=IGNORE, reduction="sum") + self._idle_towers(inputs)

        has_class_B, answer_BS = class_B != IGNORE, next_token_BS != IGNORE
        return Outputs(
            class_logits_B25=class_logits_B25,
            class_loss_sum=class_loss_sum,
            answer_loss_sum=answer_loss_sum,
            class_rows=has_class_B.sum(),
            answer_rows=answer_BS.any(dim=1).sum(),
            answer_tokens=answer_BS.sum(),
            class_correct=(has_class_B & (class_logits_B25.argmax(dim=-1) == class_B)).sum(),
        )

    def pooled(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """h_BH in fp32: the masked mean of h^(L-1) over the prompt, media tokens included."""
        no_answer_BS = torch.full_like(inputs["input_ids"], IGNORE)
        return _masked_mean(self._run(inputs, no_answer_BS)[0], inputs["attention_mask"])

    @torch.no_grad()
    def generate(self, inputs: Mapping[str, Tensor], *, max_new_tokens: int, eos_token_id: int, pad_token_id: int) -> list[Tensor]:
        """The most probable answer, token by token.

        Args:
            inputs: prompts that end with the generation prompt, padded on the LEFT.

        Returns:
            Token ids of each row's answer, without the end-of-turn token and what follows it.

        Raises:
            DataError: a row is padded on the right; it would be continued after its padding.
            TrainingError: the model is in training mode, where dropout would be active.
        """
        if self.training:
            raise TrainingError("generate", "the model is in training mode", "call model.eval() first")
        return decode(self.thinker, self._backbone_inputs(inputs), Decoding(max_new_tokens, eos_token_id, pad_token_id))

    def _run(self, inputs: Mapping[str, Tensor], next_token_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Runs the backbone once, and its lm_head only at positions that have a next token to predict.

        Returns:
            h^(L-1) at all positions, h_BSH; logits_NV and target_N at those positions. Where there is none, N is 1 and
            the target ignored: lm_head runs nevertheless, because sharded workers have to run the same modules.
        """
        keep_BS = next_token_BS != IGNORE
        if not bool(keep_BS.any()):
            keep_BS[0, inputs["attention_mask"][0].argmax()] = True
        layers = cast(nn.ModuleList, self.thinker.model.layers)
        with _output_of(layers[-2]) as tapped, _only_at(self.thinker.lm_head, keep_BS):
            output = self.backbone(**self._backbone_inputs(inputs), use_cache=False)
        return tapped[0], output.logits, next_token_BS[keep_BS]

    def _classify(self, h_BH: Tensor, task_slot_B: Tensor) -> Tensor:
        weight = cast(nn.Linear, self.heads[0]).weight
        read_BH = ((h_BH - self.state_mean_H) / self.state_deviation_H).to(weight.dtype)
        scores_B25 = torch.cat([head(read_BH) for head in self.heads], dim=-1).float()
        return torch.where(self.slot_of_class_25 == task_slot_B[:, None], scores_B25, _OTHER_TASK)

    def _backbone_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self.media_to_backbone:
            return {name: inputs[name] for name in _TEXT_INPUTS}
        given = dict(inputs)
        if "input_features" in given:  # the vision tower casts its input, the audio tower does not
            given["input_features"] = given["input_features"].to(self.thinker.audio_tower.dtype)
        return given

    def _idle_towers(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Zero, with a gradient path to the trainable weights of towers that these inputs do not run.

        Weights that ZeRO-3 has sharded are empty here and cannot be included; under ZeRO-3 every batch has to hold all
        modalities (`BatchSettings.every_batch_has`).
        """
        zero = self.slot_of_class_25.new_zeros((), dtype=torch.float32)
        for tower, names in _TOWER_INPUTS.items():
            if not self.media_to_backbone or not any(name in inputs for name in names):
                weights = getattr(self.thinker, tower).parameters()
                zero = zero + sum(weight.sum() * 0 for weight in weights if weight.requires_grad and weight.numel())
        return zero


def _masked_mean(h_BSH: Tensor, attention_mask_BS: Tensor) -> Tensor:
    """Mean over the attended positions, in fp32 (paper appendix B.1, pooling)."""
    mask_BS1 = attention_mask_BS.unsqueeze(-1).float()
    return (h_BSH.float() * mask_BS1).sum(dim=1) / mask_BS1.sum(dim=1).clamp(min=1)


@contextmanager
def _output_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what `layer` returns inside the block, and keeps no other layer's hidden states."""
    outputs: list[Tensor] = []

    def keep(layer: nn.Module, arguments: Any, output: Tensor) -> None:
        outputs.append(output)

    handle = layer.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()


@contextmanager
def _only_at(lm_head: nn.Module, keep_BS: Tensor) -> Iterator[None]:
    """Gives `lm_head` only the kept positions, [N, H], inside the block: logits of all positions would fill the memory."""
    handle = lm_head.register_forward_pre_hook(lambda _, arguments: (arguments[0][keep_BS],))
    try:
        yield
    finally:
        handle.remove()
