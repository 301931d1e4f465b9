"""From predictions tables to scores: right numbers, right company, nothing invented, nothing lost."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import pyarrow as pa
import pytest

from hba_ray.data.tasks import DATASETS
from hba_ray.errors import DataError
from hba_ray.evaluation.scores import COLUMNS, Scores, majority_label, score_predictions


def predictions(**groups: Sequence[tuple[str, str | None]]) -> pa.Table:
    """Dataset id -> (truth, prediction) pairs, as a predictions table."""
    rows = []
    for dataset, pairs in groups.items():
        task = DATASETS[dataset].task
        for place, (truth, guess) in enumerate(pairs):
            column, other = ("answer", "predicted") if task.is_open else ("predicted", "answer")
            sample = {"sample_id": f"{dataset}-{place}", "clip_id": f"clip-{place}", "dataset": dataset, "task": task.id, "true": truth}
            rows.append(sample | {column: guess, other: None})
    schema = pa.schema([(name, pa.string()) for name in (*COLUMNS, "answer")])
    return pa.Table.from_pylist(rows, schema=schema)


EMOTIONS = [("anger", "anger"), ("anger", "sad"), ("sad", "sad"), ("happy", "calm")]
EMOTION_SCORE = (3 / 4 + 5 / 6 + 1 / 2) / 3
SARCASM = [("sarcasm", "sarcasm"), ("not sarcasm", None)]
ANSWERS = [("He waves", "he waves "), ("A wall", "a door"), ("A rope", None)]


def only(scores: Scores, dataset: str):
    (score,) = [score for score in scores.datasets if score.dataset == dataset]
    return score


def test_each_dataset_has_its_tasks_metric_and_published_score():
    scores = score_predictions(predictions(cremad=EMOTIONS, mmsd=SARCASM), {})
    assert [(s.dataset, s.task, s.metric, s.rows, s.published) for s in scores.datasets] == [
        ("cremad", "EMO", "mean_weighted_accuracy", 4, 0.542),
        ("mmsd", "SAR", "weighted_f1", 2, 0.624),
    ]
    assert only(scores, "cremad").value == pytest.approx(EMOTION_SCORE)
    assert only(scores, "mmsd").value == pytest.approx(0.5)


def test_a_task_is_the_mean_over_its_datasets_and_not_over_rows():
    scores = score_predictions(predictions(cremad=EMOTIONS, tess=[("sad", "sad"), ("fear", "fear")] * 10), {})
    (task,) = scores.tasks
    assert task.datasets == ("tess", "cremad")
    assert task.value == pytest.approx((EMOTION_SCORE + 1) / 2)
    assert task.published == pytest.approx((0.542 + 0.658) / 2)


def test_open_answers_are_exact_match_and_never_judge_accuracy():
    table = predictions(mimeqa=ANSWERS)
    score = only(score_predictions(table, {}), "mimeqa")
    assert (score.metric, score.value, score.rows) == ("exact_match", pytest.approx(1 / 3), 3)
    assert score.published == 0.121
    assert not score.is_comparable
    assert score.classes == ()


VERDICTS: dict[tuple[str, str], bool | None] = {("mimeqa", f"mimeqa-{place}"): said for place, said in enumerate((True, True, None))}


def test_judged_answers_are_the_papers_measure_and_keep_exact_match_beside():
    scores = score_predictions(predictions(mimeqa=ANSWERS, mmsd=SARCASM), {"mimeqa": {"He waves": 5}}, verdicts=VERDICTS)
    score = only(scores, "mimeqa")
    assert (score.metric, score.value, score.unreadable, score.exact_match) == (
        "judge_accuracy",
        pytest.approx(2 / 3),
        1,
        pytest.approx(1 / 3),
    )
    assert score.is_comparable and score.published == 0.121
    assert score.majority is None, "nobody has judged the constant answer"
    assert only(scores, "mmsd").metric == "weighted_f1"
    assert scores.tasks[-1].metric == "judge_accuracy"


def test_an_open_answer_that_nobody_judged_is_an_error():
    with pytest.raises(DataError, match="'mimeqa-2' was not judged"):
        score_predictions(predictions(mimeqa=ANSWERS), {}, verdicts={key: VERDICTS[key] for key in list(VERDICTS)[:2]})


def test_a_score_has_the_interval_of_its_clips():
    pairs = [("sarcasm", "sarcasm"), ("not sarcasm", "not sarcasm"), ("sarcasm", None), ("not sarcasm", "sarcasm")] * 10
    score = only(score_predictions(predictions(mmsd=pairs), {}), "mmsd")
    assert score.interval is not None and score.value is not None
    assert score.clips == 40 and score.interval[0] < score.value < score.interval[1]
    tenfold = predictions(mmsd=pairs * 10).to_pandas()
    tenfold["clip_id"] = [f"clip-{row % 40}" for row in range(400)]
    again = only(score_predictions(tenfold, {}), "mmsd")
    assert (again.clips, again.rows) == (40, 400)
    assert again.interval == pytest.approx(score.interval, abs=0.02), "ten copies of a row are no more evidence than one"


def test_a_tasks_interval_is_narrower_than_those_of_its_datasets():
    half = [("sad", "sad"), ("fear", "sad"), ("fear", "fear")] * 10
    scores = score_predictions(predictions(cremad=half, tess=half), {})
    (task,) = scores.tasks
    widths = [score.interval[1] - score.interval[0] for score in scores.datasets if score.interval]
    assert task.interval is not None and len(widths) == 2
    assert task.interval[1] - task.interval[0] < 0.85 * min(widths), "datasets are resampled independently"


def test_probabilities_give_a_calibration_error_and_sentiment_its_scales():
    frame = predictions(meld_senti=[("negative", "negative"), ("positive", "neutral")]).to_pandas()
    assert only(score_predictions(frame, {}), "meld_senti").calibration_error is None
    frame["probability"] = [0.75, 0.75]
    score = only(score_predictions(frame, {}), "meld_senti")
    assert score.calibration_error == pytest.approx(0.25)
    assert [(scale.classes, scale.accuracy) for scale in score.scales] == [(3, 0.5), (2, 0.5)]


def test_ten_thousand_rows_take_seconds():
    import time

    started = time.process_time()
    score_predictions(predictions(mosei_senti=[("negative", "positive"), ("weakly positive", "positive")] * 5000), {})
    assert time.process_time() - started < 10


def test_a_dataset_without_rows_is_missing_and_left_out_of_its_tasks_mean():
    scores = score_predictions(predictions(cremad=EMOTIONS), {}, datasets=["cremad", "tess", "siq2"])
    tess = only(scores, "tess")
    assert (tess.value, tess.rows, tess.majority) == (None, 0, None)
    emotion, social = scores.tasks
    assert (emotion.datasets, emotion.value, emotion.published) == (("cremad",), only(scores, "cremad").value, 0.542)
    assert (social.datasets, social.value, social.published) == ((), None, None)


def test_all_neutral_is_missing_and_says_that_no_row_counts():
    score = only(score_predictions(predictions(meld_senti=[("neutral", "positive")] * 3), {"meld_senti": {"positive": 1}}), "meld_senti")
    assert (score.value, score.majority, score.rows, score.counted) == (None, None, 3, 0)


def test_the_majority_comes_from_training_and_is_scored_on_the_test_rows():
    table = predictions(meld_senti=[("negative", "negative"), ("positive", "positive"), ("positive", "neutral"), ("neutral", "neutral")])
    score = only(score_predictions(table, {"meld_senti": {"neutral": 50, "negative": 30, "positive": 20}}), "meld_senti")
    # negative for all three counted rows: precision 1/3, recall 1, F1 = 1/2, weight 1/3
    assert (score.majority_label, score.majority, score.counted) == ("negative", pytest.approx(1 / 6), 3)


def test_the_majority_of_emotions_is_one_half_whatever_it_is():
    score = only(score_predictions(predictions(cremad=EMOTIONS), {"cremad": {"fear": 9, "sad": 3}}), "cremad")
    assert (score.majority_label, score.majority) == ("fear", 0.5)


def test_without_training_counts_there_is_no_majority():
    score = only(score_predictions(predictions(cremad=EMOTIONS), {"tess": {"sad": 4}}), "cremad")
    assert (score.majority, score.majority_label) == (None, None)


@pytest.mark.parametrize(
    ("task", "counts", "label"),
    [
        ("SEN", {"neutral": 90, "positive": 5, "weakly negative": 3, "highly negative": 4}, "negative"),
        ("SEN", {"neutral": 90}, None),
        ("EMO", {"neutral": 90, "sad": 5}, "neutral"),
        ("SAR", {"sarcasm": 5, "not sarcasm": 5}, "not sarcasm"),
        ("SAR", {"sarcasm": 0}, None),
    ],
)
def test_the_majority_label_is_one_that_the_metric_counts(task, counts, label):
    assert majority_label(task, counts) == label
    assert majority_label(task, dict(reversed(counts.items()))) == label


def test_classes_are_listed_in_the_datasets_order_with_their_support():
    classes = only(score_predictions(predictions(cremad=EMOTIONS), {}), "cremad").classes
    assert [one.label for one in classes] == list(DATASETS["cremad"].labels)
    assert sum(one.support for one in classes) == 4


def test_split_surprise_becomes_classes_of_its_own():
    table = predictions(tess=[("positive surprise", "positive surprise"), ("negative surprise", "positive surprise")])
    score = only(score_predictions(table, {}), "tess")
    assert [(one.label, one.support) for one in score.classes[-2:]] == [("positive surprise", 1), ("negative surprise", 1)]


def test_pandas_and_arrow_and_any_row_order_give_the_same_scores():
    table = predictions(mmsd=SARCASM, cremad=EMOTIONS, mimeqa=ANSWERS)
    counts = {"mmsd": {"sarcasm": 3}}
    expected = score_predictions(table, counts)
    assert score_predictions(table.to_pandas(), counts) == expected
    assert score_predictions(table.to_pandas().sample(frac=1, random_state=1), counts) == expected
    encoded = table.set_column(2, "dataset", table["dataset"].dictionary_encode())
    assert score_predictions(encoded, counts) == expected


def test_scores_survive_json():
    table = predictions(mmsd=SARCASM, cremad=EMOTIONS, mimeqa=ANSWERS)
    scores = score_predictions(table, {"mmsd": {"sarcasm": 3}}, datasets=["tess"], published_model="OmniSapiens-7B BAM")
    assert Scores.from_json(scores.to_json()) == scores
    assert Scores.from_json(scores.to_json()).to_json() == scores.to_json()


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"datasets": [{"dataset": 3}], "tasks": []}', '{"datasets": [], "tasks": [], "more": 1}']
)
def test_json_that_is_no_scores_is_refused_with_its_place(text):
    with pytest.raises(DataError, match=r"^old\.json: not scores"):
        Scores.from_json(text, where="old.json")


def changed(column: str, value: object) -> pd.DataFrame:
    frame = predictions(cremad=EMOTIONS).to_pandas().astype(object)
    frame.loc[1, column] = value
    return frame


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("dataset", "cremadd", "unknown dataset"),
        ("dataset", None, "unknown dataset"),
        ("task", "SEN", "wrong task"),
        ("true", "calm", "unknown label"),
        ("true", None, "missing value"),
        ("sample_id", "cremad-0", "duplicate sample"),
        ("sample_id", None, "missing value"),
        ("predicted", 3, "wrong type"),
        ("predicted", b"sad", "wrong type"),
    ],
)
def test_a_row_that_does_not_belong_is_refused(column, value, reason):
    with pytest.raises(DataError) as caught:
        score_predictions(changed(column, value), {}, where="predictions.parquet")
    assert caught.value.reason == reason
    assert caught.value.where.startswith("predictions.parquet")


def test_a_missing_column_is_refused():
    table = predictions(mimeqa=ANSWERS)
    with pytest.raises(DataError, match="clip_id"):
        score_predictions(table.drop_columns("clip_id"), {})
    with pytest.raises(DataError, match="'answer' is missing"):
        score_predictions(table.drop_columns("answer"), {})


def test_numbers_are_not_labels():
    table = predictions(cremad=EMOTIONS)
    with pytest.raises(DataError, match="column 'predicted' is int64, not text"):
        score_predictions(table.set_column(5, "predicted", pa.array([0, 1, 1, 0])), {})


def test_no_predictions_at_all_is_an_empty_score():
    assert score_predictions(predictions(), {}) == Scores((), ())


def test_the_other_rule_of_matching_is_scored_too_where_responses_were_read():
    frame = predictions(cremad=[("sad", "sad"), ("fear", "fear")]).to_pandas()
    assert only(score_predictions(frame, {}), "cremad").other_matching is None
    frame["response"], frame["otherwise"] = ["**Sad.**", "fear"], [None, "fear"]
    score = only(score_predictions(frame, {}), "cremad")
    assert score.value == 1.0 and score.other_matching == pytest.approx(0.75)


def test_a_dataset_outside_the_benchmark_is_in_no_mean_of_its_task_unless_it_is_alone():
    emotions = score_predictions(predictions(cremad=EMOTIONS, iemocap=[("sad", "sad"), ("fear", "fear")]), {}).tasks[0]
    assert emotions.datasets == ("cremad",) and emotions.value == pytest.approx(EMOTION_SCORE)
    assert score_predictions(predictions(iemocap=EMOTIONS), {}).tasks[0].value == pytest.approx(EMOTION_SCORE)
