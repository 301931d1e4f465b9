"""BAM: adapters that add behavioural descriptors to h^(L-1) of a frozen OmniSapiens (paper section 3.6).

    x_f     = Dropout(Norm(f))                      (1)
    z_f     = phi(W2 phi(W1 x_f + b1) + b2)         (2)   phi is ReLU, which the paper leaves open
    delta   = alpha z_f                             (3)
    h_adapt = h_penult + delta                      (4)   summed over the streams

The paper does not number these equations. The SFT model is never written to: heads are trained as copies, so without
BAM it is what it was before, bit for bit.

Letters in tensor names: B rows, S positions, H hidden size, D features of a stream, K classes of a task.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask

from hba_ray.descriptors.pooling import varies
from hba_ray.errors import DataError
from hba_ray.models.omni import OmniSapiens
from hba_ray.specs.sections.bam import BamSpec, Injection


class DescriptorBatch(NamedTuple):
    """The descriptors of B rows, of one stream.

    Attributes:
        vectors_BD: float32; rows without the stream may hold anything, and nothing reads them.
        present_B: bool, whether the row has the stream.
    """

    vectors_BD: Tensor
    present_B: Tensor

    def take(self, rows: Tensor) -> DescriptorBatch:
        return DescriptorBatch(self.vectors_BD[rows], self.present_B[rows])

    def to(self, device: torch.device | str) -> DescriptorBatch:
        return DescriptorBatch(self.vectors_BD.to(device), self.present_B.to(device))


class Head(nn.Linear):
    """A linear head that computes in its own precision, whatever the precision of its input."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype))


class RowDropout(nn.Module):
    """Dropout whose mask of a row follows from the row's seed alone, so that it does not depend on the rows beside it.

    Args:
        p: probability of being zeroed.
        salt: makes the masks of several modules differ that are given the same seeds.
        whole: zero all features of a row at once, and do not rescale those that stay.
    """

    def __init__(self, p: float, *, salt: str, whole: bool = False):
        super().__init__()
        self.p, self.salt, self.whole = p, zlib.crc32(salt.encode()), whole

    def forward(self, x_BD: Tensor, seeds_B: Tensor | None) -> Tensor:
        """Drops nothing in eval mode.

        Args:
            seeds_B: of the rows; None draws the masks from torch's random state.
        """
        if not (self.training and self.p):
            return x_BD
        width = 1 if self.whole else x_BD.shape[1]
        if seeds_B is None:
            uniform_BD = torch.rand(len(x_BD), width, device=x_BD.device)
        else:
            generators = [torch.Generator().manual_seed(seed ^ self.salt) for seed in seeds_B.tolist()]
            uniform_BD = torch.stack([torch.rand(width, generator=generator) for generator in generators]).to(x_BD.device)
        return x_BD * (uniform_BD >= self.p) / (1 if self.whole else 1 - self.p)


class ZScoreNorm(nn.Module):
    """Subtracts from each feature its mean over the training rows, and divides by its standard deviation there."""

    mean_D: Tensor
    scale_D: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("scale_D", torch.ones(width))

    def fit(self, vectors_BD: Tensor) -> None:
        """Takes mean and deviation from these rows; a feature that never varies becomes 0 everywhere."""
        exact_BD = vectors_BD.double()  # ComParE features reach 1e8, where float32 sums lose the small ones
        mean_D, deviation_D = exact_BD.mean(dim=0), exact_BD.std(dim=0, correction=0)
        self.mean_D.copy_(mean_D)
        self.scale_D.copy_(torch.where(torch.from_numpy(varies(deviation_D.numpy(), mean_D.numpy())), deviation_D, 1.0))

    def forward(self, f_BD: Tensor) -> Tensor:
        return (f_BD - self.mean_D) / self.scale_D


