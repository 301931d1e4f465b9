"""Supervised stages: the loop, its hooks, DeepSpeed, and the launch on Ray Train."""
