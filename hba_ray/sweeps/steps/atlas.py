"""The atlas step: generates, converts or finds the rows, checks them, and indexes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hba_ray.errors import DataError
from hba_ray.runtime.progress import progress
from hba_ray.specs import AtlasSpec, ExperimentSpec
from hba_ray.sweeps.steps.base import Context, Draft, Step, count_drops, digest_file


def plan(draft: Draft) -> Step:
    """
    Raises:
        DataError: the atlas or a converter's files are not there.
    """
    atlas = draft.spec.atlas
    what = f"{atlas.source} atlas" + (f" at {atlas.root}" if atlas.root else "")
    return draft.add("atlas", _identity(draft), what)


def _identity(draft: Draft) -> dict[str, Any]:
    """What the rows are: the generator's settings, or the content of the files."""
    atlas = draft.spec.atlas
    chosen = atlas.model_dump(mode="json", include={"source", "format", "datasets", "on_bad_row", "limit", "split_surprise", "split_by"})
    if atlas.held_out:
        chosen["held_out"] = list(atlas.held_out)
    if atlas.source == "toy":
        return {**chosen, "toy": atlas.toy.identity()}
    if atlas.source == "released":
        return {**chosen, "files": _digest_shards(atlas)}
    return {**chosen, "files": _digest_sources(Path(atlas.root or "")), "seed": draft.spec.seed}


def _digest_shards(atlas: AtlasSpec) -> list[list[Any]]:
    from hba_ray.data.atlas import find_shards

    root = Path(atlas.root or "")
    return [[Path(shard.path).name, shard.split, *digest_file(Path(shard.path))] for shard in find_shards(root, atlas.format)]


def _digest_sources(root: Path) -> list[list[Any]]:
    """A converter's tables; its clips are named in them."""
    if not root.is_dir():
        raise DataError(str(root), "no such folder", "give the folder of the public files as atlas.root", reason="missing file")
    return [[path.name, *digest_file(path)] for path in sorted(root.iterdir()) if path.suffix in (".csv", ".json")]


def make(context: Context) -> dict[str, Any]:
    from hba_ray.curation.convert import convert
    from hba_ray.data.atlas import Drop, build_index
    from hba_ray.data.toy import build_toy

    spec, root = context.spec.atlas, context.folder / "rows"
    facts: dict[str, Any] = {}
    layout = None
    drops: list[Drop] = []
    with progress("atlas", total=None):
        if spec.source == "toy":
            layout = "jsonl" if spec.format == "jsonl" else "parquet"
            build_toy(spec.toy, root, layout)
        elif spec.source == "released":
            root = Path(spec.root or "").absolute()
        else:
            card = convert(spec, root, context.spec.seed)
            facts["card"], drops = card.to_json(), list(card.drops)
        index = build_index(spec, root, layout)
    index.save(context.folder)
    return {**facts, "counts": index.counts(), "drops": count_drops([*drops, *index.drops])}


def notes(spec: ExperimentSpec, facts: Mapping[str, Any]) -> list[str]:
    said = []
    withheld = [name for name in ("audio", "video", "image") if name not in spec.atlas.modalities]
    if withheld:
        said.append(f"Withheld from the model: {', '.join(withheld)}.")
    if spec.atlas.limit is not None:
        said.append(f"Only the first {spec.atlas.limit} rows of each dataset in each split were used.")
    for count in facts.get("card", {}).get("counts", ()):
        reasons = "; ".join(f"{difference['rows']:+d} {difference['reason']}" for difference in count["differences"])
        published = f", Table 7: {count['published']}" if count["published"] is not None else ""
        said.append(
            f"{count['dataset']} {count['split']}: {count['rows']} rows converted{published}" + (f" ({reasons})" if reasons else "") + "."
        )
    return said