class Adapter(nn.Module):
    """The adapter of one stream. Its parameters have the names of the released state dict (bam_adapter.py)."""

    def __init__(self, stream: str, width: int, hidden_size: int, spec: BamSpec):
        """
        Args:
            width: D of the stream.
            hidden_size: H of the backbone.
        """
        super().__init__()
        self.stream, self.width = stream, width
        self.unit_length = stream == "acoustic" and spec.acoustic_scale == "l2"
        whole = spec.dropout_of == "stream"
        self.stream_dropout = RowDropout(spec.dropout if whole else 0.0, salt=stream, whole=True)
        self.ln_feats = {"layer": nn.LayerNorm, "zscore": ZScoreNorm, "none": nn.Identity}[spec.norm](width)
        self.dropout = RowDropout(0.0 if whole else spec.dropout, salt=stream)
        hidden = spec.hidden_of(stream)
        layers = [nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden_size)]
        self.mlp = nn.Sequential(*layers, *([nn.ReLU()] if spec.outer_activation else []))
        self.alpha = nn.Parameter(torch.tensor([spec.alpha]))

    def forward(self, vectors_BD: Tensor, present_B: Tensor, seeds_B: Tensor | None = None) -> Tensor:
        """delta_BH, which is exactly zero and has no gradient in rows without the stream.

        Args:
            seeds_B: of dropout; see `RowDropout`.

        Raises:
            DataError: the vectors have another width.
        """
        if vectors_BD.shape[-1] != self.width:
            raise DataError(
                f"stream '{self.stream}'",
                f"has {vectors_BD.shape[-1]} features, the adapter takes {self.width}",
                "use descriptors with the settings that the adapter was trained on",
                reason="wrong width",
            )
        present_B1 = present_B.unsqueeze(-1)
        f_BD = torch.where(present_B1, vectors_BD, 0.0)
        if self.unit_length:
            f_BD = F.normalize(f_BD, dim=-1)
        x_BD = self.dropout(self.ln_feats(self.stream_dropout(f_BD, seeds_B)), seeds_B)  # (1)
        weights = cast(nn.Linear, self.mlp[0]).weight
        z_BH = self.mlp(x_BD.to(weights.dtype)).float()  # (2)
        return torch.where(present_B1, self.alpha * z_BH, 0.0)  # (3)


class Bam(nn.Module):
    """What is trained for one dataset: an adapter per stream, and a copy of the task's head.

    Args:
        widths: stream -> D.
        hidden_size: H of the backbone.
        head: copy of the task's head, or of lm_head for open answers; None uses the model's own lm_head.
    """

    def __init__(self, spec: BamSpec, widths: Mapping[str, int], hidden_size: int, head: Head | None):
        super().__init__()
        self.spec, self.widths, self.hidden_size = spec, dict(widths), hidden_size
        self.adapters = nn.ModuleDict({stream: Adapter(stream, width, hidden_size, spec) for stream, width in widths.items()})
        self.head = head

    def fit_norms(self, descriptors: Mapping[str, DescriptorBatch]) -> None:
        """Fits the norms of kind z-score to the training rows; other norms need no fitting."""
        for stream, adapter in self.adapters.items():
            norm = adapter.ln_feats
            if isinstance(norm, ZScoreNorm):
                norm.fit(descriptors[stream].vectors_BD[descriptors[stream].present_B])

    def with_weights_in(self, dtype: torch.dtype) -> Bam:
        """Converts the weights of the linear layers to bf16 or fp16 for inference: on a CPU a single row mostly waits for them."""
        for adapter in self.adapters.values():
            cast(Adapter, adapter).mlp.to(dtype)
        return self

    def forward(self, descriptors: Mapping[str, DescriptorBatch], seeds_B: Tensor | None = None) -> Tensor:
        """delta_BH, the sum of the adapters' deltas over the streams.

        Args:
            seeds_B: of dropout; see `RowDropout`.

        Raises:
            DataError: a stream that has an adapter is missing, or has another width.
        """
        missing = [stream for stream in self.adapters if stream not in descriptors]
        if missing:
            what = f"the adapters need '{missing[0]}', and the descriptors hold {', '.join(descriptors) or 'no stream'}"
            way_out = "extract that stream; rows that lack it are marked as not present"
            raise DataError("descriptors", what, way_out, reason="missing stream")
        deltas = [adapter(*descriptors[stream], seeds_B) for stream, adapter in self.adapters.items()]
        return torch.stack(deltas).sum(dim=0)

    def class_logits(self, h_BH: Tensor, delta_BH: Tensor) -> Tensor:
        """Logits [B, K] of the task's classes from the pooled h^(L-1)."""
        assert self.head is not None
        return self.head(h_BH + delta_BH)  # (4), pooled: delta is the same at all positions


