"""The notebook opens a finished run, shows what is in it, and holds nothing of its own."""

import ast
import re
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from hba_ray.evaluation.scores import DatasetScore
from hba_ray.report.model import TINY_TITLE
from hba_ray.runs.plan import plan
from hba_ray.runs.run import Finished, run_experiment
from hba_ray.store.journal import JournalTracker
from tests.helpers.sft_jobs import small_spec

ROOT = Path(__file__).parents[2]
NOTEBOOK = nbformat.read(ROOT / "notebooks" / "read_a_run.ipynb", as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]


def test_it_is_kept_without_outputs():
    assert CODE and all(not cell.outputs and cell.execution_count is None for cell in CODE)


def test_it_calls_the_package_and_defines_nothing():
    nodes = [node for cell in CODE for node in ast.walk(ast.parse(cell.source))]
    assert not [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda))]
    assert any(isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hba_ray.") for node in nodes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of a few seconds, made in this process."""
    runs = tmp_path_factory.mktemp("checkout") / "runs"
    spec = small_spec(atlas={"toy": {"rows": 80}, "limit": 4}, compute={"storage": str(runs)})
    return run_experiment(plan(spec), say=lambda line: None, tracker=Mock(spec=JournalTracker))


@pytest.fixture(scope="module")
def read(finished: Finished) -> NotebookNode:
    """The notebook after it has read that run, the newest in `runs/` beside the notebook's own folder."""
    with pytest.MonkeyPatch.context() as environ:
        environ.delenv("HBA_RUN", raising=False)
        folder = finished.folder.parents[1] / "notebooks"
        folder.mkdir()
        return NotebookClient(deepcopy(NOTEBOOK), timeout=120, resources={"metadata": {"path": str(folder)}}).execute()


def shown(notebook: NotebookNode, cell: str, kind: str) -> list[str]:
    """All outputs of one MIME type of the cell with this id."""
    outputs = next(one.outputs for one in notebook.cells if one.id == cell)
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


def tables(notebook: NotebookNode, cell: str) -> list[list[list[str]]]:
    """The data frames that a cell shows, as rows of text without header and index."""
    bodies = [html[html.index("<tbody>") :] for html in shown(notebook, cell, "text/html")]
    return [[re.findall("<td>(.*?)</td>", row) for row in re.findall("<tr.*?</tr>", body, re.DOTALL)] for body in bodies]


def class_scores(finished: Finished) -> list[DatasetScore]:
    return [score for score in finished.report.scores["sft"].datasets if score.classes]


@pytest.mark.slow
def test_it_names_the_run_and_says_that_the_model_is_tiny(read: NotebookNode, finished: Finished):
    (title,) = shown(read, "open", "text/markdown")
    assert title.startswith(f"**small{TINY_TITLE}**")
    assert finished.folder.name in title
    (notes,) = shown(read, "notes", "text/markdown")
    assert "optimiser steps" in notes


@pytest.mark.slow
def test_its_scores_are_those_of_the_report(read: NotebookNode, finished: Finished):
    (rows,) = tables(read, "scores")
    scores = finished.report.scores["sft"].datasets
    assert [row[:4] for row in rows] == [[score.dataset, score.task, score.metric, str(score.rows)] for score in scores]
    assert [float(row[5]) for row in rows] == pytest.approx([score.value for score in scores], abs=1e-5)


@pytest.mark.slow
def test_its_learning_curve_has_a_line_for_each_epoch(read: NotebookNode):
    (steps,) = tables(read, "steps")
    assert [row[0].split("-")[0] for row in steps] == ["atlas", "backbone", "sft", "evaluate"]
    (epochs,) = tables(read, "curve")
    assert len(epochs) == 2
    assert all(0 < float(loss) < 1000 for row in epochs for loss in (row[0], row[3]))
    assert epochs[0][-1] == "True", "the first epoch is the best so far"


@pytest.mark.slow
def test_its_confusion_counts_every_row_once(read: NotebookNode, finished: Finished):
    counts = tables(read, "confusion")
    support = [[one.support for one in score.classes] for score in class_scores(finished)]
    assert [[sum(map(int, row)) for row in matrix] for matrix in counts] == support
    assert len(shown(read, "confusion", "text/markdown")) == len(counts) == 3


@pytest.mark.slow
def test_it_shows_wrong_classes_and_open_answers(read: NotebookNode, finished: Finished):
    (wrong,), (answers,) = tables(read, "mistakes"), tables(read, "answers")
    missed = sum(one.support for score in class_scores(finished) for one in score.classes)
    missed -= sum(round((one.recall or 0) * one.support) for score in class_scores(finished) for one in score.classes)
    assert len(wrong) == min(5, missed) > 0
    assert all(true != predicted for _, true, predicted, _ in wrong)
    assert answers and all(sample.startswith("toy_answers") for sample, *_ in answers)


@pytest.mark.slow
def test_the_environment_can_name_another_run(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    other = shutil.copytree(finished.folder, tmp_path / "another")
    monkeypatch.setenv("HBA_RUN", str(other))
    names: dict[str, Any] = {}
    exec(CODE[0].source, names)
    assert names["run"] == other
    assert names["report"] == finished.report


@pytest.mark.slow
def test_the_run_holds_the_files_that_the_readme_names(finished: Finished):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^runs/(\S+)<fingerprint>/ +(.*)$", readme, re.MULTILINE)
    assert len(lines) == 3
    for folder, contents in lines:
        pattern = folder.replace("<name>", finished.report.title.split()[0]) + "*"
        (found,) = finished.folder.parent.glob(pattern)
        files = re.findall(r"[a-z]+\.[a-z]+", contents)
        assert files and not [file for file in files if not (found / file).is_file()]
