"""Speed of the parts that matter, as ratios measured side by side in one run: `make bench`.

Each module has `measure`, which yields figures by their names as soon as it has them; goals stand in the names.
"""
