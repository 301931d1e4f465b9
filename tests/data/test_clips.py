"""Decoded clips are handed to other libraries as they are: no frame is chosen again, and no pixel moves."""

import numpy as np

from hba_ray.data.clips import as_picture, video_metadata


def test_a_picture_has_the_pixels_of_the_decoded_image():
    image_CHW = np.random.default_rng(0).integers(0, 256, (3, 56, 84), dtype=np.uint8)
    picture = as_picture(image_CHW)
    assert picture.size == (84, 56) and np.array_equal(np.asarray(picture), image_CHW.transpose(1, 2, 0))


def test_a_video_says_that_all_its_frames_are_to_be_shown():
    known = video_metadata(4, 2.0)
    assert (known["fps"], known["duration"], known["total_num_frames"]) == (2.0, 2.0, 4)
    assert known["frames_indices"] == [0, 1, 2, 3] and known["do_sample_frames"] is False
