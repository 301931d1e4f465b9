"""The forward pass against numpy that is written from the paper's equations and from the released code, with no module of ours in it.

    h^(0) = E[ids];   a = h + W_o softmax(q k' / sqrt(d)) v;   h^(l) = a + W_down (silu(W_gate n) W_up n)
    n: the hidden state, divided by its root mean square and scaled;   q and k turned by rotary positions

Paper: delta joins h^(L-1), before the last layer. Released code: delta has no outer ReLU, the acoustic vector has length 1, and
delta joins behind the final norm. The heads read the mean of h^(L-1), plus delta, in both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hba_ray.data.tasks import CLASS_TASKS
from hba_ray.models.bam import Bam, DescriptorBatch, attached, task_head
from hba_ray.models.omni import OmniSapiens
from hba_ray.specs import ExperimentSpec
from tests.helpers.looks import MakeModel

WIDTHS = {"pose": 10, "acoustic": 14}
PROMPTS = ("What emotion does the speaker express?", "Does the person nod?")
COLUMNS = [0, 1, 2, 3, 4, 5, 6]
"""The classes of sentiment among the 25."""


class ByHand:
    """A decoder in float64, from the weights by name; LoRA is added to the weights that it changes."""

    def __init__(self, model: OmniSapiens):
        config: Any = model.thinker.config.get_text_config()
        self.layers, self.heads, self.groups = config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads
        self.epsilon, self.base = config.rms_norm_eps, config.rope_parameters["rope_theta"]
        self.weights = {name: weight.detach().double().numpy() for name, weight in model.backbone.named_parameters()}
        self.lora_scale = next(iter(model.backbone.peft_config.values())).lora_alpha / next(iter(model.backbone.peft_config.values())).r

    def weight(self, name: str) -> np.ndarray:
        prefix = "base_model.model."
        base, _, kind = name.rpartition(".")
        if f"{prefix}{base}.lora_A.default.weight" not in self.weights:
            return self.weights[prefix + name]
        plain = self.weights[f"{prefix}{base}.base_layer.{kind}"]
        if kind == "bias":
            return plain
        low, high = (self.weights[f"{prefix}{base}.lora_{letter}.default.weight"] for letter in "AB")
        return plain + self.lora_scale * high @ low

    def norm(self, h_SH: np.ndarray, name: str) -> np.ndarray:
        return h_SH / np.sqrt((h_SH**2).mean(-1, keepdims=True) + self.epsilon) * self.weight(name)

    def turned(self, x_SND: np.ndarray) -> np.ndarray:
        positions, half = np.arange(len(x_SND))[:, None, None], x_SND.shape[-1] // 2
        angle = positions / self.base ** (np.arange(half) / half)
        first, second = x_SND[..., :half], x_SND[..., half:]
        return np.concatenate([first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)], -1)

    def layer(self, h_SH: np.ndarray, number: int) -> np.ndarray:
        place = f"model.layers.{number}."
        n_SH = self.norm(h_SH, f"{place}input_layernorm.weight")
        parts = []
        for name, count in (("q_proj", self.heads), ("k_proj", self.groups), ("v_proj", self.groups)):
            projected = n_SH @ self.weight(f"{place}self_attn.{name}.weight").T + self.weight(f"{place}self_attn.{name}.bias")
            parts.append(projected.reshape(len(h_SH), count, -1).repeat(self.heads // count, axis=1))
        q_SND, k_SND, v_SND = self.turned(parts[0]), self.turned(parts[1]), parts[2]
        scores_NSS = np.einsum("snd,tnd->nst", q_SND, k_SND) / np.sqrt(q_SND.shape[-1])
        scores_NSS = np.where(np.tri(len(h_SH), dtype=bool), scores_NSS, -np.inf)
        shares_NSS = np.exp(scores_NSS - scores_NSS.max(-1, keepdims=True))
        shares_NSS /= shares_NSS.sum(-1, keepdims=True)
        seen_SH = np.einsum("nst,tnd->snd", shares_NSS, v_SND).reshape(len(h_SH), -1)
        a_SH = h_SH + seen_SH @ self.weight(f"{place}self_attn.o_proj.weight").T
        n_SH = self.norm(a_SH, f"{place}post_attention_layernorm.weight")
        gate_SF = n_SH @ self.weight(f"{place}mlp.gate_proj.weight").T
        up_SF = n_SH @ self.weight(f"{place}mlp.up_proj.weight").T
        return a_SH + (gate_SF / (1 + np.exp(-gate_SF)) * up_SF) @ self.weight(f"{place}mlp.down_proj.weight").T

    def penultimate(self, ids: list[int]) -> np.ndarray:
        h_SH = self.weight("model.embed_tokens.weight")[ids]
        for number in range(self.layers - 1):
            h_SH = self.layer(h_SH, number)
        return h_SH

    def decoded(self, h_SH: np.ndarray, delta_H: np.ndarray, mode: str) -> np.ndarray:
        """Logits of the next token at every position."""
        if mode == "paper":
            read_SH = self.norm(self.layer(h_SH + delta_H, self.layers - 1), "model.norm.weight")
        else:
            read_SH = self.norm(self.layer(h_SH, self.layers - 1), "model.norm.weight") + delta_H
        return read_SH @ self.weight("lm_head.weight").T


def delta_by_hand(bam: Bam, row: dict[str, np.ndarray], mode: str) -> np.ndarray:
    """The sum of both streams' alpha z_f, from the adapters' parameters alone."""
    total = np.zeros(bam.hidden_size)
    for stream, f in row.items():
        p = {name: weight.detach().double().numpy() for name, weight in bam.adapters[stream].named_parameters()}
        f = f / np.linalg.norm(f) if mode == "authors" and stream == "acoustic" else f
        x_f = (f - f.mean()) / np.sqrt(f.var() + 1e-5) * p["ln_feats.weight"] + p["ln_feats.bias"]
        z_f = p["mlp.2.weight"] @ np.maximum(p["mlp.0.weight"] @ x_f + p["mlp.0.bias"], 0) + p["mlp.2.bias"]
        total += p["alpha"] * (np.maximum(z_f, 0) if mode == "paper" else z_f)
    return total


@pytest.mark.parametrize("mode", ["paper", "authors"])
def test_heads_and_decoder_are_the_equations_of_both_modes(make_model: MakeModel, tiny, mode: str):
    spec = ExperimentSpec.model_validate({"name": "x", "compat": mode, "atlas": {"source": "toy"}, "bam": {"hidden": 8}})
    model, generator = make_model("lora"), torch.Generator().manual_seed(3)
    head = task_head(torch.randn(25, 64, generator=generator), torch.randn(25, generator=generator), COLUMNS)
    torch.manual_seed(5)
    bam = Bam(spec.bam, WIDTHS, 64, head).eval()
    with torch.no_grad():
        for weight in bam.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    vectors = {stream: 2 + torch.randn(2, width, generator=generator) for stream, width in WIDTHS.items()}
    delta_BH = bam({stream: DescriptorBatch(rows, torch.ones(2, dtype=torch.bool)) for stream, rows in vectors.items()})
    texts = [tiny.processor.apply_chat_template([{"role": "user", "content": text}], tokenize=False) for text in PROMPTS]
    inputs = dict(tiny.processor(text=texts, return_tensors="pt", padding=True, padding_side="right"))
    with torch.no_grad():
        h_BH = model.pooled(inputs)
        class_logits = bam.class_logits(h_BH, delta_BH).double().numpy()
        all_logits = model._classify(h_BH, torch.zeros(2, dtype=torch.long)).double().numpy()
        with attached(model, delta_BH, at=spec.bam.decoder_injection):
            decoded = model.thinker(**inputs).logits.double().numpy()

    by_hand = ByHand(model)
    for row in range(2):
        ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist()
        h_SH = by_hand.penultimate(ids)
        delta_H = delta_by_hand(bam, {stream: rows[row].double().numpy() for stream, rows in vectors.items()}, mode)
        assert np.abs(delta_BH[row].detach().numpy() - delta_H).max() < 1e-5
        pooled_H = h_SH.mean(0)
        weight, bias = (tensor.detach().double().numpy() for tensor in (head.weight, head.bias))
        assert np.abs(class_logits[row] - (weight @ (pooled_H + delta_H) + bias)).max() < 1e-4
        own = model.heads[0].weight.detach().double().numpy() @ pooled_H + model.heads[0].bias.detach().double().numpy()
        assert np.abs(all_logits[row, : len(CLASS_TASKS[0].labels)] - own).max() < 1e-4
        expected = by_hand.decoded(h_SH, delta_H, mode)
        other = by_hand.decoded(h_SH, delta_H, "authors" if mode == "paper" else "paper")
        assert np.abs(decoded[row, : len(ids)] - expected).max() < 1e-3 < np.abs(expected - other).max()
