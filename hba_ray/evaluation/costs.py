"""What a model costs at inference, as numbers: time of a row and peak of memory, with adapters and without (paper Table 13)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from hba_ray.errors import DataError


@dataclass(frozen=True)
class Cost:
    """What one forward pass to the logits costs, of one row at batch 1 that was decoded and moved to the device beforehand.

    Attributes:
        mean, deviation: mean and population standard deviation over the rows, in seconds.
        peak: largest memory in use, in MiB; of the GPU where the model is on one, else of this process.
    """

    mean: float
    deviation: float
    peak: float


@dataclass(frozen=True)
class Latency:
    """What the model costs without adapters and with them, on the same rows.

    Attributes:
        device: as torch names it.
        precision: of the model's weights.
        rows: measured, without those of the warm-up.
    """

    without: Cost
    with_bam: Cost
    device: str
    precision: str
    rows: int
    warm_up: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "latency") -> Latency:
        """The measurement that `to_json` gave, from its JSON text.

        Raises:
            DataError: the text is of another version of hba_ray, or damaged; `where` names the file.
        """
        try:
            fields = json.loads(text)
            return cls(**{**fields, "without": Cost(**fields["without"]), "with_bam": Cost(**fields["with_bam"])})
        except (ValueError, KeyError, TypeError) as cause:
            raise DataError(where, f"is no measurement: {cause}", "delete it, and measure again", reason="not readable") from None
