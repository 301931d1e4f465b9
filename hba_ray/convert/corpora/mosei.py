"""Converter of CMU-MOSEI: opinions of people in videos, by clip, each a row of sentiment and, where an emotion is strong, of emotion.

Two layouts, as published.

MMSA's: `label.csv` (or the feature file `unaligned_50.pkl`) and the clips `Raw/<video>/<clip>.mp4`. It has no emotions, which come from
CMU's `CMU_MOSEI_Labels.csd` in the same folder, or from its raters' `Labels/*.csv`.

CMU's: `CMU_MOSEI_Labels.csd` (or s3prl's `CMU_MOSEI_Labels.csv` for sentiment alone), `Transcript/Combined/<video>.txt` and
`cmu_mosei_std_folds.py` of the SDK (or its lists as `standard_folds.json`); and, for rows with media, clips
`Videos/Segmented/Combined/<video>_<clip>.mp4`, or the whole `Audio/WAV_16000/<video>.wav` and `Videos/Full/Combined/<video>.mp4`, from
which clips are cut.

Without any clips rows are text-only. How labels are joined to clips is said in hba_ray/convert/segments.py.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hba_ray.convert.base import ConversionRequest, Converted, Difference, Sieve, labelled_row, left_out
from hba_ray.convert.cutting import cut_film, cut_sound
from hba_ray.convert.discretise import SEVEN, mosei_emotion, mosei_sentiment
from hba_ray.convert.media import clip_file, first_file, first_folder, needed_file, video_and_audio
from hba_ray.convert.mmsa import read_utterances
from hba_ray.convert.segments import (
    CSD,
    CSV,
    RATERS,
    TRANSCRIPTS,
    Segment,
    TranscriptLine,
    by_text_order,
    by_time,
    read_classes,
    read_csd,
    read_lines,
    read_raters,
)
from hba_ray.convert.splits import split_named
from hba_ray.convert.tables import number, read_json, read_text
from hba_ray.convert.wording import DatasetPrompts, question
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS, SPLITS
from hba_ray.errors import DataError
from hba_ray.specs.sections.corpora import MoseiSpec

TABLE = "label.csv"
FEATURES = ("unaligned_50.pkl", "aligned_50.pkl")
FOLDS = ("cmu_mosei_std_folds.py", "standard_folds.json")
SOUNDS = ("Audio/WAV_16000", "Audio/Full/WAV_16000", "Raw/Audio/WAV_16000", "Raw/Audio/Full/WAV_16000")
FILMS = ("Videos/Full/Combined", "Raw/Videos/Full/Combined")
SEGMENTED = ("Videos/Segmented/Combined", "Raw/Videos/Segmented/Combined")
WEAK, UNJOINED, NO_FOLD = "no emotion of this strength", "no labels could be joined to the clip", "video in no fold"
SAME_SCORE = 0.01
"""By how much the sentiment of a clip may differ between MMSA's table and CMU's file."""


@dataclass(frozen=True)
class SpokenClip:
    """A clip of either layout.

    Attributes:
        score: sentiment as decimal text; of s3prl's table, the class itself.
        emotions: emotion -> intensity; None where no row of CMU's file could be joined to the clip.
    """

    where: str
    video: str
    name: str
    text: str
    split: str
    score: str
    is_class: bool = False
    emotions: Mapping[str, float] | None = None
    media: dict[str, tuple[Path, ...]] = field(default_factory=dict)


def convert(request: ConversionRequest) -> Converted:
    """The rows of the datasets that are wanted.

    Raises:
        DataError: names file, line and reason.
    """
    folder, rules = request.folder, request.spec.corpora.mosei
    sieve = Sieve("mosei", request.spec.on_bad_row)
    is_mmsa = first_file(folder, (TABLE, *FEATURES)) is not None
    labels = _labels(folder, rules, is_mmsa=is_mmsa, emotion="mosei_emotion" in request.datasets)
    clips = _of_mmsa(folder, labels, sieve) if is_mmsa else _of_cmu(request, labels or {}, sieve)
    raters = _raters(folder) if "mosei_emotion" in request.datasets else None
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    left: defaultdict[tuple[str, str], int] = defaultdict(int)
    for clip in clips:
        with sieve.row(clip.split):
            rated = clip if raters is None else replace(clip, emotions=raters.get((clip.video, clip.name)))
            made, reason = _rows(rated, request.datasets, rules, request.prompts)
            rows[clip.split] += made
            if reason and "mosei_emotion" in request.datasets:
                left[clip.split, reason] += 1
    return Converted(rows, sieve.drops, _differences(sieve, left), _stated(rules, is_mmsa, raters is not None), _told(left))


def _labels(folder: Path, rules: MoseiSpec, *, is_mmsa: bool, emotion: bool) -> dict[str, list[Segment]] | None:
    """CMU's labels by video; None where MMSA's table has all that is wanted.

    Raises:
        DataError: emotions, or scores, are wanted and not there.
    """
    if (folder / CSD).is_file():
        return read_csd(folder / CSD)
    if emotion and not first_folder(folder, RATERS):
        what = f"holds neither {CSD} nor {RATERS[0]}, which have the emotions"
        raise DataError(str(folder), what, "put it there, or set atlas.datasets=[mosei_senti]", reason="missing file")
    if is_mmsa:
        return None
    if rules.seven_classes != "cmu":
        what = f"has the classes of CMU's rule and no scores, so atlas.corpora.mosei.seven_classes={rules.seven_classes} cannot be had"
        raise DataError(str(folder / CSV), what, f"put {CSD} beside it", reason="missing file")
    return read_classes(needed_file(folder, (CSV,)))


def _raters(folder: Path) -> dict[tuple[str, str], dict[str, float]] | None:
    """Emotions by the answers of single raters, where CMU's file of means is not there."""
    tables = None if (folder / CSD).is_file() else first_folder(folder, RATERS)
    return read_raters(tables) if tables else None


