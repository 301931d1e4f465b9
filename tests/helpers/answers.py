"""Predictions of two arms, made by hand, with text that tries to break out of a page."""

import pyarrow as pa

from hba_ray.evaluation.pairs import ArmRows

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\x00\u202e"


def table(rows: list[tuple[str, str, str, str, str | None]]) -> pa.Table:
    """(dataset, sample, truth, class or answer, question)."""
    records = []
    for dataset, sample, true, said, question in rows:
        is_open = dataset == "toy_answers"
        records.append(
            {
                **{"dataset": dataset, "sample_id": sample, "clip_id": f"clip-{sample}", "true": true, "question": question},
                **{"predicted": None if is_open else said, "answer": said if is_open else None, "probability": None if is_open else 0.75},
            }
        )
    return pa.Table.from_pylist(records)


def two_arms() -> list[ArmRows]:
    first = [
        ("toy_words", "w1", "sarcasm", "sarcasm", "Meant so?"),
        ("toy_words", "w2", "not sarcasm", "sarcasm", "Meant so?"),
        ("toy_answers", "a1", "The person nods.", HOSTILE, HOSTILE),
    ]
    second = [
        ("toy_words", "w1", "sarcasm", "sarcasm", "Meant so?"),
        ("toy_words", "w2", "not sarcasm", "not sarcasm", "Meant so?"),
        ("toy_answers", "a1", "The person nods.", "the person NODS.", HOSTILE),
    ]
    return [ArmRows("sft", table(first)), ArmRows("grpo", table(second))]
