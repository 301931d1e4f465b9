"""The index of a folder of clips."""

from pathlib import Path

from hba_ray.data.atlas import AtlasIndex, build_index
from hba_ray.specs import AtlasSpec


def index_of(folder: Path) -> AtlasIndex:
    return build_index(AtlasSpec(root=str(folder)), folder)
