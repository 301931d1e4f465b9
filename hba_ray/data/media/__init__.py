"""Decodes clips to arrays: audio to mono at 16 kHz, video to a few evenly spaced frames, images to pixels.

A clip is the bytes of a file or its path. Audio is read by soundfile where that knows the file, else by PyAV, video by PyAV on
one thread, images by Pillow; no ffmpeg program is needed. Memory depends on how much is kept, not on the length of the clip.

Where a file holds several streams of a kind, the one that players choose is read; pictures of a cover are none of them.

A clip that cannot be decoded raises a `BadMedia` with a countable reason: "missing file", "empty file",
"corrupt | truncated | empty audio", "no audio stream", the same for video, "audio too short", "audio out of range", "corrupt image",
"image of unknown range".

Shapes: T frames or samples, C colours or channels, H and W pixels.
"""

from hba_ray.data.media.audio import LONGEST_SECONDS, SAMPLE_RATE, SHORTEST_AUDIO, decode_audio, probe_audio
from hba_ray.data.media.images import decode_image
from hba_ray.data.media.sizes import PATCH, SHORTEST_SIDE, frame_size
from hba_ray.data.media.video import VideoInfo, decode_video, every_frame, probe_video, upright

__all__ = [
    "LONGEST_SECONDS",
    "PATCH",
    "SAMPLE_RATE",
    "SHORTEST_AUDIO",
    "SHORTEST_SIDE",
    "VideoInfo",
    "decode_audio",
    "decode_image",
    "decode_video",
    "every_frame",
    "frame_size",
    "probe_audio",
    "probe_video",
    "upright",
]
