"""Atlases with something wrong in them."""

from dataclasses import replace
from pathlib import Path

from hba_ray.data.atlas import AtlasIndex, build_index, read_rows
from hba_ray.data.rows import Row
from hba_ray.data.writers import write_jsonl
from hba_ray.specs import AtlasSpec


def with_broken_clip(jsonl: Path, folder: Path, limit: int = 5) -> tuple[AtlasIndex, str]:
    """The first training rows of each dataset of a toy atlas, the audio of one of them cut off; and the id of that row."""
    source = build_index(AtlasSpec(root=str(jsonl), limit=limit), jsonl)
    rows = [row for row in read_rows(source, source.rows_of("train")) if isinstance(row, Row)]
    broken = next(i for i, row in enumerate(rows) if row.dataset.id == "toy_tone" and row.media.get("audio"))
    clip = rows[broken].media["audio"][0]
    damaged = folder / "broken.wav"
    folder.mkdir(parents=True)
    damaged.write_bytes((clip.read_bytes() if isinstance(clip, Path) else clip)[:30])
    rows[broken] = replace(rows[broken], media={**rows[broken].media, "audio": (damaged,)})
    write_jsonl(rows, folder / "atlas", "train")
    return build_index(AtlasSpec(root=str(folder / "atlas")), folder / "atlas"), rows[broken].sample_id
