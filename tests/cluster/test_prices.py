"""A step is charged for what its workers hold of the dearest node that they may be on."""

from __future__ import annotations

import pytest

from hba_ray.cluster.growth import GROWS_TO, stated
from hba_ray.cluster.prices import rate_of
from hba_ray.specs import ComputeSpec
from hba_ray.specs.infra import InfraSpec
from hba_ray.specs.sections.compute import NodesSpec
from hba_ray.store.spending import Rate

CPU = NodesSpec(cpus=16, most=4, dollars_per_hour=1.0)
GPU = NodesSpec(cpus=64, gpus=8, most=4, dollars_per_hour=24.0)
DEARER = GPU.model_copy(update={"dollars_per_hour": 40.0})


@pytest.mark.parametrize(
    ("nodes", "compute", "rate"),
    [
        ([CPU, GPU], {"workers": 2, "gpus_per_worker": 1}, Rate(2.0, 6.0)),
        ([GPU], {"workers": 16, "gpus_per_worker": 1}, Rate(16.0, 48.0)),
        ([GPU], {"workers": 2, "gpus_per_worker": 1, "cpus_per_worker": 31, "loaders": 1}, Rate(2.0, 24.0)),
        ([GPU, DEARER], {"workers": 1, "gpus_per_worker": 1}, Rate(1.0, 5.0)),
        ([GPU, DEARER.model_copy(update={"dollars_per_hour": None})], {"workers": 1, "gpus_per_worker": 1}, Rate(1.0)),
        ([CPU, GPU], {"workers": 2, "cpus_per_worker": 3, "loaders": 1}, Rate(0.0, 0.5)),
        ([GPU], {"workers": 2, "cpus_per_worker": 3, "loaders": 1}, Rate(0.0, 3.0)),
        ([CPU], {"workers": 2, "gpus_per_worker": 1}, Rate(2.0)),
        ([], {"workers": 0, "gpus_per_worker": 1}, Rate(1.0)),
        ([], {"workers": 1}, Rate()),
    ],
)
def test_the_share_of_a_node_that_workers_hold_has_its_share_of_the_price(nodes: list[NodesSpec], compute: dict, rate: Rate):
    assert rate_of(ComputeSpec(address="auto", **compute), {GROWS_TO: stated(nodes)}) == rate
    assert rate_of(ComputeSpec(address="auto", **compute, grows_to=tuple(nodes)), {}) == rate


def test_the_price_of_an_infra_file_is_stated_and_none_is_left_out():
    worker = {"cpus": 64, "gpus": 8, "memory_gib": 512, "most": 4}
    with_price, without = (
        stated(InfraSpec.model_validate({"head": {"cpus": 8, "memory_gib": 32}, "workers": {"gpu": {**worker, **more}}}).nodes)
        for more in ({"dollars_per_hour": 98.32}, {})
    )
    assert with_price == '[{"cpus":64,"gpus":8,"most":4,"dollars_per_hour":98.32}]' and without == '[{"cpus":64,"gpus":8,"most":4}]'
