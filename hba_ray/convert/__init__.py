"""From the public files of a dataset to prompt-target rows: prompts, splits, converters, and the card of a conversion."""