def _of_mmsa(folder: Path, labels: Mapping[str, list[Segment]] | None, sieve: Sieve) -> Iterator[SpokenClip]:
    """The clips of MMSA's table, with the emotions of CMU's file where it was read."""
    clips = first_folder(folder, ("Raw",))
    said = list(read_utterances(folder, (TABLE,), FEATURES, sieve))
    names: defaultdict[str, list[str]] = defaultdict(list)
    for one in said:
        names[one.video].append(one.clip)
    joined = {video: _joined(folder, video, (labels or {}).get(video, []), its) for video, its in names.items()}
    for one in said:
        clip, segment = None, joined[one.video].get(one.clip)
        with sieve.row(one.split):
            score = number(one.score, "label", one.where)
            if segment is not None and abs(score - segment.sentiment) > SAME_SCORE:
                what = f"'label' is not the sentiment that {CSD} has for this clip"
                raise DataError(one.where, what, "use both files as published", reason="answer contradicts label")
            media = video_and_audio(clips / one.video / f"{one.clip}.mp4", one.where) if clips else {}
            emotions = segment.emotions if segment else None
            clip = SpokenClip(one.where, one.video, one.clip, one.text, one.split, one.score, emotions=emotions, media=media)
        if clip is not None:
            yield clip


def _joined(folder: Path, video: str, segments: Sequence[Segment], clips: Sequence[str]) -> dict[str, Segment]:
    """Clip -> its row of CMU's file: by time where there is a transcript with times, else by the order of the clips as text."""
    transcript = first_file(folder, [f"{place}/{video}.txt" for place in TRANSCRIPTS])
    return by_time(segments, read_lines(transcript)) if transcript else by_text_order(segments, clips)


def _of_cmu(request: ConversionRequest, labels: Mapping[str, list[Segment]], sieve: Sieve) -> Iterator[SpokenClip]:
    """The clips of CMU's transcripts that are in a fold, with the labels that have their times."""
    folder = request.folder
    texts = first_folder(folder, TRANSCRIPTS)
    if texts is None:
        what = f"holds neither {TABLE} nor {TRANSCRIPTS[0]}"
        raise DataError(str(folder), what, "atlas.root is the folder of the dataset's public files", reason="missing file")
    split_of = _folds(needed_file(folder, FOLDS))
    for video, segments in labels.items():
        path = texts / f"{video}.txt"
        lines = read_lines(path) if video in split_of and path.is_file() else []
        joined = by_time(segments, lines)
        for _ in range(len(segments) - len(joined)):
            sieve.leave_out(f"{path}, segment of {video}", UNJOINED if video in split_of else NO_FOLD, split_of.get(video, ""))
        for line in lines:
            if (segment := joined.get(line.clip)) is None:
                continue
            clip, where = None, f"{path}, clip {line.clip}"
            with sieve.row(split_of[video]):
                media = _cut(request, video, line, where)
                score, emotions = f"{segment.sentiment:.7g}", segment.emotions or None
                clip = SpokenClip(where, video, line.clip, line.text, split_of[video], score, segment.is_class, emotions, media)
            if clip is not None:
                yield clip


