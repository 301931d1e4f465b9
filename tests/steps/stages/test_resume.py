"""What is said before training: where it goes on from, and which shorter run is finished."""

from pathlib import Path
from typing import Any

import pytest

from hba_ray.runs.plan import plan
from hba_ray.runs.run import run_experiment
from hba_ray.specs import ExperimentSpec
from hba_ray.steps.base import Context
from hba_ray.steps.stages.resume import always_zero, begins, mention
from hba_ray.store.folders import Storage, finish
from tests.helpers.experiments import small_experiment
from tests.helpers.journals import ReadableJournal
from tests.helpers.sft_jobs import Cut

TOY = {"source": "toy", "toy": {"rows": 96}, "held_out": ["toy_nod"]}


def context_of(folder: Path, name: str, **sections: Any) -> Context:
    """The context of a step of a spec with this storage."""
    sft = {"batch": 8, **sections.pop("sft", {})}
    stages = ["sft", "bam", "transfer", "grpo"]
    spec = ExperimentSpec.model_validate(
        {
            **{"name": "x", "stages": stages, "atlas": TOY, "model": {"backbone": "tiny"}, "sft": sft},
            **{"compute": {"storage": str(folder), "micro_batch": 2}, **sections},
        }
    )
    earlier = {}
    for step in plan(spec, Storage(folder)).steps:
        if step.name == name:
            return Context(spec, step, earlier)
        earlier[step.name] = step
    raise AssertionError(f"no step {name}")


@pytest.mark.parametrize(
    ("name", "section", "field"),
    [
        ("sft", "sft", "epochs"),
        ("bam", "bam", "epochs"),
        ("transfer toy_nod", "transfer", "epochs"),
        ("grpo", "grpo", "epochs"),
        ("grpo", "grpo", "steps"),
    ],
)
def test_the_longest_finished_run_that_is_only_shorter_is_mentioned(tmp_path: Path, name: str, section: str, field: str):
    def context(length: int, **more: Any) -> Context:
        return context_of(tmp_path, name, **{section: {field: length, **more}})

    assert mention(context(5), f"{section}.{field}", "why") is None
    for length in (2, 3, 6):
        step = context(length).step
        step.folder.mkdir(parents=True)
        finish(step.folder, {})
    said = mention(context(5), f"{section}.{field}", "the reason")
    assert (
        said == f"{name}: the same with {section}.{field}=3 is finished in {context(3).step.folder}; it is not continued, since the reason"
    )
    assert mention(context(5, lr=1e-6), f"{section}.{field}", "why") is None  # another run than those


def test_both_parts_of_staged_training_find_their_shorter_ones(tmp_path: Path):
    staged = {"mode": "staged", "epochs": 2, "answer_epochs": 2}
    first, second = (context_of(tmp_path, name, sft=staged).step for name in ("sft classes", "sft"))
    for step in (first, second):
        step.folder.mkdir(parents=True)
        finish(step.folder, {})
    said = mention(context_of(tmp_path, "sft classes", sft=staged | {"epochs": 3}), "sft.epochs", "why")
    assert said is not None and str(first.folder) in said
    said = mention(context_of(tmp_path, "sft", sft=staged | {"answer_epochs": 4}), "sft.answer_epochs", "why")
    assert said is not None and "sft.answer_epochs=2" in said and str(second.folder) in said


def test_where_a_run_goes_on_is_said_and_so_is_that_it_starts_again(tmp_path: Path):
    log = tmp_path / "metrics.jsonl"
    assert begins("sft", 0, 120, log, "") is None
    log.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert begins("sft", 0, 120, log, "more often") == (
        "sft: an earlier attempt ended at step 2, before its first checkpoint; starts again (more often)"
    )
    assert begins("sft", 40, 120, log, "") == "sft: continues at step 40 of 120"


@pytest.mark.parametrize(("norms", "none"), [([0.0, 0.0], True), ([0.0, 0.1], False), ([], False)])
def test_gradients_that_were_all_zero_are_seen_and_a_log_without_them_says_nothing(norms: list[float], none: bool):
    lines = [{"step": 1, "loss": 1.0}, *({"step": 2, "norm": norm} for norm in norms)]
    assert always_zero(lines, "norm") is none


def test_a_run_says_that_it_goes_on_and_that_a_shorter_one_is_finished(tmp_path: Path, capsys, cut_after):
    """On standard error, where the bar is."""

    def run(epochs: int) -> str:
        run_experiment(plan(small_experiment(tmp_path, sft__epochs=epochs)), lambda line: None, ReadableJournal())
        return capsys.readouterr().err

    assert "continues" not in run(1)
    (short,) = [step for step in plan(small_experiment(tmp_path, sft__epochs=1)).steps if step.name == "sft"]
    per_epoch = short.result().optimizer_steps
    cut_after(per_epoch)
    with pytest.raises(Cut):
        run(3)
    said = capsys.readouterr().err
    assert f"sft: the same with sft.epochs=1 is finished in {short.folder}; it is not continued, since the cosine" in said
    assert f"sft: continues at step {per_epoch} of {3 * per_epoch}" in run(3)
