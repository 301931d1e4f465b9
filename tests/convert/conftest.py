"""Small public files in our own sentences, and the real ones where a variable names their folder."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

MELD_HEADER = (
    "Sr No.",
    "Utterance",
    "Speaker",
    "Emotion",
    "Sentiment",
    "Dialogue_ID",
    "Utterance_ID",
    "Season",
    "Episode",
    "StartTime",
    "EndTime",
)
MELD_ROWS = {
    "train_sent_emo.csv": [
        ("Where did the ladder go?", "surprise", "negative", "0", "0"),
        ("You\u2019re early — how lovely!", "surprise", "positive", "0", "1"),
        ("It is Tuesday.", "neutral", "neutral", "0", "2"),
        ("I passed, “just”.", "joy", "positive", "1", "0"),
        ("The clip of this one is known to be broken.", "anger", "negative", "125", "3"),
    ],
    "dev_sent_emo.csv": [
        ("My tea is cold, again.", "sadness", "negative", "0", "0"),
        ("So is the clip of this one.", "disgust", "negative", "110", "7"),
    ],
    "test_sent_emo.csv": [("Something moved in the shed.", "fear", "negative", "0", "0")],
}
CLIP_FOLDERS = {
    "train_sent_emo.csv": "train_splits",
    "dev_sent_emo.csv": "dev_splits_complete",
    "test_sent_emo.csv": "output_repeated_splits_test",
}


def write_meld(folder: Path) -> Path:
    for file, rows in MELD_ROWS.items():
        with open(folder / file, "w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(MELD_HEADER)
            for number, (said, emotion, sentiment, dialogue, utterance) in enumerate(rows, 1):
                writer.writerow((number, said, "Ann", emotion, sentiment, dialogue, utterance, 1, 1, "00:00:01,000", "00:00:02,000"))
    return folder


def write_meld_clips(folder: Path) -> Path:
    """A file for every utterance but the validation clip that the publication lacks."""
    for file, rows in MELD_ROWS.items():
        (folder / CLIP_FOLDERS[file]).mkdir()
        for *_, dialogue, utterance in rows:
            if (dialogue, utterance) != ("110", "7"):
                (folder / CLIP_FOLDERS[file] / f"dia{dialogue}_utt{utterance}.mp4").write_bytes(f"{file}{dialogue}{utterance}".encode())
    return folder


def mustard_entries() -> dict[str, dict[str, object]]:
    """Twelve entries; 2_1 goes on where 2_0 ends, and 2_2 repeats a long line of 2_1 in other capitals."""
    entries: dict[str, dict[str, object]] = {}
    for number in range(9):
        entries[f"1_{number}"] = {
            "utterance": f"Number {number} is exactly the weather I ordered.",
            "speaker": "BEN",
            "context": ["It rains.", f"For {number} days in a row now,\nwithout a pause."],
            "context_speakers": ["ANN", "ANN"],
            "show": "OWN",
            "sarcasm": number % 2 == 0,
        }
    entries["2_0"] = _scene([], "Who left the gate open last night?", False)
    entries["2_1"] = _scene(["Who left the gate open last night?"], "A very careful burglar, I suppose.", True)
    entries["2_2"] = _scene(["a very careful burglar, I suppose!"], "It rains.", False)
    return entries


def _scene(context: list[str], utterance: str, sarcasm: bool) -> dict[str, object]:
    return {
        "utterance": utterance,
        "speaker": "EVE",
        "context": context,
        "context_speakers": ["ANN"] * len(context),
        "show": "OWN",
        "sarcasm": sarcasm,
    }


def write_mustard(folder: Path) -> Path:
    (folder / "sarcasm_data.json").write_text(json.dumps(mustard_entries()), encoding="utf-8")
    return folder


CREMAD_NAMES = tuple(
    f"{actor}_{sentence}_{emotion}_XX" for actor in range(1001, 1011) for sentence in ("DFA", "TSI") for emotion in ("ANG", "NEU", "SAD")
)


def write_cremad(folder: Path) -> Path:
    lines = ['"Stimulus_Number","Filename"', *(f'{number},"{name}"' for number, name in enumerate(CREMAD_NAMES, 1))]
    (folder / "SentenceFilenames.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def public_data() -> Path:
    """Folder of public metadata, one folder a corpus: meld, mustard, cremad, cmu_mosei, social_iq2, intentqa_shaped."""
    if "HBA_PUBLIC_DATA" not in os.environ:
        pytest.skip("HBA_PUBLIC_DATA names no folder of public metadata")
    return Path(os.environ["HBA_PUBLIC_DATA"])


@pytest.fixture
def meld(tmp_path: Path) -> Path:
    return write_meld(tmp_path)


@pytest.fixture
def meld_with_clips(meld: Path) -> Path:
    return write_meld_clips(meld)


@pytest.fixture
def mustard(tmp_path: Path) -> Path:
    return write_mustard(tmp_path)


@pytest.fixture
def cremad(tmp_path: Path) -> Path:
    return write_cremad(tmp_path)
