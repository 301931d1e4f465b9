"""Clips, and a small atlas in which each way for a clip to be bad occurs."""

import io
import json
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from hba_ray.data.toy import film, speak


def wav(seconds: float, rate: int = 16_000, channels: int = 1, seed: int = 0) -> bytes:
    samples = 0.2 * np.random.default_rng(seed).standard_normal((int(seconds * rate), channels))
    file = io.BytesIO()
    soundfile.write(file, samples, rate, "PCM_16", format="WAV")
    return file.getvalue()


def movie(frames: int, fps: int = 10, side: int = 64, sound_seconds: float = 0.0) -> bytes:
    """Frame number n is of brightness 5 n + 20, for n < 45."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        video = container.add_stream("mpeg4", rate=fps)
        video.width = video.height = side
        video.pix_fmt, video.bit_rate = "yuv420p", 8_000_000
        audio = container.add_stream("aac", rate=16_000) if sound_seconds else None
        for number in range(frames):
            picture = np.full((side, side, 3), 5 * number % 225 + 20, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
        if audio is not None:
            tone = 0.3 * np.sin(np.arange(int(16_000 * sound_seconds)) / 10)[None].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            frame.sample_rate = 16_000
            container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return file.getvalue()


def write_rows(folder: Path, rows: list[dict]) -> None:
    """The train split of a jsonl atlas."""
    (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in rows))


def row(name: str, dataset: str = "toy_tone", label: str = "anger", **columns) -> dict:
    return {
        "problem": f"Row {name}: which emotion? anger, happy, sad",
        "answer": label,
        "dataset": dataset,
        "class_label": label,
        "sample_id": name,
        **{column: [] for column in ("images", "videos", "audios", "ext_video_feats", "ext_audio_feats")},
        **columns,
    }


@pytest.fixture
def odd_atlas(tmp_path: Path) -> Path:
    """A jsonl atlas: good clips, one of them twice, and every kind of bad one."""
    folder = tmp_path / "atlas"
    folder.mkdir()
    shipped = io.BytesIO()
    torch.save({"features": np.arange(6373, dtype=np.float32)[None]}, shipped)
    unsafe = io.BytesIO()
    torch.save({"features": io.StringIO("not numbers")}, unsafe)
    rng = np.random.default_rng(0)
    voice, nod = speak("anger", rng), film("nod", rng)
    media = {
        "voice.wav": voice,
        "same_voice.wav": voice,
        "stereo.wav": wav(0.5, 44_100, 2),
        "short.wav": wav(0.03),
        "empty.wav": wav(0.0),
        "nothing.wav": b"",
        "silence.wav": wav(0.2).replace(wav(0.2)[44:], bytes(len(wav(0.2)) - 44)),
        "nod.mp4": nod,
        "cut.mp4": nod[: len(nod) // 2],
        "one_frame.mp4": movie(1),
        "speaks.mp4": movie(10, sound_seconds=1.0),
        "shipped.pt": shipped.getvalue(),
        "unsafe.pt": unsafe.getvalue(),
    }
    for name, content in media.items():
        (folder / name).write_bytes(content)
    rows = [
        row("voice", audios=["voice.wav"]),
        row("same", dataset="toy_nod", label="neutral", audios=["same_voice.wav"]),
        row("stereo", audios=["stereo.wav"]),
        row("short", audios=["short.wav"]),
        row("empty", audios=["empty.wav"]),
        row("nothing", audios=["nothing.wav"]),
        row("silence", audios=["silence.wav"]),
        row("dumb video", videos=["nod.mp4"]),
        row("cut video", videos=["cut.mp4"]),
        row("one frame", videos=["one_frame.mp4"]),
        row("speaking video", videos=["speaks.mp4"]),
        row("text"),
        row("shipped", audios=["voice.wav"], ext_audio_feats=["shipped.pt"]),
        row("unsafe", audios=["voice.wav"], ext_audio_feats=["unsafe.pt"]),
    ]
    write_rows(folder, rows)
    return folder
