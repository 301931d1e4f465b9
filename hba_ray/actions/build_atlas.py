"""`hba atlas build`: the rows of a spec, of all its corpora, as one atlas in a released layout, with a card of where they come from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hba_ray import __version__
from hba_ray.data.tasks import DATASETS, SPLITS
from hba_ray.progress import progress
from hba_ray.specs import ExperimentSpec, identity_values
from hba_ray.steps.base import Context, Draft
from hba_ray.steps.inputs.atlas import AtlasResult, AtlasSteps
from hba_ray.steps.run import do_step
from hba_ray.store.folders import Storage, write_text

if TYPE_CHECKING:
    from hba_ray.data.build import Target, Written

CARD = "card.json"


def build_atlas(spec: ExperimentSpec, target: Target, *, workers: int, say: Callable[[str], None]) -> list[Written]:
    """Does the atlas step where it is not done, writes its rows into a folder, and a card beside them.

    Args:
        workers: parts that are written at a time.
        say: takes a line for people.

    Returns:
        what each file holds.

    Raises:
        HbaError: the rows, a clip or the folder is not what it should be; parts that are written stay.
    """
    from hba_ray.data.build import build

    draft = Draft(spec, Storage(spec.compute.storage))
    AtlasSteps().plan(draft)
    step = draft["atlas"]
    do_step(Context(spec, step, {}), say)
    index = Context(spec, step, {step.name: step}).whole_index
    with progress("atlas build", total=len(index.table)) as bar:
        written = build(index, target, step.fingerprint, workers=workers, progress=bar.advance)
    card = _card(spec, step.result(), written) | {"fingerprint": step.fingerprint, "layout": target.layout}
    write_text(target.folder / CARD, json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    return written


def counts_of(written: Sequence[Written]) -> list[dict[str, Any]]:
    """Of each dataset and split: rows, rows published (Table 7), rows of each label."""
    found = []
    for dataset in (name for name in DATASETS if any(name in part.rows for part in written)):
        published = DATASETS[dataset].counts or (None, None, None)
        for split, expected in zip(SPLITS, published, strict=True):
            its = [part for part in written if part.split == split]
            labels: dict[str, int] = {}
            for label, rows in ((label, rows) for part in its for label, rows in part.labels.get(dataset, {}).items()):
                labels[label] = labels.get(label, 0) + rows
            rows = sum(part.rows.get(dataset, 0) for part in its)
            found.append({"dataset": dataset, "split": split, "rows": rows, "published": expected, "labels": labels})
    return found


def _card(spec: ExperimentSpec, result: AtlasResult, written: Sequence[Written]) -> dict[str, Any]:
    """Where the rows come from, by which rules, and how many there are."""
    return {
        "name": spec.name,
        "made_by": f"hba_ray {__version__}",
        "seed": spec.seed,
        "rules": identity_values(spec.atlas, exclude={"media", "modalities", "toy", "root", "held_out", "train_also"}),
        "sources": [identity_values(part, exclude={"root"}) for part in spec.atlas.parts],
        "counts": counts_of(written),
        "conversions": [card for card in (result.card, *result.cards) if card is not None],
        "dropped": result.drops,
        "dropped_when_written": {part.name: part.dropped for part in written if part.dropped},
        "put_right": result.changes,
        "leaks": result.leaks,
        "files": [{"name": part.name, "rows": sum(part.rows.values()), "bytes": part.bytes} for part in written],
    }
