"""How large a Qwen2.5-Omni is: its weights, what training and sampling need in memory and on disk, and the operations of a row.

Plain arithmetic on numbers of a config.json: neither torch nor weights are loaded.
"""
