"""The columns of a predictions table. They are listed here only; whoever makes, stores or scores predictions takes them from here.

A record is one row of such a table as a dict. Tables hold people's texts; `without_texts` takes those of sensitive datasets out.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from hba_ray.data.prompts import prompt_hash, question_of
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS

Columns = dict[str, str | None]
"""Name of a text column -> its value in one row."""

ROW_COLUMNS = ("sample_id", "clip_id", "dataset", "task", "true")
"""What the atlas says of a row, before any model sees it. `task` is the task's id; `true` the label, or the answer of an open question."""
PROMPT_COLUMNS = ("question", "prompt_hash")
"""`question` is what the row asks, without the marks of its clips; `prompt_hash` names the text that the model was given."""
MODEL_COLUMNS = ("predicted", "otherwise", "answer", "response")
"""`predicted` is the class; for open questions it is null and `answer` holds the text. Both are null where nothing could be read.
`otherwise` is the class that the other rule of `evaluate.matching` reads in the response of a model without heads.
`response` is all that a model without heads wrote; `answer` is then the answer in it, also where that is no class of the dataset."""

TEXT_COLUMNS = ("question", "answer", "response", "detail")
"""Columns of predictions and of a judge's verdicts that hold texts; of open questions `true` does, too."""
NOT_SHOWN = "(not shown)"
"""Stands for a text of a sensitive dataset."""

SCHEMA = pa.schema(
    [(name, pa.string()) for name in (*ROW_COLUMNS, *MODEL_COLUMNS, *PROMPT_COLUMNS)] + [("probability", pa.float32()), ("cut", pa.bool_())]
)
"""`probability` is that of the predicted class, by models with heads. `cut` says of what a model wrote whether it ended at the limit
of tokens and not by itself; it is null where a head has answered."""


def row_columns(row: Row) -> Columns:
    """The values of `ROW_COLUMNS`."""
    true = row.answer if row.label is None else row.label
    return dict(zip(ROW_COLUMNS, (row.sample_id, row.clip_id, row.dataset.id, row.dataset.task.id, true), strict=True))


def asked_columns(row: Row, prompt: str) -> Columns:
    """The values of `ROW_COLUMNS` and `PROMPT_COLUMNS`: all that a record holds before the model has answered.

    Args:
        row: as the atlas has it, without the instructions around its prompt.
        prompt: the text that the model is given, chat template included.
    """
    return {**row_columns(row), **dict(zip(PROMPT_COLUMNS, (question_of(row), prompt_hash(prompt)), strict=True))}


def make_record(
    asked: Columns,
    *,
    predicted: str | None = None,
    otherwise: str | None = None,
    answer: str | None = None,
    response: str | None = None,
    probability: float | None = None,
    cut: bool | None = None,
) -> dict[str, Any]:
    """A whole record: what `asked_columns` gave, and what the model made of it."""
    said = dict(zip(MODEL_COLUMNS, (predicted, otherwise, answer, response), strict=True))
    return {**asked, **said, "probability": probability, "cut": cut}


def without_texts(table: pa.Table) -> pa.Table:
    """Predictions or verdicts with NOT_SHOWN in place of all texts of sensitive datasets; classes, ids and numbers stay."""
    datasets = [DATASETS[name] for name in table["dataset"].to_pylist()]
    for name in (name for name in (*TEXT_COLUMNS, "true") if name in table.column_names):
        hides = [dataset.sensitive and (name != "true" or dataset.task.is_open) for dataset in datasets]
        values = [NOT_SHOWN if hidden and text is not None else text for hidden, text in zip(hides, table[name].to_pylist(), strict=True)]
        field = table.field(name)
        table = table.set_column(table.column_names.index(name), field, pa.array(values, field.type))
    return table
