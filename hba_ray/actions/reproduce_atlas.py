"""`hba reproduce` for the tables and the figure that describe the atlas: no trial is done, the rows of a spec's atlas are counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hba_ray.actions.describe import make_atlas
from hba_ray.actions.survey import survey_of
from hba_ray.progress import progress
from hba_ray.report.atlas_tables import WITH_LENGTHS, WITH_PROMPTS, atlas_table
from hba_ray.report.beside import AtlasTable
from hba_ray.report.formats import write_named
from hba_ray.report.page import render_atlas_tables
from hba_ray.specs import ExperimentSpec
from hba_ray.store.folders import Storage, write_text


@dataclass(frozen=True)
class ReproducedAtlas:
    """Tables that describe an atlas, and where they are.

    Attributes:
        files: each table as Markdown, CSV, LaTeX and JSON.
        page: all of them with their pictures.
    """

    tables: tuple[AtlasTable, ...]
    files: tuple[Path, ...]
    page: Path


def reproduce_atlas(names: Sequence[str], spec: ExperimentSpec, say: Callable[[str], None]) -> ReproducedAtlas:
    """Sets what the atlas of a spec holds beside what the paper says of its own.

    Args:
        names: of `specs.paper.DESCRIPTIVE`.
        say: takes a line for people.

    Raises:
        HbaError: the files, or a row, are not what they should be.
    """
    made = make_atlas(spec, say)
    wants = set(names)
    with progress("lengths of clips", total=len(made.index.table) if wants & WITH_LENGTHS else 0) as bar:
        survey = survey_of(spec, made, prompts=bool(wants & WITH_PROMPTS), lengths=bool(wants & WITH_LENGTHS), progress=bar.reach)
    tables = tuple(atlas_table(name, survey) for name in names)
    folder = Storage(spec.compute.storage).tables(survey.fingerprint)
    folder.mkdir(parents=True, exist_ok=True)
    files = tuple(file for table in tables for file in write_named(table.document(), folder, table.id))
    page = folder / f"{'-'.join(names)}.html"
    write_text(page, render_atlas_tables(tables))
    return ReproducedAtlas(tables, files, page)
