"""OmniSapiens: the Qwen2.5-Omni thinker, seven classifier heads, what is trained, and its checkpoints."""
