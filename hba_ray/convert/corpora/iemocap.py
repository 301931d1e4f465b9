"""Converter of IEMOCAP: ten actors in pairs, utterance by utterance. It is not part of the benchmark; the paper transfers to it.

Expected in the folder, as its publishers give it: `Session1` to `Session5`, directly or in `IEMOCAP_full_release`, with
`dialog/EmoEvaluation/*.txt`, `dialog/transcriptions/*.txt` (Latin-1) and, for rows with sound,
`sentences/wav/<dialog>/<utterance>.wav`. The split is by session, each of which has two speakers of its own. The videos
`dialog/avi/DivX/<dialog>.avi` show whole dialogs and both actors; utterances are cut out of them where that is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hba_ray.convert.base import ConversionRequest, Converted, Sieve, labelled_row
from hba_ray.convert.cutting import cut_film
from hba_ray.convert.discretise import IEMOCAP_ALL, IEMOCAP_FOUR
from hba_ray.convert.media import clip_file, first_folder, of_macos
from hba_ray.convert.tables import is_name, read_text
from hba_ray.convert.wording import DatasetPrompts, question
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS, SPLITS
from hba_ray.errors import DataError
from hba_ray.specs.sections.corpora import IemocapSpec

SESSIONS = (1, 2, 3, 4, 5)
CODES = ("ang", "hap", "exc", "sad", "neu", "fru", "fea", "sur", "dis", "oth", "xxx")
"""Codes in the evaluations; fru, oth and xxx (no majority) have no label."""
NO_CLASS = "of a class that is not used"

_EVALUATION = re.compile(r"\[(\d+\.\d+) - (\d+\.\d+)\]\t(\S+)\t(\w+)\t\[.*\]\s*")
_SPOKEN = re.compile(r"(\S+) \[[\d.]+-[\d.]+\]:\s*(.*)")


@dataclass(frozen=True)
class Evaluated:
    """An utterance and the code that most raters gave it.

    Attributes:
        begin, end: seconds in its dialog.
    """

    where: str
    name: str
    code: str
    begin: float
    end: float


def convert(request: ConversionRequest) -> Converted:
    """The rows of IEMOCAP.

    Raises:
        DataError: names file, line and reason.
    """
    folder, rules = request.folder, request.spec.corpora.iemocap
    base = folder / "IEMOCAP_full_release" if (folder / "IEMOCAP_full_release").is_dir() else folder
    label_of = dict(IEMOCAP_FOUR if rules.classes == "four" else IEMOCAP_ALL)
    if rules.excited == "leave_out":
        del label_of["exc"]
    labels = tuple(label for label in DATASETS["iemocap"].labels if label in label_of.values())
    has_sound = any((base / f"Session{session}" / "sentences" / "wav").is_dir() for session in SESSIONS)
    sieve = Sieve("iemocap", request.spec.on_bad_row)
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for session in SESSIONS:
        split = {rules.validation_session: "validation", rules.test_session: "test"}.get(session, "train")
        place = base / f"Session{session}"
        for dialog in _evaluations(place):
            said = _transcript(place / "dialog" / "transcriptions" / dialog.name)
            for one in _evaluated(dialog):
                with sieve.row(split):
                    if one.code not in CODES:
                        raise DataError(one.where, f"'{one.code}' is none of {', '.join(CODES)}", reason="unknown label")
                    if one.code not in label_of:
                        sieve.leave_out(one.where, NO_CLASS, split)
                        continue
                    media = _media(place, dialog.stem, one, has_sound, request.scratch if rules.video else None)
                    rows[split].append(_row(one, label_of[one.code], labels, said, media, request.prompts))
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


def _evaluated(path: Path) -> Iterator[Evaluated]:
    """The utterances of a dialog; lines of single raters do not start with a time."""
    for number, line in enumerate(read_text(path, "latin-1").splitlines(), 1):
        if line.startswith("["):
            found = _EVALUATION.fullmatch(line)
            if found is None or not is_name(found[3]):
                raise DataError(f"{path}, line {number}", "is no evaluation", "use the file as published", reason="wrong type")
            yield Evaluated(f"{path}, line {number}", found[3], found[4], float(found[1]), float(found[2]))


def _transcript(path: Path) -> dict[str, str]:
    """Utterance -> what is said. Lines without an utterance's name ("M: Yeah.") are passed over."""
    found = (_SPOKEN.fullmatch(line.strip()) for line in read_text(path, "latin-1").splitlines())
    return {match[1]: match[2] for match in found if match}


def _media(session: Path, dialog: str, one: Evaluated, has_sound: bool, scratch: Path | None) -> dict[str, tuple[Path, ...]]:
    """The clips of an utterance; its video is cut into `scratch`, where there is one."""
    media = {}
    if scratch is not None:
        film = clip_file(session / "dialog" / "avi" / "DivX" / f"{dialog}.avi", one.where)
        media["video"] = (cut_film(film, one.begin, one.end, scratch / f"{one.name}.mp4", where=one.where),)
    if has_sound:
        media["audio"] = (clip_file(session / "sentences" / "wav" / dialog / f"{one.name}.wav", one.where),)
    return media


def _row(
    one: Evaluated,
    label: str,
    labels: tuple[str, ...],
    said: dict[str, str],
    media: dict[str, tuple[Path, ...]],
    prompts: DatasetPrompts | None,
) -> Row:
    dataset = DATASETS["iemocap"]
    if one.name not in said:
        raise DataError(one.where, f"{one.name} has no transcript", "use the files as published", reason="missing value")
    problem = question(dataset, tuple(media), said[one.name], labels=labels, where=one.where, prompts=prompts)
    own = f"iemocap-{one.name}"
    return labelled_row(dataset, sample_id=own, clip_id=own, problem=problem, label=label, media=media)
