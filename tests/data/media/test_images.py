"""Images of any depth keep their grey, or are refused where nobody says which number is white."""

import io

import numpy as np
import pytest
from PIL import Image

from hba_ray.data.media import decode_image
from hba_ray.errors import BadMedia


def saved(values_HW: np.ndarray, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values_HW).save(file, format, **options)
    return file.getvalue()


RAMP = np.tile(np.linspace(0, 1, 112), (112, 1))


@pytest.mark.parametrize(
    ("values_HW", "format"),
    [
        ((RAMP * 255).round().astype(np.uint8), "PNG"),
        ((RAMP * 65_535).round().astype(np.uint16), "PNG"),
        ((RAMP * 65_535).round().astype(np.uint16), "TIFF"),
        (RAMP.astype(np.float32), "TIFF"),
    ],
)
def test_a_ramp_of_any_depth_is_the_same_ramp(values_HW, format):
    image = decode_image(saved(values_HW, format), 112 * 112, where="row 1")
    np.testing.assert_allclose(image.astype(float), np.broadcast_to(RAMP * 255, (3, 112, 112)), atol=1)


def test_deep_images_are_turned_by_their_exif_too():
    exif = Image.Exif()
    exif[0x0112] = 3  # by half a turn
    image = decode_image(saved((RAMP * 65_535).astype(np.uint16), "PNG", exif=exif), 112 * 112, where="row 1")
    np.testing.assert_allclose(image[0].astype(float), RAMP[:, ::-1] * 255, atol=1)


@pytest.mark.parametrize("values_HW", [RAMP.astype(np.float32) * 255, RAMP.astype(np.float32) - 0.5, (RAMP * 1000).astype(np.int32)])
def test_numbers_of_unknown_range_are_refused(values_HW):
    with pytest.raises(BadMedia, match="which of them is white") as refused:
        decode_image(saved(values_HW, "TIFF"), 3136, where="row 1")
    assert refused.value.reason == "image of unknown range"
