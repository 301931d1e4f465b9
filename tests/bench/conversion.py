"""Converting metadata: 100,000 rows read, split, checked and written as jsonl. Goals: <= 60 s on two cores, <= 600 MB of memory.

Two corpora of invented texts: utterances with two tasks and official splits from a table, and questions with repeated ids from JSON
lines. Each is converted in a process of its own, whose peak memory includes all that it imports.

Then clips are written into parquet shards, four at a time, of a small atlas and of one four times as large: memory should not grow.
"""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROWS = 100_000
TEXT = "she he they because wants to leave stay with a friend who laughs about the letter before dinner was late again"
_CONVERT = """
import resource, sys
from pathlib import Path
from hba_ray.convert.conversion import convert
from hba_ray.specs import AtlasSpec
card = convert(AtlasSpec(source=sys.argv[1], root=sys.argv[2]), Path(sys.argv[3]))
print(sum(count.rows for count in card.counts), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
_BUILD = """
import resource, sys
from pathlib import Path
from hba_ray.data.atlas import build_index
from hba_ray.data.build import Target, build
from hba_ray.specs import AtlasSpec
root = Path(sys.argv[1])
parts = build(build_index(AtlasSpec(root=str(root)), root), Target(root / "built", part_bytes=25 << 20), "bench")
print(sum(part.bytes for part in parts), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
CLIP, CLIPS, FILES = 256 << 10, (800, 3200), 64
"""Bytes of a clip, clips of the two atlases, and files that they are."""


def measure() -> Iterator[dict[str, float | str]]:
    for source, write in (("meld", write_utterances), ("siq2", write_questions)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write(folder)
            seconds, rows, peak = converted(source, folder)
            if rows != ROWS:
                raise RuntimeError(f"{rows} rows were converted, not {ROWS}")
            yield {
                f"seconds to convert {ROWS} rows of {source} (goal <= 60)": seconds,
                f"peak memory of it, MB (goal <= 600), {source}": peak / 1e6,
            }
    for clips in CLIPS:
        with tempfile.TemporaryDirectory() as name:
            write_clips(Path(name), clips)
            seconds, size, peak = timed(_BUILD, name)
            yield {
                f"seconds to write {size / 1e6:.0f} MB of parquet shards with their clips": seconds,
                f"peak memory of it, MB, {size / 1e6:.0f} MB of shards": peak / 1e6,
            }


def converted(source: str, folder: Path) -> tuple[float, int, int]:
    """Seconds, rows, and bytes of peak memory of a conversion, the start of its process included."""
    return timed(_CONVERT, source, folder, folder / "atlas")


def timed(program: str, *words: str | Path) -> tuple[float, int, int]:
    """Seconds of a program that prints two numbers last, and these."""
    started = time.perf_counter()
    told = subprocess.run([sys.executable, "-c", program, *words], check=True, capture_output=True, text=True)
    first, second = map(int, told.stdout.split()[-2:])
    return time.perf_counter() - started, first, second


def write_clips(folder: Path, rows: int) -> None:
    """Rows of one clip each, in the released jsonl. More files than a row group has rows, which would else hold one of them once."""
    for number in range(FILES):
        (folder / f"{number}.wav").write_bytes(random.Random(number).randbytes(CLIP))
    with (folder / "train.jsonl").open("w", encoding="utf-8") as stream:
        for number in range(rows):
            row = {"problem": f"<audio>\n{_sentence(number)}", "answer": "sad", "dataset": "tess", "audios": [f"{number % FILES}.wav"]}
            stream.write(json.dumps({**row, "sample_id": str(number), "clip_id": str(number)}) + "\n")


def write_utterances(folder: Path) -> None:
    """Half as many utterances as rows: each gives a row of sentiment and one of emotion."""
    emotions = (("joy", "positive"), ("sadness", "negative"), ("neutral", "neutral"), ("anger", "negative"))
    for split, share in (("train", 0.7), ("dev", 0.1), ("test", 0.2)):
        with (folder / f"{split}_sent_emo.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(("Sr No.", "Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID"))
            for number in range(round(ROWS / 2 * share)):
                emotion, sentiment = emotions[number % len(emotions)]
                writer.writerow((number, _sentence(number), "Ann", emotion, sentiment, 1000 + number // 10, number % 10))


def write_questions(folder: Path) -> None:
    for split, share in (("train", 0.85), ("val", 0.15)):
        with (folder / f"qa_{split}.json").open("w", encoding="utf-8") as stream:
            for number in range(round(ROWS * share)):
                choices = [_sentence(number + place) for place in range(4)]
                row = {
                    "qid": f"q{number // 2}",
                    "q": _sentence(number),
                    "vid_name": f"{split}_{number // 6}",
                    "ans_corr": choices[number % 4],
                }
                row |= {"answer_idx": number % 4, **{f"a{place}": text for place, text in enumerate(choices)}}
                stream.write(json.dumps(row) + "\n")


def _sentence(number: int) -> str:
    """Some twelve words, others for another number."""
    words = TEXT.split()
    return " ".join(words[(number * step + step) % len(words)] for step in range(1, 12)) + f" {number}."
