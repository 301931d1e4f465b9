"""The toy atlas: generated rows with real WAV and MP4 clips, small enough for a laptop and learnable by a tiny model.

Four datasets ask four questions, and the answer to each is in one stream alone:

    toy_tone     emotion     the voice: pitch, energy and syllable rate (anger high, happy middle, sad low)
    toy_nod      sentiment   the picture: a face nods (positive), shakes (negative) or keeps still (neutral)
    toy_words    sarcasm     the words of the remark
    toy_answers  open        the picture, answered in one of three sentences

The other streams do not depend on the label, and neither do the prompts of toy_tone and toy_nod. The
face is a public-domain photograph that ships with scikit-image. The same seed gives the same bytes.

Shapes: T samples or frames, H and W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

import av
import numpy as np
import soundfile
from numpy.random import Generator

from hba_ray.data.media import SAMPLE_RATE
from hba_ray.data.rows import MEDIA_COLUMNS, Row
from hba_ray.data.tasks import DATASETS, SPLITS, Dataset
from hba_ray.data.writers import write_jsonl, write_parquet
from hba_ray.specs.sections.atlas import TOY_SHARES, ToySpec

DATASET_SHARES = {"toy_tone": 17 / 48, "toy_nod": 17 / 48, "toy_words": 8 / 48, "toy_answers": 6 / 48}
SIGNATURE_SHARES: dict[str, dict[tuple[str, ...], float]] = {
    "toy_tone": {("audio",): 0.7, ("video", "audio"): 0.3},
    "toy_nod": {("video",): 0.7, ("video", "audio"): 0.3},
    "toy_words": {(): 0.6, ("audio",): 0.2, ("video",): 0.2},
    "toy_answers": {("video",): 0.7, ("video", "audio"): 0.3},
}
"""Dataset -> modalities besides text -> share of its rows. The stream with the answer is always there."""

Key = TypeVar("Key")
Motion = Literal["nod", "shake", "still"]
MOTIONS: tuple[Motion, ...] = ("nod", "shake", "still")
TONES = {"anger": (380.0, 0.50, 6.0), "happy": (220.0, 0.28, 4.0), "sad": (120.0, 0.14, 2.5)}
"""Label -> fundamental in Hz, peak amplitude, syllables per second."""

TARGETS: dict[str, dict[str, tuple[str, float]]] = {
    "toy_tone": {"anger": ("anger", 0.45), "happy": ("happy", 0.30), "sad": ("sad", 0.25)},
    "toy_nod": {"positive": ("nod", 0.45), "negative": ("shake", 0.30), "neutral": ("still", 0.25)},
    "toy_words": {"not sarcasm": ("sincere", 0.60), "sarcasm": ("ironic", 0.40)},
    "toy_answers": {
        "The person nods in agreement.": ("nod", 0.45),
        "The person shakes the head to refuse.": ("shake", 0.30),
        "The person looks ahead without moving.": ("still", 0.25),
    },
}
"""Dataset -> target -> (the tone, motion or kind of remark that shows it, share of the rows)."""

LINES = ("The parcel is on the table.", "It will be noon before we leave.", "They painted the door again.", "I was told about the meeting.")
REMARKS = {
    "sincere": ("Thank you, that helped me a lot.", "I enjoyed the walk this morning.", "The soup tastes good today."),
    "ironic": ("Oh great, the train is late yet again.", "Wow, what a genius plan, as always.", "Sure, because waiting is so much fun."),
}

FRAMES, FRAMES_PER_SECOND, SIDE = 16, 8, 128
SWING = 0.085
"""Largest displacement of the face, as a share of the picture's side."""
SWING_HERTZ = 0.8


def toy_rows(spec: ToySpec) -> dict[str, list[Row]]:
    """Split -> rows, in the shares 70 : 15 : 15. In each split all datasets, targets and signatures have their own shares."""
    return {split: list(_split_rows(spec, split)) for split in SPLITS}


def build_toy(spec: ToySpec, folder: Path, layout: Literal["parquet", "jsonl"]) -> None:
    """Writes the toy atlas below `folder` in one of the two released layouts."""
    write = {"parquet": write_parquet, "jsonl": write_jsonl}[layout]
    for split in SPLITS:
        write(_split_rows(spec, split), folder, split)


def speak(tone: str, rng: Generator) -> bytes:
    """A WAV file with about 1.2 s of a voice-like sound: harmonics under three formants, vibrato, syllables, a little noise."""
    fundamental, loudness, syllables = (value * (1 + 0.06 * rng.uniform(-1, 1)) for value in TONES[tone])
    time_T = np.arange(int(rng.uniform(1.0, 1.4) * SAMPLE_RATE)) / SAMPLE_RATE
    vibrato_T = 0.012 * np.sin(2 * np.pi * (5 * time_T + rng.random()))
    phase_T = 2 * np.pi * np.cumsum(fundamental * (1 + vibrato_T)) / SAMPLE_RATE
    voice_T = np.zeros_like(time_T)
    for harmonic in range(1, int(3000 / fundamental) + 1):
        frequency = harmonic * fundamental
        envelope = sum(gain * np.exp(-(((frequency - centre) / 350) ** 2)) for centre, gain in ((500, 1.0), (1400, 0.5), (2500, 0.25)))
        voice_T += (envelope + 0.5 / harmonic) * np.sin(harmonic * phase_T + 2 * np.pi * rng.random())
    voice_T *= 0.25 + 0.75 * np.sin(np.pi * (syllables * time_T + rng.random())) ** 2
    samples_T = loudness * voice_T / np.abs(voice_T).max() + 0.004 * rng.standard_normal(len(time_T))
    file = io.BytesIO()
    soundfile.write(file, samples_T.astype(np.float32), SAMPLE_RATE, "PCM_16", format="WAV")
    return file.getvalue()


