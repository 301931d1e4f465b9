"""The size in which pictures are shown to the vision tower."""

from __future__ import annotations

from math import ceil, sqrt

PATCH = 28
"""Sides of a frame are multiples of this: two by two patches of 14 pixels make one visual token."""
SHORTEST_SIDE = 2 * PATCH


def frame_size(height: int, width: int, max_pixels: int, min_pixels: int = 0) -> tuple[int, int]:
    """(H, W) of a picture scaled down to `max_pixels`: multiples of 28, at least 56, as near to its shape as these allow.

    One of fewer than `min_pixels` is enlarged to them and up to the next multiples, as the released code does (vision_utils.py).

    >>> frame_size(720, 1280, 147_456), frame_size(120, 160, 147_456, min_pixels=147_456)
    ((280, 504), (336, 448))
    """
    least = min(min_pixels, max_pixels)
    if max(1, round(height / PATCH)) * max(1, round(width / PATCH)) * PATCH**2 < least:
        scale = sqrt(least / (height * width))
        return ceil(height * scale / PATCH) * PATCH, ceil(width * scale / PATCH) * PATCH
    scale = min(1.0, sqrt(max_pixels / (height * width)))
    rounded = round if round(height / PATCH) * round(width / PATCH) * PATCH**2 <= max_pixels else int
    short, long = (max(SHORTEST_SIDE, rounded(side * scale / PATCH) * PATCH) for side in sorted((height, width)))
    if short * long > max_pixels:  # a strip, whose short side was raised
        long = max(SHORTEST_SIDE, max_pixels // short // PATCH * PATCH)
    return (short, long) if height <= width else (long, short)
