"""A few rows of the toy atlas and a place to train on them."""

import pytest

from hba_ray.data.atlas import AtlasIndex, build_index
from hba_ray.specs import AtlasSpec
from tests.helpers.sft_jobs import Workshop


@pytest.fixture(scope="session")
def small_index(toy) -> AtlasIndex:
    """A few rows of each toy dataset."""
    return build_index(AtlasSpec(root=str(toy.parquet), limit=5), toy.parquet)


@pytest.fixture
def workshop(small_index, tiny_backbone, tmp_path) -> Workshop:
    return Workshop(small_index, tiny_backbone, tmp_path)
