"""BAM: what behavioural descriptors add to h^(L-1) of a frozen OmniSapiens (paper section 3.6).

    x_f     = Dropout(Norm(f))                      (1)
    z_f     = phi(W2 phi(W1 x_f + b1) + b2)         (2)   phi is ReLU, which the paper leaves open
    delta   = alpha z_f                             (3)
    h_adapt = h_penult + delta                      (4)   summed over the streams

The numbers are ours. The SFT model itself is never written to: what is trained of its heads is a
copy, so taking BAM away leaves the SFT model as it was, bit for bit.

Letters in tensor names: B rows, S positions, H hidden size, D features of a stream, K classes of a task.
"""

from __future__ import annotations

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
from hba_ray.specs.bam import BamSpec, Injection


class Descriptors(NamedTuple):
    """One stream of some rows.

    Attributes:
        vectors_BD: float32; whatever stands in the rows that lack the stream is not looked at.
        present_B: bool, whether the row has the stream.
    """

    vectors_BD: Tensor
    present_B: Tensor

    def take(self, rows: Tensor) -> Descriptors:
        return Descriptors(self.vectors_BD[rows], self.present_B[rows])

    def to(self, device: torch.device | str) -> Descriptors:
        return Descriptors(self.vectors_BD.to(device), self.present_B.to(device))


class Head(nn.Linear):
    """A linear head that computes in its own precision, whatever the precision of its input."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype))


class ZScore(nn.Module):
    """Each feature minus its mean over its standard deviation, both of the training rows."""

    mean_D: Tensor
    scale_D: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("scale_D", torch.ones(width))

    def fit(self, vectors_BD: Tensor) -> None:
        """Take both from these rows; a feature that never varies comes out as 0."""
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
        self.stream_dropout = spec.dropout if spec.dropout_of == "stream" else 0.0
        self.ln_feats = {"layer": nn.LayerNorm, "zscore": ZScore, "none": nn.Identity}[spec.norm](width)
        self.dropout = nn.Dropout(spec.dropout if spec.dropout_of == "element" else 0.0)
        hidden = spec.hidden_of(stream)
        layers = [nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden_size)]
        self.mlp = nn.Sequential(*layers, *([nn.ReLU()] if spec.outer_activation else []))
        self.alpha = nn.Parameter(torch.tensor([spec.alpha]))

    def forward(self, vectors_BD: Tensor, present_B: Tensor) -> Tensor:
        """delta_BH; exactly zero, without a gradient, in rows that lack the stream.

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
        if self.training and self.stream_dropout:
            f_BD = f_BD * (torch.rand_like(f_BD[:, :1]) >= self.stream_dropout)
        x_BD = self.dropout(self.ln_feats(f_BD))  # (1)
        weights = cast(nn.Linear, self.mlp[0]).weight
        z_BH = self.mlp(x_BD.to(weights.dtype)).float()  # (2)
        return torch.where(present_B1, self.alpha * z_BH, 0.0)  # (3)


class Bam(nn.Module):
    """What is trained for one dataset: an adapter per stream, and its own copy of the task's head.

    Args:
        widths: stream -> D.
        hidden_size: H of the backbone.
        head: of the task, or a copy of lm_head; None leaves lm_head as it is.
    """

    def __init__(self, spec: BamSpec, widths: Mapping[str, int], hidden_size: int, head: Head | None):
        super().__init__()
        self.spec, self.widths, self.hidden_size = spec, dict(widths), hidden_size
        self.adapters = nn.ModuleDict({stream: Adapter(stream, width, hidden_size, spec) for stream, width in widths.items()})
        self.head = head

    def fit_norms(self, descriptors: Mapping[str, Descriptors]) -> None:
        """Give z-score norms the mean and deviation of the training rows; other norms have none."""
        for stream, adapter in self.adapters.items():
            norm = adapter.ln_feats
            if isinstance(norm, ZScore):
                norm.fit(descriptors[stream].vectors_BD[descriptors[stream].present_B])

    def with_weights_in(self, dtype: torch.dtype) -> Bam:
        """For inference: both layers' weights in bf16 or fp16. Reading them is most of what a single row costs on a CPU."""
        for adapter in self.adapters.values():
            cast(Adapter, adapter).mlp.to(dtype)
        return self

    def forward(self, descriptors: Mapping[str, Descriptors]) -> Tensor:
        """delta_BH, the sum over the streams.

        Raises:
            DataError: a stream that has an adapter is not given, or has another width.
        """
        missing = [stream for stream in self.adapters if stream not in descriptors]
        if missing:
            what = f"the adapters need '{missing[0]}', and the descriptors hold {', '.join(descriptors) or 'no stream'}"
            way_out = "extract that stream; rows that lack it are marked as not present"
            raise DataError("descriptors", what, way_out, reason="missing stream")
        deltas = [adapter(*descriptors[stream]) for stream, adapter in self.adapters.items()]
        return torch.stack(deltas).sum(dim=0)

    def class_logits(self, h_BH: Tensor, delta_BH: Tensor) -> Tensor:
        """Logits BK of the task's classes from the pooled h^(L-1)."""
        assert self.head is not None
        return self.head(h_BH + delta_BH)  # (4), pooled: delta is the same at all positions


@contextmanager
def attached(model: OmniSapiens, delta_BH: Tensor, lm_head: nn.Module | None = None, *, at: Injection) -> Iterator[None]:
    """Let delta join the decoder of `model`, in a forward pass or in generation, until the block ends.

    It is added at every position, those that generation adds one by one too; keys and values of the
    last layer then hold it, so a key-value cache stays valid.

    Args:
        lm_head: takes the place of the model's.
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
    """A trainable fp32 copy of one task's rows of the classifier heads."""
    head = Head(weight_25H.shape[1], len(columns))
    with torch.no_grad():
        head.weight.copy_(weight_25H[columns])
        head.bias.copy_(bias_25[columns])
    return head


def lm_head_copy(lm_head: nn.Linear) -> Head:
    """A trainable fp32 copy of lm_head: steps of 1e-4 would get lost in bf16."""
    with torch.device(lm_head.weight.device):
        head = Head(lm_head.in_features, lm_head.out_features, bias=lm_head.bias is not None)
    head.load_state_dict(lm_head.state_dict())
    return head


class DecoderTail:
    """What comes behind h^(L-1): the last decoder layer, the final norm, lm_head. All else of the model can go."""

    def __init__(self, model: OmniSapiens):
        text = cast(Any, model.thinker.model)
        self.layer, self.norm, self.rotary = text.layers[-1], text.norm, text.rotary_emb
        self.lm_head = cast(nn.Linear, model.thinker.lm_head)
        self.config = text.config
        self.dtype, self.device = self.lm_head.weight.dtype, self.lm_head.weight.device

    def normed(self, h_BSH: Tensor, mask_BS: Tensor, positions_3BS: Tensor) -> Tensor:
        """What lm_head reads, from h^(L-1) with delta already in it.

        Args:
            mask_BS: 1 at a row's positions; padding is on the right.
            positions_3BS: rotary positions in time, height and width.
        """
        mask: Any = create_causal_mask(
            config=self.config, inputs_embeds=h_BSH, attention_mask=mask_BS, past_key_values=None, position_ids=None
        )
        rotary = self.rotary(h_BSH, positions_3BS)
        return self.norm(self.layer(h_BSH, attention_mask=mask, position_embeddings=rotary))
