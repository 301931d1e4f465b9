"""Converting metadata: 100,000 rows read, split, checked and written as jsonl. Goals: <= 60 s on two cores, <= 600 MB of memory.

Two corpora of invented texts: utterances with two tasks and official splits from a table, and questions with repeated ids from JSON
lines. Each is converted in a process of its own, whose peak memory includes all that it imports.
"""

from __future__ import annotations

import csv
import json
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


def converted(source: str, folder: Path) -> tuple[float, int, int]:
    """Seconds, rows, and bytes of peak memory of a conversion, the start of its process included."""
    started = time.perf_counter()
    told = subprocess.run([sys.executable, "-c", _CONVERT, source, folder, folder / "atlas"], check=True, capture_output=True, text=True)
    rows, peak = map(int, told.stdout.split()[-2:])
    return time.perf_counter() - started, rows, peak


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
