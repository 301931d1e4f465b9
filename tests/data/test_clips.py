"""Decoded clips are handed to other libraries as they are: no frame is chosen again, and no pixel moves."""

import numpy as np
import pytest
import torch

from hba_ray.data.clips import Clips, as_picture, pixel_scales, process, video_metadata
from hba_ray.models.backbone import load_processor

ASKED = {
    "audio": "<|audio_bos|><|AUDIO|><|audio_eos|>",
    "image": "<|vision_bos|><|IMAGE|><|vision_eos|>",
    "video": "<|vision_bos|><|VIDEO|><|vision_eos|>",
}


@pytest.fixture(scope="module")
def processor(tiny_backbone):
    return load_processor(str(tiny_backbone))


def test_a_picture_has_the_pixels_of_the_decoded_image():
    image_CHW = np.random.default_rng(0).integers(0, 256, (3, 56, 84), dtype=np.uint8)
    picture = as_picture(image_CHW)
    assert picture.size == (84, 56) and np.array_equal(np.asarray(picture), image_CHW.transpose(1, 2, 0))


def test_a_video_says_that_all_its_frames_are_to_be_shown():
    known = video_metadata(4, 2.0)
    assert (known["fps"], known["duration"], known["total_num_frames"]) == (2.0, 2.0, 4)
    assert known["frames_indices"] == [0, 1, 2, 3] and known["do_sample_frames"] is False


def test_sounds_padded_by_a_second_have_the_features_of_sounds_padded_to_five_minutes(processor):
    extractor, noise = type(processor.feature_extractor)(feature_size=128, chunk_length=300), np.random.default_rng(0)
    long = type(processor)(processor.image_processor, processor.video_processor, extractor, processor.tokenizer, processor.chat_template)
    for lengths in ((160_000,), (400, 16_000, 31_999), (15_999,), (48_160, 48_001)):
        clips: Clips = {"audio": [noise.standard_normal(n).astype(np.float32) * 0.1 for n in lengths], "image": [], "video": []}
        made = process(long, [ASKED["audio"] * len(lengths)], clips)
        plain = extractor(clips["audio"], sampling_rate=16_000, padding="max_length", return_attention_mask=True)
        longest = plain["attention_mask"].sum(-1).max()
        assert np.array_equal(made["input_features"].numpy(), plain["input_features"][..., :longest])
        assert np.array_equal(made["feature_attention_mask"].numpy(), plain["attention_mask"][:, :longest])


def test_a_sound_as_long_as_the_extractor_takes_is_whole(processor):
    samples = processor.feature_extractor.n_samples
    clips: Clips = {"audio": [np.full(samples, 0.1, np.float32)], "image": [], "video": []}
    assert process(processor, [ASKED["audio"]], clips)["input_features"].shape[-1] == samples // 160


def test_pixels_that_travel_as_bytes_become_the_floats_of_the_processor(processor):
    noise = np.random.default_rng(1)
    images = [noise.integers(0, 256, (3, height, 56), dtype=np.uint8) for height in (56, 84)]
    videos = [(noise.integers(0, 256, (4, 3, 56, width), dtype=np.uint8), 2.0) for width in (112, 56)]
    asked, clips = [ASKED["image"] * 2 + ASKED["video"] * 2], {"audio": [], "image": images, "video": videos}
    floats, as_bytes = process(processor, asked, clips), process(processor, asked, clips, as_bytes=True)
    assert floats.keys() == as_bytes.keys() and floats["input_ids"] == as_bytes["input_ids"]
    for name, scale in pixel_scales(processor).items():
        assert as_bytes[name].dtype == torch.uint8
        assert torch.equal(scale.floats(as_bytes[name]), floats[name])
