"""A few rows of the toy atlas, a place to train on them, and a way to cut training off."""

import pytest

from hba_ray.data.atlas import AtlasIndex, build_index
from hba_ray.specs import AtlasSpec
from tests.helpers.sft_jobs import Cut, Workshop


@pytest.fixture(scope="session")
def small_index(toy) -> AtlasIndex:
    """A few rows of each toy dataset."""
    return build_index(AtlasSpec(root=str(toy.parquet), limit=5), toy.parquet)


@pytest.fixture
def workshop(small_index, tiny_backbone, tmp_path) -> Workshop:
    return Workshop(small_index, tiny_backbone, tmp_path)


@pytest.fixture
def cut_after(monkeypatch):
    """Ends training in this process right after the checkpoint of the given step was written."""

    def arm(step: int) -> None:
        from hba_ray.training.hooks import FolderCheckpointStore

        save = FolderCheckpointStore.save

        def save_then_die(self, folder, metrics):
            save(self, folder, metrics)
            if metrics["step"] == step:
                monkeypatch.undo()
                raise Cut

        monkeypatch.setattr(FolderCheckpointStore, "save", save_then_die)

    return arm
