"""Reinforcement learning by the library verl, on the Ray that everything else runs on: rewards, advantages, and what verl needs of us.

verl reaches our code by names, not by imports. These are all of them; nothing else in this folder is called from outside
but `launch.run_grpo`. Four modules import verl at their top, since only verl imports them: plugin, rollouts, trainer, and
what they import of each other.
"""

from __future__ import annotations

PLUGIN = "hba_ray.rl.plugin"
"""Module that every process of verl imports, by VERL_USE_EXTERNAL_MODULES and the entry point `verl.plugins`: it applies the patches."""
TRAINER = "hba_sync"
"""`trainer.v1.trainer_mode`: `trainer.HbaTrainer` in verl's registry of trainers."""
TRAINER_MODULE = "hba_ray.rl.trainer"
"""Module whose import registers the trainer; `launch` imports it in the process that runs verl."""
DATASET = ("pkg://hba_ray.rl.dataset", "AtlasDataset")
"""`data.custom_cls`: path and name of the dataset that verl reads rows from."""
REWARD = ("pkg://hba_ray.rl.rewards", "compute_score")
"""`reward.custom_reward_function`: path and name of the function that scores a response."""
AGENT, AGENT_LOOP = "hba_clips", "hba_ray.rl.rollouts.ClipLoop"
"""Name in verl's registry of agent loops, which rows ask for, and the class behind it."""
FORKED = ("hba_ray.rl.trainer", "hba_ray.rl.rollouts")
"""Modules that the fork server of verl's processes imports before it forks (`cluster/forkserver.py`, VERL_MODULES)."""

CUT = "cut"
"""Among the parts of a reward: 1 where the response ended at the limit of tokens, else 0; it earns and costs nothing."""
CUT_SHARE, EQUAL_GROUPS = f"reward/{CUT}", "reward/equal_groups"
"""Metrics of a step: the share of its responses that were cut, and of its prompts whose responses all earned the same reward."""
