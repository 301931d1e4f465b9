"""Pools of extractors on a Ray that has no CPU to spare, and extractors that cannot be made."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hba_ray.cluster.session import ray_session
from hba_ray.data.toy import speak
from hba_ray.descriptors.extract import Place, collect_keys
from hba_ray.descriptors.keys import find_wanted
from hba_ray.descriptors.pools import Extractor, Work, describe_on_ray
from hba_ray.descriptors.tables import table_of
from hba_ray.errors import BadMedia, EnvironmentMissing
from hba_ray.specs import ComputeSpec
from hba_ray.specs.sections.compute import PythonsSpec
from hba_ray.specs.sections.descriptors import DescriptorsSpec
from tests.descriptors.conftest import row, write_rows
from tests.helpers.indices import index_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]
CPUS = 2


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with ray_session(ComputeSpec(cpus=CPUS, workers=1, cpus_per_loader=0.5, fork=True), tmp_path_factory.mktemp("log")):
        yield


@pytest.fixture
def work(tmp_path: Path) -> Callable[..., Work]:
    """Three clips to describe into a store of its own."""
    names = ("one", "two", "three")
    for place, name in enumerate(names):
        (tmp_path / f"{name}.wav").write_bytes(speak("sad", np.random.default_rng(place)))
    rows = [row(name, "toy_tone", "sad", audios=[f"{name}.wav"]) for name in names]
    write_rows(tmp_path, rows)
    index, spec = index_of(tmp_path), DescriptorsSpec(streams=("acoustic",))

    def made(store: str, make: Callable[[], Extractor]) -> Work:
        keys = collect_keys(
            index, ("train",), tmp_path / store, Place(ComputeSpec(workers=0), lambda: None), lambda what, done, total: None
        )
        return Work(index, find_wanted(keys, spec, "acoustic", index), table_of(tmp_path / store, spec, "acoustic"), make)

    return made


def make_listener() -> Extractor:
    class Listener:
        def describe(self, clip: bytes | Path, *, where: str, keep: Path | None = None) -> dict[str, Any]:
            raise BadMedia(where, "was heard", reason="heard")

    return Listener()


@pytest.mark.timeout(180)
def test_pools_side_by_side_that_hold_all_cpus_are_fed(session: None, work: Callable[..., Work]):
    import ray

    @ray.remote(num_cpus=0)
    def describe(work: Work) -> list[str | None]:
        return [done.reason for done in describe_on_ray(work, actors=1)]

    pools = [describe.remote(work(f"store {number}", make_listener)) for number in range(CPUS)]
    assert ray.get(pools, timeout=150) == [["heard"] * 3] * CPUS


def test_an_extractor_that_cannot_be_made_is_named(session: None, work: Callable[..., Work]):
    def make() -> Extractor:
        raise ImportError("no module named opensmile")

    with pytest.raises(EnvironmentMissing, match="its process ended: ImportError: no module named opensmile"):
        list(describe_on_ray(work("store", make), actors=1))


def test_more_extractors_than_cpus_are_refused(session: None, work: Callable[..., Work]):
    asked = work("store", make_listener)
    place = Place(ComputeSpec(extractors=CPUS + 1, pythons=PythonsSpec(acoustic=sys.executable)), lambda: None)
    with pytest.raises(EnvironmentMissing, match=r"compute\.extractors: 3 processes need more than the 2 CPUs"):
        place.run(asked, "acoustic", asked.table.folder, released=False)
