"""What a worker meets is final, or worth another worker."""

import torch
from ray.exceptions import ActorDiedError

from hba_ray.cluster.failures import as_final
from hba_ray.errors import BadMedia


def test_a_mistake_in_the_code_or_a_full_gpu_is_final_and_a_broken_connection_is_not():
    final = as_final(KeyError("input_ids"), "worker 1")
    assert str(final).startswith("worker 1: KeyError: 'input_ids'")
    assert "compute.micro_batch" in str(as_final(torch.OutOfMemoryError("CUDA out of memory.\nTried"), "worker 0"))
    own = BadMedia("row 3", "is cut off")
    assert as_final(own, "worker 0") is own
    for passing in (ActorDiedError(), RuntimeError("Connection closed by peer"), OSError("Broken pipe")):
        assert as_final(passing, "worker 0") is None
