"""Reports as Markdown, JSON and terminal tables: a golden file, and every number read back."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from hba_ray.data.tasks import DATASETS, TASKS
from hba_ray.errors import DataError
from hba_ray.evaluation.metrics import ClassScore
from hba_ray.evaluation.scores import DatasetScore, Scores, TaskScore
from hba_ray.report.model import Report, RunFacts
from hba_ray.report.sheets import MISSING
from hba_ray.report.tables import read_json, render_json, render_markdown, terminal_table

GOLDEN = Path(__file__).parent / "golden" / "report.md"
FACTS = RunFacts(
    model="Qwen/Qwen2.5-Omni-7B",
    seed=3,
    fingerprint="0123456789ab",
    versions={"torch": "2.11.0", "hba_ray": "0.1.0"},
    rows_used={"siq2": {"train": 5562, "test": 875}, "cremad": {"train": 5209, "validation": 1116, "test": 4}},
    rows_dropped={"cremad": {"unknown label": 2, "missing file": 1}},
)


def arm(emotion: float | None, answers: float | None) -> Scores:
    """Two datasets; the emotion rows are missing altogether where `emotion` is None."""
    rows, found, majority = (0, None, None) if emotion is None else (4, 1.0, 0.5)
    classes = (ClassScore("anger", found, found, found, rows), ClassScore("fear", None, None, None, 0))
    return Scores(
        (
            DatasetScore("cremad", "EMO", "mean_weighted_accuracy", emotion, rows, rows, majority, "anger", 0.542, classes),
            DatasetScore("siq2", "SOC", "exact_match", answers, 875, 875, None, None, 0.257, ()),
        ),
        (
            TaskScore("EMO", "mean_weighted_accuracy", ("cremad",) if rows else (), emotion, majority, 0.542 if rows else None),
            TaskScore("SOC", "exact_match", ("siq2",), answers, None, 0.257),
        ),
    )


REPORT = Report("SFT on two datasets", {"zero-shot": arm(None, 0.0), "sft": arm(0.5417, 1 / 3)}, FACTS, ("One seed.",))
TINY = dataclasses.replace(REPORT, facts=dataclasses.replace(FACTS, model="tiny"))


def table(markdown: str, title: str) -> list[dict[str, str]]:
    """The rows of the table under a heading, by column."""
    section = markdown.split(f"## {title}\n")[1].split("\n## ")[0]
    header, _, *rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in section.splitlines() if line.startswith("|")]
    return [{name.strip(): cell.strip() for name, cell in zip(header, row, strict=True)} for row in rows]


def terminal(report: Report, width: int = 200) -> str:
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(terminal_table(report))
    return capture.get()


def test_the_golden_report():
    assert render_markdown(REPORT) == GOLDEN.read_text(encoding="utf-8")


def test_on_data_that_the_paper_does_not_know_no_published_model_is_named():
    def unpublished(scores: Scores) -> Scores:
        datasets = tuple(dataclasses.replace(score, published=None) for score in scores.datasets)
        return dataclasses.replace(scores, datasets=datasets, tasks=tuple(dataclasses.replace(one, published=None) for one in scores.tasks))

    adapted = dataclasses.replace(unpublished(arm(0.5, 0.5)), published_model="OmniSapiens-7B BAM")
    toy = dataclasses.replace(TINY, scores={"sft": unpublished(arm(0.5, 0.25)), "sft+bam": adapted})
    assert "OmniSapiens" in render_markdown(TINY) and "OmniSapiens" not in render_markdown(toy)


def test_equal_reports_are_equal_files():
    again = read_json(render_json(REPORT))
    assert again == REPORT
    assert render_json(again) == render_json(REPORT)
    assert render_markdown(again) == render_markdown(REPORT)


def test_a_missing_score_is_an_en_dash_and_a_zero_is_a_zero():
    emotion, answers = [row for row in table(render_markdown(REPORT), "Scores per dataset") if row["Arm"] == "zero-shot"]
    assert (emotion["Score"], emotion["Difference"]) == (MISSING, MISSING)
    assert (answers["Score"], answers["Majority"]) == ("0.000", MISSING)


def test_judged_answers_are_footnoted_and_never_subtracted():
    markdown = render_markdown(REPORT)
    for title in ("Scores per task", "Scores per dataset"):
        judged = [row for row in table(markdown, title) if row["Metric"] == "exact_match"]
        assert {(row["Published OmniSapiens-7B SFT"], row["Difference"]) for row in judged} == {("0.257 †", MISSING)}
        assert "† Published: accuracy by a language-model judge" in markdown.split(f"## {title}")[1].split("\n## ")[0]


def test_a_report_without_judged_answers_has_no_footnote():
    scores = REPORT.scores["sft"]
    plain = Report("One", {"sft": Scores(scores.datasets[:1], scores.tasks[:1])}, FACTS)
    assert "†" not in render_markdown(plain) + terminal(plain)


def test_a_tiny_model_says_so_in_its_title_and_gets_no_difference():
    markdown = render_markdown(TINY)
    assert "a tiny random model: it checks the machinery and gives no verdict against the paper" in markdown.splitlines()[0]
    assert "a tiny random model" in terminal(TINY).splitlines()[0]
    for title in ("Scores per task", "Scores per dataset"):
        rows = table(markdown, title)
        assert all("Difference" not in row for row in rows)
        assert rows[1]["Published OmniSapiens-7B SFT"] == "0.542"
    assert "Difference" not in terminal(TINY)
    assert "a tiny random model" not in render_markdown(REPORT)


def test_the_warning_is_in_the_stored_title_once():
    again = read_json(render_json(TINY))
    assert again.title == TINY.title
    assert again.title.count("a tiny random model") == 1


def test_arms_beside_different_published_models_are_told_apart():
    other = dataclasses.replace(REPORT.scores["sft"], published_model="OmniSapiens-7B BAM")
    markdown = render_markdown(dataclasses.replace(REPORT, scores={"sft": REPORT.scores["sft"], "bam": other}))
    assert "Published: OmniSapiens-7B SFT beside sft; OmniSapiens-7B BAM beside bam." in markdown
    assert "Published" in table(markdown, "Scores per task")[0]


def test_the_terminal_shows_what_the_markdown_shows_but_for_what_says_nothing():
    shown = [re.split(r"\s{2,}", line.strip()) for line in terminal(REPORT).splitlines()]
    empty = {"95% interval"}
    unsaid = {"Scores per task": empty, "Scores per dataset": {*empty, "Metric", "Counted"}}  # all rows count; tasks name their metric
    for title, names in unsaid.items():
        for row in table(render_markdown(REPORT), title):
            assert [cell for name, cell in row.items() if name not in names] in shown, row
    assert "Counted:" not in terminal(REPORT)


def test_the_terminal_counts_rows_those_that_were_dropped_too_and_ends_with_the_notes():
    shown = [re.split(r"\s{2,}", line.strip()) for line in terminal(REPORT).splitlines()]
    for title, names in {"Rows used": ("cremad", "siq2"), "Rows dropped": ("cremad", "cremad")}.items():
        rows = table(render_markdown(REPORT), title)
        assert [row["Dataset"] for row in rows] == list(names) and all(list(row.values()) in shown for row in rows)
    assert shown[-1] == ["One seed."]
    whole = dataclasses.replace(REPORT, facts=dataclasses.replace(FACTS, rows_dropped={}))
    assert "Rows used" in terminal(whole) and "Rows dropped" not in terminal(whole)


def test_numbers_are_never_broken_over_lines_on_a_screen_of_a_hundred_characters():
    scores = {}
    for number, (name, arm) in enumerate(REPORT.scores.items()):
        datasets = tuple(dataclasses.replace(score, interval=(0.125, 0.875), counted=score.rows - 1) for score in arm.datasets)
        tasks = tuple(dataclasses.replace(score, interval=(0.25, 0.75)) for score in arm.tasks)
        scores[f"{name}: bam.streams=[pose, acoustic] seed={number}"] = Scores(datasets, tasks)
    shown = terminal(dataclasses.replace(REPORT, scores=scores), width=100)
    assert shown.count("0.125 to 0.875") == shown.count("0.250 to 0.750") == 4
    assert max(map(len, shown.splitlines())) <= 100 and "…" not in shown


def test_text_of_others_cannot_break_a_table_or_become_markup():
    facts = dataclasses.replace(FACTS, rows_dropped={"cremad": {"<video> | [red]\nlost": 1}})
    report = Report("a <b>\ntitle", {"[bold]a|b": REPORT.scores["sft"]}, facts)
    markdown = render_markdown(report)
    assert markdown.startswith("# a &lt;b&gt; title\n")
    assert table(markdown, "Rows dropped") == [{"Dataset": "cremad", "Reason": r"&lt;video&gt; \| [red] lost", "Rows": "1"}]
    assert "[bold]a|b" in terminal(report)


def test_nothing_dropped_is_said_and_a_split_without_rows_is_missing():
    markdown = render_markdown(dataclasses.replace(REPORT, facts=dataclasses.replace(FACTS, rows_dropped={})))
    assert "## Rows dropped\n\nNone.\n" in markdown
    assert {row["Dataset"]: row["validation"] for row in table(markdown, "Rows used")} == {"cremad": "1116", "siq2": MISSING}


@pytest.mark.parametrize("text", ["", "{}", '{"title": "a", "scores": {}, "facts": {"model": "tiny"}}'])
def test_json_that_is_no_report_is_refused_with_its_place(text):
    with pytest.raises(DataError, match=r"^old\.json: not a report"):
        read_json(text, where="old.json")


PATIENT = settings(deadline=None)
SHARE = st.none() | st.floats(0, 1)


@st.composite
def reports(draw: st.DrawFn) -> Report:
    def scores() -> Scores:
        datasets = draw(st.lists(st.sampled_from(list(DATASETS.values())), unique_by=lambda dataset: dataset.id))
        return Scores(
            tuple(
                DatasetScore(
                    dataset.id,
                    dataset.task.id,
                    "exact_match" if dataset.task.is_open else dataset.task.metric,
                    draw(SHARE),
                    draw(st.integers(0, 10**6)),
                    0,
                    draw(SHARE),
                    None,
                    draw(SHARE),
                    tuple(ClassScore(label, draw(SHARE), draw(SHARE), draw(SHARE), 1) for label in dataset.labels[:2]),
                )
                for dataset in datasets
            ),
            tuple(
                TaskScore(task.id, "exact_match" if task.is_open else task.metric, (), draw(SHARE), draw(SHARE), draw(SHARE))
                for task in draw(st.lists(st.sampled_from(list(TASKS.values())), unique_by=lambda task: task.id))
            ),
        )

    return Report("Random", {name: scores() for name in ("first", "second")}, FACTS)


def text(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


@PATIENT
@given(reports())
def test_numbers_in_the_markdown_are_those_of_the_json(report):
    markdown, stored = render_markdown(report), read_json(render_json(report))
    for title, key, part in (("Scores per task", "Task", "tasks"), ("Scores per dataset", "Dataset", "datasets")):
        cells = {(row[key], row["Arm"]): row for row in table(markdown, title)} if f"## {title}\n\nNone." not in markdown else {}
        expected = {(getattr(one, key.lower()), arm): one for arm, scores in stored.scores.items() for one in getattr(scores, part)}
        assert cells.keys() == expected.keys()
        for place, one in expected.items():
            row = cells[place]
            assert (row["Score"], row["Majority"]) == (text(one.value), text(one.majority))
            assert row["Published OmniSapiens-7B SFT"].removesuffix(" †") == text(one.published)
            if one.value is None or one.published is None or one.metric == "exact_match":
                assert row["Difference"] == MISSING
            else:
                assert float(row["Difference"]) == pytest.approx(one.value - one.published, abs=5.1e-4)
                assert row["Difference"] != "-0.000"
