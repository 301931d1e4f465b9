"""Names the table that holds a stream's descriptors, and makes the extractor that fills it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from hba_ray.descriptors.environments import ENVIRONMENTS
from hba_ray.descriptors.pools import Extractor
from hba_ray.descriptors.store import Table
from hba_ray.specs import fingerprint
from hba_ray.specs.sections.descriptors import DescriptorsSpec, Stream
from hba_ray.specs.sections.model import PACKAGE, weights_of
from hba_ray.store.files import file_digest
from hba_ray.store.folders import write_text

VERSIONS: dict[Stream, int] = {"pose": 2, "acoustic": 2, "transcripts": 2}
"""Version of each extractor's code. Raise it when the code gives other values, so that they go into a new table."""


def table_of(store: Path, spec: DescriptorsSpec, stream: Stream) -> Table:
    """The table of a stream. Each combination of extractor, version and settings has a folder of its own, which is not created here."""
    kind = spec.acoustic.features if stream == "acoustic" else stream
    return Table(store / f"{stream}-{fingerprint(identity_of(spec, stream, store))}", kind)


def note_identity(table: Table, spec: DescriptorsSpec, stream: Stream) -> None:
    """Writes extractor, version and settings beside the table."""
    write_text(table.folder / "about.json", json.dumps(identity_of(spec, stream, table.folder.parent), indent=1) + "\n")


def maker(spec: DescriptorsSpec, stream: Stream) -> Callable[[], Extractor]:
    """A function that makes the stream's extractor and imports the extractor's packages only then."""
    if stream == "pose":
        from hba_ray.descriptors.pose import PoseExtractor

        pose = spec.pose
        return partial(PoseExtractor, pose.fps, pose.complexity, pose.detection_confidence, pose.tracking_confidence)
    if stream == "acoustic":
        from hba_ray.descriptors.acoustic import AcousticExtractor

        return partial(AcousticExtractor, spec.acoustic.features)
    from hba_ray.descriptors.transcripts import TranscriptExtractor

    chosen = spec.transcripts
    return partial(TranscriptExtractor, str(_whisper_file(chosen.model) or chosen.model), chosen.language)


def released_maker(stream: Stream) -> Callable[[], Extractor]:
    """A function that makes the reader of the `.pt` files which the released atlas ships for a stream."""
    from hba_ray.descriptors.released import ReleasedExtractor

    return partial(ReleasedExtractor, cast(Literal["pose", "acoustic"], stream))


def identity_of(spec: DescriptorsSpec, stream: Stream, store: Path) -> dict[str, Any]:
    """Extractor, version and settings: what a table holds, as JSON values.

    Args:
        store: folder of the tables; it remembers the digest of a Whisper checkpoint.
    """
    identity = {"extractor": ENVIRONMENTS[stream].requirement, "version": VERSIONS[stream], "settings": spec.of(stream).extraction()}
    weights = _whisper_file(spec.transcripts.model) if stream == "transcripts" else None
    if weights is not None:
        identity["settings"] = {**identity["settings"], "model": file_digest(weights, memory=store)}
    return identity


def _whisper_file(model: str) -> Path | None:
    """The file that `descriptors.transcripts.model` stands for; None where it is the name of one of Whisper's own models.

    Raises:
        EnvironmentMissing: it is a package that is not installed.
        CheckpointError: it is a package without weights.
    """
    if model.startswith(PACKAGE):
        return weights_of(model, "descriptors.transcripts.model")
    file = Path(model).expanduser()
    return file if file.is_file() else None
