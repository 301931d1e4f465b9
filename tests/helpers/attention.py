"""Counting calls of attention."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class Calls(TorchFunctionMode):
    """Counts calls of scaled dot-product attention inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, function: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None) -> Any:
        self.count += function is F.scaled_dot_product_attention
        return function(*arguments, **(named or {}))
