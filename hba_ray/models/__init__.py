"""The models: OmniSapiens (the Qwen2.5-Omni thinker with seven classifier heads), BAM's adapters, and their checkpoints."""
