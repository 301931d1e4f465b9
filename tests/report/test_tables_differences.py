"""What an arm adds to another: absolute, in per cent, and beside the paper's Table 6."""

from hba_ray.evaluation.scores import DatasetScore, Scores, TaskScore
from hba_ray.report.model import Report, RunFacts
from hba_ray.report.sheets import MISSING
from hba_ray.report.tables import difference_sheets, pairs


def scores(cremad: float | None, tess: float | None, model) -> Scores:
    values = {"cremad": cremad, "tess": tess}
    metric = "mean_weighted_accuracy"
    datasets = tuple(DatasetScore(name, "EMO", metric, value, 4, 4, None, None, None, ()) for name, value in values.items())
    mean = None if cremad is None or tess is None else (cremad + tess) / 2
    return Scores(datasets, (TaskScore("EMO", metric, ("cremad", "tess"), mean, None, None),), model)


def report(before: Scores, after: Scores) -> Report:
    return Report("x", {"sft": before, "sft+bam": after}, RunFacts("Qwen/Qwen2.5-Omni-7B", 0, "0", {}, {}))


def test_a_task_and_its_datasets_have_their_change_beside_the_published_one():
    (sheet,) = difference_sheets(report(scores(0.5, 0.6, "OmniSapiens-7B SFT"), scores(0.6, 0.6, "OmniSapiens-7B BAM")))
    assert sheet.title == "From sft to sft+bam" and sheet.header[2:8] == (
        *("sft", "sft+bam", "Change", "Per cent", "Published SFT", "Published BAM"),
    )
    task, cremad, tess = sheet.rows
    assert task[:6] == ("EMO", "all", "0.550", "0.600", "+0.050", "+9.1")
    assert task[6:] == ("0.631", "0.645", "+0.014", "+2.3"), "the mean over Table 4's five datasets"
    assert cremad == ("EMO", "cremad", "0.500", "0.600", "+0.100", "+20.0", "0.542", "0.548", "+0.006", "+1.1")
    assert tess[2:6] == ("0.600", "0.600", "+0.000", "+0.0")


def test_what_is_missing_is_no_change_of_zero():
    (sheet,) = difference_sheets(report(scores(None, 0.0, "OmniSapiens-7B SFT"), scores(0.6, 0.6, "OmniSapiens-7B BAM")))
    task, cremad, tess = sheet.rows
    assert task[4] == cremad[4] == MISSING and tess[4:6] == ("+0.600", MISSING), "no per cent of nothing"


def test_only_what_adds_to_an_arm_is_set_against_it():
    assert list(pairs(["sft", "grpo", "sft+bam", "sft without media"])) == [("sft", "sft+bam"), ("sft without media", "sft+bam")]
    assert list(pairs(["grpo"])) == []
