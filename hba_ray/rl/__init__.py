"""Reinforcement learning: rewards, advantages, and verl, on the Ray that everything else runs on.

Four modules import verl at their top, since only verl imports them: platform, plugin, rollouts, trainer.
"""