def _cut(request: ConversionRequest, video: str, line: TranscriptLine, where: str) -> dict[str, tuple[Path, ...]]:
    """The clips of a segment: as its publishers cut them, else cut here out of the whole recordings that are there."""
    segmented, films, sounds = (first_folder(request.folder, names) for names in (SEGMENTED, FILMS, SOUNDS))
    name = f"{video}_{line.clip}"
    if segmented:
        return video_and_audio(segmented / f"{name}.mp4", where)
    media = {}
    if films:
        film = clip_file(films / f"{video}.mp4", where)
        media["video"] = (cut_film(film, line.begin, line.end, request.scratch / f"{name}.mp4", where=where),)
    heard = sounds / f"{video}.wav" if sounds else films / f"{video}.mp4" if films else None
    if heard:
        sound = clip_file(heard, where)
        media["audio"] = (cut_sound(sound, line.begin, line.end, request.scratch / f"{name}.wav", where=where),)
    return media


def _folds(path: Path) -> dict[str, str]:
    """Video -> split, from the lists in the SDK's module (nothing of it is run), or from the same lists as JSON.

    Raises:
        DataError: the file holds no such lists, or a video in two of them.
    """
    if path.suffix == ".json":
        lists = read_json(path)
    else:
        try:
            made = [
                node for node in ast.parse(read_text(path)).body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            ]
            lists = {_fold_name(node): ast.literal_eval(node.value) for node in made if _fold_name(node).endswith("_fold")}
        except (SyntaxError, ValueError, RecursionError) as cause:
            raise DataError(str(path), f"is no module of lists: {cause}", "use the file as published", reason="wrong type") from None
    found: dict[str, str] = {}
    for name, videos in lists.items() if isinstance(lists, dict) else ():
        split = split_named(name.removeprefix("standard_").removesuffix("_fold"), f"{path}, {name}")
        for video in videos if isinstance(videos, list) else ():
            if found.setdefault(str(video), split) != split:
                raise DataError(str(path), f"video {video} is in two folds", "use the file as published", reason="leak between splits")
    if set(found.values()) != set(SPLITS):
        raise DataError(str(path), "lacks a list of train, valid or test", "use the file as published", reason="wrong type")
    return found


def _fold_name(node: ast.Assign) -> str:
    target = node.targets[0]
    return target.id if isinstance(target, ast.Name) else ""


def _rows(clip: SpokenClip, datasets: Sequence[str], rules: MoseiSpec, prompts: DatasetPrompts | None) -> tuple[list[Row], str | None]:
    """The rows of a clip, and why it has none of emotion."""
    labels = {
        "mosei_senti": SEVEN[int(clip.score) + 3] if clip.is_class else mosei_sentiment(clip.score, rules.seven_classes, where=clip.where)
    }
    reason = UNJOINED
    if clip.emotions is not None:
        emotion, reason = mosei_emotion(clip.emotions, rules.emotion_from), WEAK
        labels |= {"mosei_emotion": emotion} if emotion else {}
    rows = []
    for name in datasets:
        if name in labels:
            dataset = DATASETS[name]
            problem = question(dataset, tuple(clip.media), clip.text, where=clip.where, prompts=prompts)
            own = f"{clip.video}-{clip.name}"
            rows.append(
                labelled_row(
                    dataset, sample_id=f"{name}-{own}", clip_id=f"mosei-{own}", problem=problem, label=labels[name], media=clip.media
                )
            )
    return rows, None if "mosei_emotion" in labels else reason


def _differences(sieve: Sieve, left: Mapping[tuple[str, str], int]) -> dict[str, list[Difference]]:
    """The reasons for counts; clips whose labels could not be joined lack a row of emotion alone in MMSA's layout."""
    found = left_out(sieve.drops, SPLITS, but=(NO_FOLD,))
    for (split, reason), count in left.items():
        if reason == UNJOINED:
            found.setdefault(f"mosei_emotion/{split}", []).append(Difference(-count, UNJOINED))
    return found


def _stated(rules: MoseiSpec, is_mmsa: bool, by_raters: bool) -> list[str]:
    seven = "CMU's rule, away from zero" if rules.seven_classes == "cmu" else "rounding to the nearest, half to even"
    return [
        f"Layout of {'MMSA' if is_mmsa else 'CMU'}." + (" Emotions are means over raters." if by_raters else ""),
        f"Seven classes by {seven}; which rule the paper used is not known.",
        f"Emotion: the strongest of six where its intensity is {rules.emotion_from:g} or more, ties in the order happy, sad, anger, "
        "surprise, disgust, fear; that the paper used this rule is not known.",
    ]


def _told(left: Mapping[tuple[str, str], int]) -> list[str]:
    return [f"{count} clips of {split} have no row of emotion: {reason}." for (split, reason), count in sorted(left.items())]
