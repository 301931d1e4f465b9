"""Where the files of a corpus lie on this machine: in the folder that a spec names or, if that is in a bucket, in one for its address.

Files of a bucket are fetched when a spec that names them is planned, those alone that are new or have changed. They keep the time at
which they were written to the bucket, so they are the same files on every machine.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from hba_ray.specs.sections.atlas import AtlasSpec
from hba_ray.store.folders import bring
from hba_ray.store.scratch import folder_here

CARD = "card.json"
"""Name of the file beside the rows of an atlas that `hba atlas build` made, which says what they are."""


def root_here(root: str | None) -> Path:
    """The folder of this machine with the files of a corpus.

    Args:
        root: as `atlas.root`; None, of corpora without files, is the working folder.

    Raises:
        EnvironmentMissing: the bucket does not answer.
    """
    if root is None or "://" not in root:
        return Path(root or "").expanduser()
    _fetched(here := folder_here(root))
    return here


@cache
def _fetched(here: Path) -> None:
    """Brings what the bucket holds; once a process, which then works with the files that it began with."""
    here.mkdir(parents=True, exist_ok=True)
    bring(here)


def stated_roots(atlas: AtlasSpec) -> tuple[Path | None, ...]:
    """Of each part, the folder that the spec states of a released atlas, wherever it lies now; None where the atlas step makes rows."""
    return tuple(root_here(part.root).absolute() if part.source == "released" else None for part in atlas.parts)
