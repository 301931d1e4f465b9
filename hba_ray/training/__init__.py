"""Supervised training: SFT (loop, hooks, DeepSpeed, launch on Ray Train) and BAM (states, sources, the adapters' loop)."""
