"""Reinforcement learning: rewards, advantages, and verl's settings. verl is imported inside functions only."""