@contextmanager
def attached(model: OmniSapiens, delta_BH: Tensor, lm_head: nn.Module | None = None, *, at: Injection) -> Iterator[None]:
    """Adds delta to the hidden states of `model`, in forward passes and in generation, until the block ends.

    It is added at every position, in generation also at the new ones. At "penultimate" the last layer's keys and values
    contain it, so the key-value cache stays valid.

    Args:
        lm_head: replaces the model's lm_head; None keeps it.
        at: before the last layer (h^(L-1)), or behind the final norm.
    """
    text, thinker = cast(Any, model.thinker.model), model.thinker
    own = thinker.lm_head

    def add(hidden_BSH: Tensor) -> Tensor:
        return hidden_BSH + delta_BH.to(hidden_BSH.dtype).unsqueeze(1)

    if at == "penultimate":
        handle = text.layers[-1].register_forward_pre_hook(lambda _, arguments: (add(arguments[0]), *arguments[1:]))
    else:
        handle = text.norm.register_forward_hook(lambda _, arguments, output: add(output))
    try:
        thinker.lm_head = cast(Any, lm_head if lm_head is not None else own)
        yield
    finally:
        thinker.lm_head = own
        handle.remove()


def task_head(weight_25H: Tensor, bias_25: Tensor, columns: list[int]) -> Head:
    """A trainable fp32 copy of one task's rows of the classifier heads.

    Args:
        columns: global class indices of the task.
    """
    head = Head(weight_25H.shape[1], len(columns))
    with torch.no_grad():
        head.weight.copy_(weight_25H[columns])
        head.bias.copy_(bias_25[columns])
    return head


def lm_head_copy(lm_head: nn.Linear) -> Head:
    """A trainable copy of lm_head in fp32, since bf16 would round steps of 1e-4 away."""
    with torch.device(lm_head.weight.device):
        head = Head(lm_head.in_features, lm_head.out_features, bias=lm_head.bias is not None)
    head.load_state_dict(lm_head.state_dict())
    return head


class DecoderTail:
    """The end of the decoder, behind h^(L-1): last layer, final norm, lm_head. It holds no other part of the model."""

    def __init__(self, model: OmniSapiens):
        text = cast(Any, model.thinker.model)
        self.layer, self.norm, self.rotary = text.layers[-1], text.norm, text.rotary_emb
        self.lm_head = cast(nn.Linear, model.thinker.lm_head)
        self.config = text.config
        self.dtype, self.device = self.lm_head.weight.dtype, self.lm_head.weight.device

    def normed(self, h_BSH: Tensor, mask_BS: Tensor, positions_3BS: Tensor) -> Tensor:
        """What lm_head reads, [B, S, H], from an h^(L-1) that already contains delta.

        Args:
            mask_BS: 1 at a row's positions; padding is on the right.
            positions_3BS: rotary positions in time, height and width.
        """
        mask: Any = create_causal_mask(
            config=self.config, inputs_embeds=h_BSH, attention_mask=mask_BS, past_key_values=None, position_ids=None
        )
        rotary = self.rotary(h_BSH, positions_3BS)
        return self.norm(self.layer(h_BSH, attention_mask=mask, position_embeddings=rotary))
