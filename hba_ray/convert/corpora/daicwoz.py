"""Converter of DAIC-WOZ: interviews by a virtual agent, scored for depression (PHQ-8), in the official split. Rows are sensitive.

Expected in the folder, as its publishers give it: `train_split_Depression_AVEC2017.csv`, `dev_split_Depression_AVEC2017.csv` and
`full_test_split.csv`, which has the scores that `test_split_Depression_AVEC2017.csv` lacks; and the archives unpacked:
`300_P/300_TRANSCRIPT.csv` (separated by tabs) and `300_P/300_AUDIO.wav`, also without a folder for each. A row is a session. Where
there is no sound at all, rows are text-only. No error repeats what somebody said.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hba_ray.convert.base import ConversionRequest, Converted, Sieve, labelled_row, left_out
from hba_ray.convert.discretise import HIGHEST_SCORE, PRESENT_FROM, is_present
from hba_ray.convert.media import clip_file, first_file
from hba_ray.convert.tables import column, identifier, number, read_table
from hba_ray.convert.wording import DatasetPrompts, question
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS, SPLITS
from hba_ray.errors import DataError
from hba_ray.specs.sections.atlas import OnBadRow
from hba_ray.specs.sections.corpora import DaicwozSpec

FILES = {
    "train": "train_split_Depression_AVEC2017.csv",
    "validation": "dev_split_Depression_AVEC2017.csv",
    "test": "full_test_split.csv",
}
TEST_WITHOUT_LABELS = "test_split_Depression_AVEC2017.csv"
PERSON, BINARY, SCORE = ("Participant_ID", "participant_ID"), ("PHQ8_Binary", "PHQ_Binary"), ("PHQ8_Score", "PHQ_Score")
"""Columns: their name in the training file, and that in the test files."""
INTERRUPTED = {"373": (395.0, 428.0), "444": (286.0, 387.0)}
"""Session -> seconds in which somebody came in; lines of this time are left out."""
AGENT, PARTICIPANT = "Ellie", "Participant"

_SYNC = re.compile(r"[<\[]sync\w*[>\]]", re.IGNORECASE)
_EXPANDED = re.compile(r"\S+\s*\((.+)\)")
"""A prompt of the agent as its name, with its words in brackets."""


def convert(request: ConversionRequest) -> Converted:
    """The rows of DAIC-WOZ; see `read_daicwoz`."""
    return read_daicwoz(request.folder, request.spec.corpora.daicwoz, on_bad_row=request.spec.on_bad_row, prompts=request.prompts)


def read_daicwoz(
    folder: Path, rules: DaicwozSpec | None = None, *, on_bad_row: OnBadRow = "fail", prompts: DatasetPrompts | None = None
) -> Converted:
    """The rows of DAIC-WOZ, session by session.

    Raises:
        DataError: names file, line and reason, and nothing that was said.
    """
    rules = rules or DaicwozSpec()
    sieve = Sieve("daicwoz", on_bad_row)
    has_sound = any(True for _ in folder.glob("*_AUDIO.wav")) or any(True for _ in folder.glob("*/*_AUDIO.wav"))
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    findings: list[str] = []
    seen: set[str] = set()
    for split, file in FILES.items():
        for where, record in read_table(folder / file, (PERSON, BINARY, SCORE)):
            with sieve.row(split):
                session = identifier(record, PERSON[0], where)
                if session in seen:
                    raise DataError(where, f"session {session} occurs twice", reason="duplicate row")
                label, contradiction = _label(record, session, where, rules)
                row = _row(folder, session, label, has_sound, rules, where, prompts)
                rows[split].append(row)
                seen.add(session)
                findings += contradiction
    findings += _other_test_sessions(folder, {row.clip_id.removeprefix("daicwoz-") for row in rows["test"]})
    stated = f"a PHQ-8 score of {PRESENT_FROM['PHQ-8']}" if rules.label == "score" else "the column PHQ8_Binary"
    lines = (
        "The agent's lines are left out." if rules.participant_only else "Transcripts hold the agent's lines, whose choice tells the label."
    )
    return Converted(rows, sieve.drops, left_out(sieve.drops, SPLITS), [f"Depression by {stated}.", lines], findings)


def _label(record: dict[str, Any], session: str, where: str, rules: DaicwozSpec) -> tuple[str, list[str]]:
    """The label of a session, and a sentence where score and binary column disagree."""
    score = number(record.get(SCORE[0]), SCORE[0], where, lowest=0, highest=HIGHEST_SCORE["PHQ-8"])
    binary = number(record.get(BINARY[0]), BINARY[0], where, lowest=0, highest=1)
    by_score, by_column = is_present("PHQ-8", score), binary >= 0.5
    chosen = by_score if rules.label == "score" else by_column
    said = (
        [f"Session {session}: score {score:g}, but {BINARY[0]} {binary:g}; the {rules.label} was taken."] if by_score != by_column else []
    )
    return "depression" if chosen else "no depression", said


def _row(folder: Path, session: str, label: str, has_sound: bool, rules: DaicwozSpec, where: str, prompts: DatasetPrompts | None) -> Row:
    dataset = DATASETS["daicwoz"]
    transcript = _of_session(folder, f"{session}_TRANSCRIPT.csv", session)
    said = spoken(transcript, session, participant_only=rules.participant_only)
    media = {"audio": (clip_file(_of_session(folder, f"{session}_AUDIO.wav", session), where),)} if has_sound else {}
    problem = question(dataset, tuple(media), said, where=str(transcript), prompts=prompts)
    own = f"daicwoz-{session}"
    return labelled_row(dataset, sample_id=own, clip_id=own, problem=problem, label=label, media=media)


def _of_session(folder: Path, name: str, session: str) -> Path:
    """A file of a session.

    Raises:
        DataError: it is not there.
    """
    found = first_file(folder, (f"{session}_P/{name}", f"{session}/{name}", name))
    if found is None:
        packed = (folder / f"{session}_P.zip").is_file()
        way_out = f"unpack {session}_P.zip into a folder {session}_P" if packed else "restore the session's archive"
        raise DataError(str(folder), f"holds no {name}", way_out, reason="missing file")
    return found


def spoken(path: Path, session: str, *, participant_only: bool = False) -> str:
    """The transcript of a session, a line a turn, each with its speaker.

    What comes before the agent's first line is chatter, and left out; three published sessions have no line of the agent at
    all. Marks of synchronisation, lines without words and lines of an interruption are left out, too.

    Raises:
        DataError: the file cannot be read, or nothing is said in it.
    """
    turns: list[tuple[str, str]] = []
    for where, record in read_table(path, ("start_time", "stop_time", "speaker", "value"), delimiter="\t"):
        speaker = column(record, "speaker", where).strip()
        words = " ".join(_SYNC.sub(" ", str(record.get("value") or "")).split())
        if speaker not in (AGENT, PARTICIPANT) or not words or words.lower() == "nan" or _is_interrupted(session, record, where):
            continue
        expanded = _EXPANDED.fullmatch(words) if speaker == AGENT else None
        turns.append((speaker, expanded[1] if expanded else words))
    first = next((place for place, (speaker, _) in enumerate(turns) if speaker == AGENT), 0)
    kept = [(speaker, words) for speaker, words in turns[first:] if speaker == PARTICIPANT or not participant_only]
    if not kept:
        raise DataError(str(path), "holds no words", "restore the session's archive", reason="empty text")
    return "\n".join(f"{speaker}: {words}" for speaker, words in kept)


def _is_interrupted(session: str, record: dict[str, Any], where: str) -> bool:
    if session not in INTERRUPTED:
        return False
    begin, end = INTERRUPTED[session]
    return number(record.get("start_time"), "start_time", where) < end and number(record.get("stop_time"), "stop_time", where) > begin


def _other_test_sessions(folder: Path, labelled: set[str]) -> list[str]:
    """A sentence where the test file without labels names other sessions than that with labels."""
    path = folder / TEST_WITHOUT_LABELS
    if not path.is_file():
        return []
    named = {identifier(record, PERSON[0], where) for where, record in read_table(path, (PERSON,))}
    differing = sorted(named ^ labelled)
    return [f"{FILES['test']} and {TEST_WITHOUT_LABELS} differ in sessions {', '.join(differing)}."] if differing else []
