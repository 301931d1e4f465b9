"""The `grpo` section: the paper's numbers, and combinations that cannot run are refused with both numbers."""

import pytest
from pydantic import ValidationError

from hba_ray.specs import ExperimentSpec, GrpoSpec, HarpoSpec, RewardSpec, fingerprint


def experiment(**sections) -> ExperimentSpec:
    return ExperimentSpec.model_validate({"name": "x", "atlas": {"source": "toy"}, "stages": ["grpo"], **sections})


def test_defaults_are_the_papers_numbers():
    grpo = GrpoSpec()
    assert (grpo.algorithm, grpo.rollouts, grpo.lr, grpo.kl, grpo.init) == ("grpo", 5, 5e-7, 0, "backbone")
    assert (grpo.epochs, grpo.batch, grpo.mini_batch, grpo.micro_batch, grpo.validate_every) == (10, 256, 128, 2, 5)
    assert (grpo.prompt_tokens, grpo.response_tokens) == (4096, 4096)
    assert (grpo.reward.accuracy_weight, grpo.reward.format_weight, grpo.reward.similarity_weight) == (1, 0.2, 0.5)


def test_the_paper_fits_on_its_eight_gpus():
    assert experiment(compute={"workers": 8, "gpus_per_worker": 1}).grpo == GrpoSpec()


def test_compat_authors_takes_the_released_settings_and_keeps_what_the_spec_says():
    spec = experiment(compat="authors", stages=["sft", "grpo"], grpo={"batch": 64, "reward": {"format_weight": 0.3}})
    grpo = spec.grpo
    assert (grpo.init, grpo.epochs, grpo.batch, grpo.mini_batch, grpo.lr, grpo.validate_every) == ("sft", 5, 64, 8, 1e-6, None)
    assert (grpo.reward.format_rule, grpo.reward.answer_from, grpo.reward.similarity_range) == ("all_or_nothing", "chain", "clipped")
    assert (grpo.reward.format_weight, grpo.harpo.defects) == (0.3, "released")


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"grpo": {"batch": 10, "mini_batch": 4}}, "batch 10 is not a multiple of mini_batch 4"),
        ({"grpo": {"init": "sft"}}, "no stage 'sft' comes before 'grpo' in ['grpo']"),
        ({"grpo": {"init": "sft"}, "stages": ["grpo", "sft"]}, "no stage 'sft' comes before 'grpo'"),
        ({"compute": {"workers": 3}}, "grpo.mini_batch x grpo.rollouts = 640 is not a multiple of grpo.micro_batch x compute.workers = 6"),
        ({"compute": {"workers": 4}, "grpo": {"nodes": 3}}, "compute.workers 4 is not a multiple of grpo.nodes 3"),
        ({"compute": {"workers": 4}, "grpo": {"tensor_parallel": 8}}, "compute.workers 4 is not a multiple of grpo.tensor_parallel 8"),
        ({"grpo": {"algorithm": "ppo"}}, "'grpo', 'rloo' or 'harpo'"),
        ({"grpo": {"rollouts": 1}}, "greater than or equal to 2"),
    ],
)
def test_what_cannot_run_is_refused(sections, says):
    with pytest.raises(ValidationError) as refused:
        experiment(**sections)
    assert says in str(refused.value)


def test_batches_of_grpo_are_free_where_grpo_is_no_stage():
    assert experiment(stages=["sft"], compute={"workers": 8, "micro_batch": 1}, grpo={"init": "sft", "rollouts": 3})


def test_batches_of_sft_are_free_where_sft_is_no_stage():
    assert experiment(compute={"workers": 5, "micro_batch": 2}, grpo={"mini_batch": 256})


def test_a_reward_without_weight_is_refused():
    nothing = {"accuracy_weight": 0, "format_weight": 0, "similarity_weight": 0}
    with pytest.raises(ValidationError, match="every weight of the reward is 0"):
        RewardSpec(**nothing)
    assert not RewardSpec(similarity_weight=0).needs_encoder
    assert RewardSpec(**nothing, formula="harpo").needs_encoder


def test_a_box_that_nothing_asks_for_is_not_read():
    with pytest.raises(ValidationError, match="asks for no box"):
        GrpoSpec(prompts="plain")
    assert GrpoSpec(prompts="plain", reward={"answer_from": "chain"})


@pytest.mark.parametrize("bounds", [(0, 2), (2, 3), (0.5, 0.9), (1, 0.5)])
def test_bounds_that_leave_out_one_are_refused(bounds):
    with pytest.raises(ValidationError, match="the lower lies in"):
        HarpoSpec(task_bounds=bounds)


def test_how_the_machine_does_it_names_no_result():
    def name(**fields) -> str:
        return fingerprint(GrpoSpec(**fields).identity())

    assert name() == name(micro_batch=4, nodes=2, tensor_parallel=2, rollout_memory=0.3, save_every=7, log_rollouts=0, validation_rows=9)
    assert name() == name(harpo={"strength": 2})
    assert name(algorithm="harpo") != name(algorithm="harpo", harpo={"strength": 2})
    assert len({name(), name(lr=1e-6), name(verl={"actor_rollout_ref.actor.grad_clip": 0.5}), name(reward={"format_weight": 0.1})}) == 4
