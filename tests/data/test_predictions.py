"""The columns of predictions are listed once, and every record holds all of them."""

import pyarrow as pa

from hba_ray.data.predictions import NOT_SHOWN, ROW_COLUMNS, SCHEMA, asked_columns, make_record, row_columns, without_texts
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS
from hba_ray.evaluation import scores
from hba_ray.steps.results.evaluate import unread
from hba_ray.training import states
from tests.helpers.own_data import sensitive_questions

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


def record(dataset: str, **more: str | None) -> dict[str, object]:
    asked = {
        "sample_id": "s",
        "clip_id": "c",
        "dataset": dataset,
        "task": DATASETS[dataset].task.id,
        "true": "sad",
        "question": "Why?",
        "prompt_hash": "0",
    }
    return make_record(asked, **more)  # type: ignore[arg-type]


def test_the_texts_of_sensitive_datasets_are_taken_out_of_a_table_and_all_else_stays():
    rows = [
        record("mmpsy_anxiety", predicted="anxiety", response="She said so."),
        record("cremad", predicted="sad", response="It is sad."),
        record(sensitive_questions(), answer="She said so."),
    ]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    classes, open_answers = {"question": NOT_SHOWN, "response": NOT_SHOWN}, {"question": NOT_SHOWN, "answer": NOT_SHOWN, "true": NOT_SHOWN}
    shown = without_texts(table)
    assert shown.to_pylist() == [rows[0] | classes, rows[1], rows[2] | open_answers] and shown.schema == table.schema
    verdicts = pa.Table.from_pylist([{"sample_id": "s", "dataset": "diaries", "correct": True, "detail": "It says so, too."}])
    assert without_texts(verdicts).to_pylist() == [{"sample_id": "s", "dataset": "diaries", "correct": True, "detail": NOT_SHOWN}]


def test_no_response_about_a_patient_is_an_example_of_one_that_could_not_be_read():
    assert unread([record("daicwoz", response="She said so."), record("cremad", response="It is.")]) == ["It is."]
