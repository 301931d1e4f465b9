"""The columns of predictions are listed once, and every record holds all of them."""

import pyarrow as pa

from hba_ray.data.predictions import ROW_COLUMNS, SCHEMA, asked_columns, make_record, row_columns
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS
from hba_ray.evaluation import scores
from hba_ray.training import states

ROW = Row("s", "c", DATASETS["cremad"], "<audio>\nHow does it sound?", "Sad.", "sad", {"audio": (b"a",)})


def test_a_record_has_the_columns_of_the_table_and_no_others():
    record = make_record(asked_columns(ROW, "a prompt"), predicted="sad", probability=0.5)
    assert record.keys() == set(SCHEMA.names)
    (read,) = pa.Table.from_pylist([record], schema=SCHEMA).to_pylist()
    assert read == record
    assert (read["question"], read["answer"], read["response"]) == ("How does it sound?", None, None)


def test_what_is_true_of_a_row_is_its_label_or_else_its_answer():
    assert row_columns(ROW) == {"sample_id": "s", "clip_id": "c", "dataset": "cremad", "task": "EMO", "true": "sad"}
    question = Row("s", "c", DATASETS["mimeqa"], "Why?", "To win.", None)
    assert row_columns(question)["true"] == "To win."


def test_stored_states_and_scores_name_a_row_by_the_same_columns():
    assert tuple(states.SCHEMA.names[: len(ROW_COLUMNS)]) == ROW_COLUMNS == scores.COLUMNS[: len(ROW_COLUMNS)]
