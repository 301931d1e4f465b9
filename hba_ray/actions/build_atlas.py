"""`hba atlas build`: the rows of a spec, of all its corpora, as one atlas in a released layout, with a card of where they come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hba_ray.actions.card import README, Card, as_json, as_markdown, make_card
from hba_ray.actions.describe import make_atlas
from hba_ray.progress import progress
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.sections.own import OF_AN_ATLAS, in_words
from hba_ray.store.folders import write_text
from hba_ray.store.roots import CARD

if TYPE_CHECKING:
    from hba_ray.data.build import Target


def build_atlas(spec: ExperimentSpec, target: Target, *, workers: int, say: Callable[[str], None]) -> Card:
    """Does the atlas step where it is not done, and writes its rows into a folder, beside them a card in both its forms.

    Declarations of a user's own datasets come with them, so that the folder is read again as any released atlas.

    Args:
        workers: parts that are written at a time.
        say: takes a line for people.

    Raises:
        HbaError: the rows, a clip or the folder is not what it should be; parts that are written stay.
    """
    from hba_ray.data.build import build

    made = make_atlas(spec, say)
    with progress("atlas build", total=len(made.index.table)) as bar:
        written = build(made.index, target, made.step.fingerprint, workers=workers, progress=bar.advance)
    card = make_card(spec, made, layout=target.layout, written=written)
    if spec.atlas.own:
        write_text(target.folder / OF_AN_ATLAS, in_words(spec.atlas.own))
    write_text(target.folder / CARD, as_json(card))
    write_text(target.folder / README, as_markdown(card))
    return card
