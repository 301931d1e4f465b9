"""Segments of the videos of CMU-MOSEI: when each begins and ends, how it was labelled, and what is said in it.

Labels: `CMU_MOSEI_Labels.csd`, an HDF5 file of the SDK with a row a segment (sentiment and six emotions); or, for sentiment alone,
`CMU_MOSEI_Labels.csv` of s3prl, with CMU's seven classes. Their rows are no numbers of clips: they stand in the order in which
the numbers sort as text (10, 13, 2, 3). So rows are joined to clips by time where the transcripts are there, else by that order,
and never by number. Where there is no csd, emotions may come from the answers of single raters, `Labels/*.csv`, which name the
clip itself.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from hba_ray.convert.discretise import MOSEI_EMOTIONS
from hba_ray.convert.media import files_below
from hba_ray.convert.tables import column, identifier, number, read_table, read_text
from hba_ray.errors import DataError, EnvironmentMissing

CSD, CSV = "CMU_MOSEI_Labels.csd", "CMU_MOSEI_Labels.csv"
TRANSCRIPTS = ("Transcript/Combined", "Transcript/Segmented/Combined", "Raw/Transcript/Combined", "Raw/Transcript/Segmented/Combined")
RATERS = ("Labels", "Raw/Labels")
RATED = {"happiness": "happy", "sadness": "sad", "anger": "anger", "surprise": "surprise", "disgust": "disgust", "fear": "fear"}
"""Name of an emotion in the columns of raters -> ours."""
SAME_TIME = 0.02
"""Seconds by which two files may differ in the times of one segment."""

_MARK = "___"


@dataclass(frozen=True)
class Segment:
    """A labelled part of a video.

    Attributes:
        begin, end: seconds; a begin before the video is 0.
        sentiment: -3 to 3.
        is_class: whether the sentiment is already one of CMU's seven classes, -3, -2 .. 3.
        emotions: emotion -> intensity, 0 to 3; empty where the file has none.
    """

    begin: float
    end: float
    sentiment: float
    is_class: bool = False
    emotions: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TranscriptLine:
    """What is said in a clip, and when."""

    clip: str
    begin: float
    end: float
    text: str


def read_csd(path: Path) -> dict[str, list[Segment]]:
    """Video -> its segments in file order.

    Raises:
        EnvironmentMissing: h5py, which reads HDF5, is not installed.
        DataError: the file is damaged, or not laid out as the SDK does it.
    """
    try:
        import h5py
    except ImportError:
        raise EnvironmentMissing(str(path), "is HDF5, which needs h5py", "pip install h5py") from None
    found: dict[str, list[Segment]] = {}
    try:
        with h5py.File(path) as file:
            (name,) = file.keys()
            videos: Any = file[name]
            for video, held in videos["data"].items():
                times, values = held["intervals"][:].tolist(), held["features"][:].astype(str).tolist()
                found[video] = [_segment(time, value) for time, value in zip(times, values, strict=True)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as cause:
        what = f"is no file of labels as CMU's SDK writes it: {cause}"
        raise DataError(str(path), what, "fetch it again", reason="corrupt file") from None
    return found


def _segment(time: Sequence[float], values: Sequence[str]) -> Segment:
    """A row of the csd. Its numbers are float32, whose shortest decimal form is what was meant."""
    sentiment, *emotions = (float(value) for value in values)
    begin, end = time
    return Segment(max(0.0, begin), end, sentiment, emotions=dict(zip(MOSEI_EMOTIONS, emotions, strict=True)))


def read_classes(path: Path) -> dict[str, list[Segment]]:
    """Video -> its segments in the order of their index, from the table of s3prl.

    Raises:
        DataError: the file cannot be read, or names the line that is bad.
    """
    found: defaultdict[str, list[tuple[int, Segment]]] = defaultdict(list)
    for where, record in read_table(path, ("file", "index", "start", "end", "label7")):
        index, begin, end, label = (number(record.get(name), name, where) for name in ("index", "start", "end", "label7"))
        if label not in range(-3, 4):
            raise DataError(where, "'label7' is none of -3 to 3", "use the file as published", reason="unknown label")
        found[identifier(record, "file", where)].append((int(index), Segment(max(0.0, begin), end, label, is_class=True)))
    return {video: [segment for _, segment in sorted(its, key=lambda pair: pair[0])] for video, its in found.items()}


def read_raters(folder: Path) -> dict[tuple[str, str], dict[str, float]]:
    """(video, clip) -> emotion -> mean intensity over the raters of all tables in a folder.

    Raises:
        DataError: there is no table, it cannot be read, or names the line that is bad.
    """
    columns = [f"Answer.{name}" for name in RATED]
    answers: defaultdict[tuple[str, str], list[list[float]]] = defaultdict(list)
    for path in files_below(folder, (".csv",)):
        for where, record in read_table(path, ("Input.VIDEO_ID", "Input.CLIP", *columns)):
            clip = identifier(record, "Input.VIDEO_ID", where), identifier(record, "Input.CLIP", where)
            answers[clip].append([number(record.get(name), name, where, lowest=0, highest=3) for name in columns])
    if not answers:
        raise DataError(str(folder), "holds no table of raters", "unpack CMU's Labels folder again", reason="no rows")
    return {clip: dict(zip(RATED.values(), map(fmean, zip(*its, strict=True)), strict=True)) for clip, its in answers.items()}


def read_lines(path: Path) -> list[TranscriptLine]:
    """The clips of a video's transcript, `video___clip___begin___end___text` a line.

    Raises:
        DataError: names the line that is none.
    """
    found = []
    for place, text in enumerate(read_text(path).splitlines(), 1):
        if not text.strip():
            continue
        where = f"{path}, line {place}"
        parts = text.removeprefix(path.stem + _MARK).split(_MARK, 3)
        if not text.startswith(path.stem + _MARK) or len(parts) < 4:
            raise DataError(where, "is not VIDEO___CLIP___BEGIN___END___TEXT", "use the file as published", reason="wrong type")
        begin, end = number(parts[1], "begin", where), number(parts[2], "end", where)
        record = {"clip": parts[0], "text": parts[3]}
        found.append(TranscriptLine(identifier(record, "clip", where), max(0.0, begin), end, column(record, "text", where).strip()))
    return found


def by_time(segments: Sequence[Segment], lines: Sequence[TranscriptLine]) -> dict[str, Segment]:
    """Clip -> the one segment with its times. Where several clips or segments have the same times, none of them is joined."""
    pairs = [(line.clip, place) for line in lines for place, one in enumerate(segments) if _is_same_time(line, one)]
    clips, places = Counter(clip for clip, _ in pairs), Counter(place for _, place in pairs)
    return {clip: segments[place] for clip, place in pairs if clips[clip] == places[place] == 1}


def _is_same_time(line: TranscriptLine, segment: Segment) -> bool:
    return abs(segment.begin - line.begin) <= SAME_TIME and abs(segment.end - line.end) <= SAME_TIME


def by_text_order(segments: Sequence[Segment], clips: Sequence[str]) -> dict[str, Segment]:
    """Clip -> its segment, where there are as many of both: the rows stand in the order in which clips sort as text.

    >>> rows = [Segment(start, start + 1, 0) for start in (0, 7, 20)]
    >>> {clip: one.begin for clip, one in by_text_order(rows, ["2", "10", "3"]).items()}
    {'10': 0, '2': 7, '3': 20}
    """
    return dict(zip(sorted(clips), segments, strict=True)) if len(segments) == len(clips) else {}
