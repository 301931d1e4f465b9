"""What a model says and holds, to be compared before and after."""

from collections.abc import Callable

import torch

from hba_ray.models.omni import OmniSapiens

MakeModel = Callable[..., OmniSapiens]


def logits(model: OmniSapiens, tiny) -> torch.Tensor:
    """Its class logits and its loss on the rows of `tiny.mixed`, in one row."""
    with torch.no_grad():
        outputs = model(**tiny.batch(tiny.mixed))
    return torch.cat([outputs.class_logits_B25.flatten(), outputs.answer_loss_sum[None]])


def weights(model: OmniSapiens) -> dict[str, torch.Tensor]:
    """A copy of its state."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model: OmniSapiens, before: dict[str, torch.Tensor]) -> bool:
    """Whether its state is what `weights` gave."""
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
