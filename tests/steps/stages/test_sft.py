"""What a stage of supervised training says of itself."""

from pathlib import Path

from hba_ray.runs.plan import plan
from hba_ray.runs.run import run_experiment
from tests.helpers.experiments import small_experiment


def test_training_whose_every_step_was_at_a_rate_of_zero_says_that_it_learnt_nothing(tmp_path: Path):
    rare = plan(small_experiment(tmp_path, sft__epochs=1, sft__batch=512, sft__warmup_steps=5))
    said = " ".join(run_experiment(rare, lambda line: None).report.notes)
    assert "SFT learnt nothing: it took 1 optimiser step, and warm-up begins at a learning rate of 0; lower the rows" in said
    usual = plan(small_experiment(tmp_path))
    assert "learnt nothing" not in " ".join(run_experiment(usual, lambda line: None).report.notes)
