"""Decodes images to pixels, whatever their depth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from hba_ray.data.media.files import opened
from hba_ray.data.media.sizes import frame_size
from hba_ray.errors import BadMedia

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_WHITE_IS_ZERO = 0
"""Value of TIFF's photometric interpretation."""


def decode_image(clip: bytes | Path, max_pixels: int, *, where: str, min_pixels: int = 0) -> np.ndarray:
    """An image as uint8 RGB [3, H, W], turned as its EXIF orientation says, sized by `frame_size`.

    Grey images of 9 to 16 bits are scaled by the range of their bits, and those of floats from 0 to 1.

    Raises:
        BadMedia: not an image that Pillow reads, damaged, or of numbers whose black and white nobody states: 32-bit integers,
            and floats outside 0 to 1.
    """
    with opened(clip, "image", where) as (file, _):
        try:
            image = Image.open(file, formats=_FORMATS)
            tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
            picture = _eight_bits(ImageOps.exif_transpose(image), tags, where).convert("RGB")
        except (SyntaxError, Image.DecompressionBombError) as cause:  # Pillow's own way to report a broken file
            raise BadMedia(where, f"the image cannot be decoded: {cause}", reason="corrupt image") from cause
        height, width = frame_size(picture.height, picture.width, max_pixels, min_pixels)
        return np.ascontiguousarray(np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC)).transpose(2, 0, 1))


def _eight_bits(image: Image.Image, tags: Mapping[int, Any], where: str) -> Image.Image:
    """The image, scaled to 8 bits where it has more, since Pillow's own conversion cuts all values off at 255.

    Args:
        tags: of a TIFF file.
    """
    if image.mode[0] not in "IF":
        return image
    values_HW = np.asarray(image).astype(np.float64)
    if image.mode.startswith("I;"):
        white = 2.0 ** tags.get(BITSPERSAMPLE, (16,))[0] - 1
    elif image.mode == "F" and values_HW.min() >= 0 and values_HW.max() <= 1:
        white = 1.0
    else:
        numbers = "floats" if image.mode == "F" else "integers of 32 bits"
        what = f"the image holds {numbers} from {values_HW.min():g} to {values_HW.max():g}, and nothing says which of them is white"
        raise BadMedia(where, what, "save it with 8 or 16 bits, or as floats from 0 to 1", reason="image of unknown range")
    grey_HW = values_HW / white
    if tags.get(PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO:
        grey_HW = 1 - grey_HW
    return Image.fromarray((grey_HW * 255).round().astype(np.uint8))
