"""Converter of IEMOCAP: ten actors in pairs, utterance by utterance. It is not part of the benchmark; the paper transfers to it.

Expected in the folder, as its publishers give it: `Session1` to `Session5`, directly or in `IEMOCAP_full_release`, with
`dialog/EmoEvaluation/*.txt`, `dialog/transcriptions/*.txt` (Latin-1) and, for rows with sound,
`sentences/wav/<dialog>/<utterance>.wav`. The split is by session, each of which has two speakers of its own. The videos show whole
dialogs and both actors; they are not attached.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from hba_ray.convert.base import ConversionRequest, Converted, OnBadRow, Sieve, labelled_row
from hba_ray.convert.discretise import IEMOCAP_ALL, IEMOCAP_FOUR
from hba_ray.convert.media import clip_file, first_folder, of_macos
from hba_ray.convert.tables import read_text
from hba_ray.convert.wording import question
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS, SPLITS
from hba_ray.errors import DataError
from hba_ray.specs.sections.corpora import IemocapSpec

SESSIONS = (1, 2, 3, 4, 5)
CODES = ("ang", "hap", "exc", "sad", "neu", "fru", "fea", "sur", "dis", "oth", "xxx")
"""Codes in the evaluations; fru, oth and xxx (no majority) have no label."""
NO_CLASS = "of a class that is not used"

_EVALUATION = re.compile(r"\[\d+\.\d+ - \d+\.\d+\]\t(\S+)\t(\w+)\t\[.*\]\s*")
_SPOKEN = re.compile(r"(\S+) \[[\d.]+-[\d.]+\]:\s*(.*)")


def convert(request: ConversionRequest) -> Converted:
    """The rows of IEMOCAP; see `read_iemocap`."""
    return read_iemocap(request.folder, request.spec.corpora.iemocap, on_bad_row=request.spec.on_bad_row)


def read_iemocap(folder: Path, rules: IemocapSpec | None = None, *, on_bad_row: OnBadRow = "fail") -> Converted:
    """The rows of IEMOCAP.

    Raises:
        DataError: names file, line and reason.
    """
    rules = rules or IemocapSpec()
    base = folder / "IEMOCAP_full_release" if (folder / "IEMOCAP_full_release").is_dir() else folder
    label_of = dict(IEMOCAP_FOUR if rules.classes == "four" else IEMOCAP_ALL)
    if rules.excited == "leave_out":
        del label_of["exc"]
    labels = tuple(label for label in DATASETS["iemocap"].labels if label in label_of.values())
    has_sound = any((base / f"Session{session}" / "sentences" / "wav").is_dir() for session in SESSIONS)
    sieve = Sieve("iemocap", on_bad_row)
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for session in SESSIONS:
        split = {rules.validation_session: "validation", rules.test_session: "test"}.get(session, "train")
        place = base / f"Session{session}"
        for dialog in _evaluations(place):
            said = _transcript(place / "dialog" / "transcriptions" / dialog.name)
            for where, name, code in _evaluated(dialog):
                with sieve.row(split):
                    if code not in CODES:
                        raise DataError(where, f"'{code}' is none of {', '.join(CODES)}", reason="unknown label")
                    if code not in label_of:
                        sieve.leave_out(where, NO_CLASS, split)
                        continue
                    clip = place / "sentences" / "wav" / dialog.stem / f"{name}.wav" if has_sound else None
                    rows[split].append(_row(name, label_of[code], labels, said, clip, where))
    return Converted(rows, sieve.drops, rules=_stated(rules))


def _stated(rules: IemocapSpec) -> list[str]:
    used = "anger, happy, neutral, sad" if rules.classes == "four" else "the seven of the benchmark"
    excited = "count as happy" if rules.excited == "happy" else "are left out"
    others = ", ".join(str(session) for session in SESSIONS if session not in (rules.validation_session, rules.test_session))
    return [
        f"Classes: {used}; excited utterances {excited}. Those of the paper's Table 9 are not known.",
        f"Sessions {others} train, {rules.validation_session} validates, {rules.test_session} tests.",
    ]


def _evaluations(session: Path) -> list[Path]:
    """The evaluations of a session's dialogs; folders beside them hold those of single raters.

    Raises:
        DataError: there are none.
    """
    folder = first_folder(session, ("dialog/EmoEvaluation",))
    found = [path for path in sorted(folder.glob("*.txt")) if not of_macos(path)] if folder else []
    if not found:
        what = "holds no dialog/EmoEvaluation/*.txt"
        raise DataError(str(session), what, "atlas.root is the folder of the five sessions", reason="missing file")
    return found


def _evaluated(path: Path) -> Iterator[tuple[str, str, str]]:
    """(place, utterance, code) of each utterance; lines of single raters do not start with a time."""
    for number, line in enumerate(read_text(path, "latin-1").splitlines(), 1):
        if line.startswith("["):
            found = _EVALUATION.fullmatch(line)
            if found is None:
                raise DataError(f"{path}, line {number}", "is no evaluation", "use the file as published", reason="wrong type")
            yield f"{path}, line {number}", found[1], found[2]


def _transcript(path: Path) -> dict[str, str]:
    """Utterance -> what is said. Lines without an utterance's name ("M: Yeah.") are passed over."""
    found = (_SPOKEN.fullmatch(line.strip()) for line in read_text(path, "latin-1").splitlines())
    return {match[1]: match[2] for match in found if match}


def _row(name: str, label: str, labels: tuple[str, ...], said: dict[str, str], clip: Path | None, where: str) -> Row:
    dataset = DATASETS["iemocap"]
    if name not in said:
        raise DataError(where, f"{name} has no transcript", "use the files as published", reason="missing value")
    media = {"audio": (clip_file(clip, where),)} if clip else {}
    problem = question(dataset, tuple(media), said[name], labels=labels, where=where)
    own = f"iemocap-{name}"
    return labelled_row(dataset, sample_id=own, clip_id=own, problem=problem, label=label, media=media)