def film(motion: Motion, rng: Generator) -> bytes:
    """An MP4 file of two seconds, 16 frames of 128 x 128: a face that nods, shakes or keeps still."""
    portrait_HWC = _portrait()
    margin = (len(portrait_HWC) - SIDE) / 2
    start = margin + rng.uniform(-3, 3, size=2)
    direction = np.array({"nod": (1, 0), "shake": (0, 1), "still": (0, 0)}[motion])
    turns = SWING_HERTZ * np.arange(FRAMES) / FRAMES_PER_SECOND + rng.random()
    corners_T2 = np.rint(start + SWING * SIDE * np.sin(2 * np.pi * turns)[:, None] * direction).astype(int)
    light = rng.uniform(0.92, 1.08)
    lit_HWC = np.clip(portrait_HWC * light, 0, 255).astype(np.uint8)
    return _encode([lit_HWC[top : top + SIDE, left : left + SIDE] for top, left in corners_T2])


def _split_rows(spec: ToySpec, split: str) -> Iterator[Row]:
    for number, (name, total) in enumerate(_apportion(spec.rows, DATASET_SHARES).items()):
        rng = np.random.default_rng([spec.seed, SPLITS.index(split), number])
        count = _apportion(total, TOY_SHARES)[split]
        plan = [
            (target, present)
            for present, rows in _apportion(count, SIGNATURE_SHARES[name]).items()
            for target, kept in _apportion(rows, {target: share for target, (_, share) in TARGETS[name].items()}).items()
            for _ in range(kept)
        ]
        for position, index in enumerate(rng.permutation(len(plan))):
            target, present = plan[index]
            yield _row(DATASETS[name], target, present, f"{name}-{split}-{position:04d}", rng)


def _row(dataset: Dataset, target: str, present: tuple[str, ...], name: str, rng: Generator) -> Row:
    carrier = TARGETS[dataset.id][target][0]
    tone = carrier if carrier in TONES else str(rng.choice(list(TONES)))
    motion = carrier if carrier in MOTIONS else MOTIONS[rng.integers(len(MOTIONS))]
    words = str(rng.choice(REMARKS.get(carrier, LINES)))
    make = {"audio": lambda: speak(tone, rng), "video": lambda: film(motion, rng)}  # type: ignore[arg-type]
    return Row(
        sample_id=name,
        clip_id=f"clip-{name}",
        dataset=dataset,
        problem=_problem(dataset, present, words),
        answer=target,
        label=None if dataset.task.is_open else target,
        media={modality: (make[modality](),) for modality in MEDIA_COLUMNS if modality in present},
    )


def _problem(dataset: Dataset, present: tuple[str, ...], words: str) -> str:
    """The prompt, in the form of the paper's Table 3: marks, the words where there are any, what is shown, and the question."""
    shown = " and ".join(f"{'an' if modality == 'audio' else 'a'} {modality} clip" for modality in present)
    choose = f"Choose one of: {', '.join(dataset.labels)}."
    spoken = dataset.id in ("toy_tone", "toy_words")
    given = f"You are given {shown}{' and the words above' if spoken else ''}." if shown else "You are given the words above."
    question = {
        "toy_tone": f"Which emotion does the voice express? {choose}",
        "toy_nod": f"Which sentiment does the head movement express? {choose}",
        "toy_words": f"Is the remark meant as it is said? {choose}",
        "toy_answers": "What does the person do? Answer in one sentence.",
    }[dataset.id]
    return "\n".join([*(f"<{modality}>" for modality in present), *([words] if spoken else []), f"{given} {question}"])


def _apportion(total: int, shares: dict[Key, float]) -> dict[Key, int]:
    """`total` divided into whole numbers by the given shares, by largest remainder; none is 0 as long as the total suffices."""
    parts = {key: int(total * share) for key, share in shares.items()}
    by_need = sorted(shares, key=lambda key: (parts[key] > 0, parts[key] - total * shares[key]))
    for key in by_need[: total - sum(parts.values())]:
        parts[key] += 1
    return parts


@cache
def _portrait() -> np.ndarray:
    """The face with room to move: uint8 [H, W, 3], H = W = SIDE plus the swing and the offsets on both sides."""
    from skimage.data import astronaut
    from skimage.transform import resize

    side = SIDE + 2 * (int(SWING * SIDE) + 5)
    head_HWC = astronaut()[0:232, 108:340]
    return (np.asarray(resize(head_HWC, (side, side), anti_aliasing=True)) * 255).astype(np.uint8)


def _encode(frames: list[np.ndarray]) -> bytes:
    """Frames as an MP4; one thread, so that the same frames give the same bytes."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        codec, options = ("libx264", {"preset": "veryfast", "crf": "26"}) if "libx264" in av.codecs_available else ("mpeg4", {})
        stream = container.add_stream(codec, rate=FRAMES_PER_SECOND, options=options)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()
