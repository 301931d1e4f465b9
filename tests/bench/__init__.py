"""Speed of the parts that matter, as ratios measured side by side in one run: `make bench`.

Each module has `measure() -> dict[str, float | str]`; goals and how they are met are printed beside.
"""
