"""Figure 1 of the paper, from an atlas: rows of each task, modalities, lengths of clips, and where corpora come from."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from hba_ray.convert.origins import Origin, origin_of
from hba_ray.data.tasks import BENCHMARK_TASKS, DATASETS, TASKS, TOTAL_ROWS
from hba_ray.evaluation.published import FIGURE_1
from hba_ray.evaluation.survey import BINS, COUNTED_ONCE, LETTERS, LONG_SECONDS, Entry, Survey
from hba_ray.report.beside import (
    MEASURED,
    AtlasTable,
    Compared,
    count_forest,
    drawn_row,
    notes_on,
    percent,
    share_forest,
    side_by_side,
    whole,
)
from hba_ray.report.charts import SHARES, Forest, ForestGroup
from hba_ray.report.sheets import MISSING, Sheet


def figure_1(survey: Survey) -> AtlasTable:
    """Figure 1: rows by task, modalities, lengths of clips, regions."""
    tasks, of_tasks, numbers = _tasks(survey)
    modalities, of_modalities, more = _modalities(survey)
    lengths, of_lengths, rest = _lengths(survey)
    regions, of_regions = region_shares(survey)
    sheets = (tasks, modalities, *lengths, *regions)
    return AtlasTable("F1", survey, sheets, (*numbers, *more, *rest), (of_tasks, of_modalities, *of_lengths, of_regions))


def region_shares(survey: Survey) -> tuple[tuple[Sheet, ...], Forest]:
    """Shares of rows by the region of the publishers and of the recordings, and a picture of the same."""
    sheets, groups = [], []
    for title, region in (("Publishers by region", _region_of_publishers), ("Recordings by region", _region_of_recordings)):
        kinds = _by_kind(survey, lambda entry, region=region: region(origin_of(entry.datasets[0])))
        total, table_7 = survey.total(), sum(TOTAL_ROWS)
        shares = [(name, ours / total if total else None, theirs / table_7) for name, (ours, theirs) in kinds.items()]
        rows = tuple((name, whole(kinds[name][0]), percent(ours), percent(theirs)) for name, ours, theirs in shares)
        sheets.append(Sheet(title, ("Region", "Rows", "Share", "Share by Table 7"), rows, 1))
        groups.append(ForestGroup(title, tuple(drawn_row(name, ours, theirs, percent) for name, ours, theirs in shares)))
    return tuple(sheets), Forest("Regions", "Region", SHARES, ("Measured", "By Table 7"), tuple(groups), has_legend=True, value=MEASURED)


def _region_of_publishers(origin: Origin | None) -> str | None:
    return origin.region if origin else None


def _region_of_recordings(origin: Origin | None) -> str | None:
    return origin.recorded if origin else None


def _by_kind(survey: Survey, kind: Callable[[Entry], str | None]) -> dict[str, tuple[int, int]]:
    """Kind of an entry -> rows in the atlas and rows by Table 7, of entries that are counted, the most rows first."""
    found: dict[str, tuple[int, int]] = {}
    for entry in survey.entries():
        if (survey.is_counted(entry) or entry.published()) and (name := kind(entry)):
            ours, theirs = found.get(name, (0, 0))
            mine = (survey.rows(entry) or 0) if survey.is_counted(entry) else 0
            found[name] = (ours + mine, theirs + (entry.published() or 0))
    return dict(sorted(found.items(), key=lambda one: (-one[1][1], -one[1][0], one[0])))


def _tasks(survey: Survey) -> tuple[Sheet, Forest, list[Compared]]:
    """Figure 1b: each task with its datasets. Both of MMPsy's tasks have all of its rows."""
    rows, numbers = [], []
    groups: dict[str, list[tuple[str, int | None, int | None]]] = {}
    for task in BENCHMARK_TASKS:
        for name, dataset in DATASETS.items():
            held = survey.datasets.get(name)
            if dataset.task is task and (dataset.is_benchmark or held):
                published = sum(dataset.counts) if dataset.counts else None
                measured = held.total if held else None
                rows.append((task.id, dataset.title, *side_by_side(measured, published)))
                numbers.append(Compared(dataset.title, task.id, measured, published))
                groups.setdefault(f"{task.id}, {TASKS[task.id].name}", []).append((dataset.title, measured, published))
    header = ("Task", "Dataset", "Rows", "Published", "Difference")
    return Sheet("Tasks", header, tuple(rows), 2, notes_on(survey)), count_forest("Rows of each task", groups), numbers


def _modalities(survey: Survey) -> tuple[Sheet, Forest, list[Compared]]:
    """Figure 1c: the share of rows that have each modality, and how many clips there are."""
    total = survey.total()
    clips = survey.clips()
    published = {"video": FIGURE_1["video_share"]}
    shares: list[tuple[str, float | None, float | None]] = []
    for name in LETTERS.values():
        having = sum(survey.with_modalities(entry, name) for entry in survey.entries() if survey.is_counted(entry))
        shares.append((f"rows with {name}", having / total if total else None, published.get(name)))
    numbers = [Compared(row, "share", ours, theirs, 0.0005) for row, ours, theirs in shares if theirs is not None]
    counts = [
        ("videos", clips.videos if clips else None, FIGURE_1["videos"]),
        ("sounds without a video", clips.sounds if clips else None, FIGURE_1["audio_clips"]),
        ("transcripts", None, FIGURE_1["transcripts"]),
    ]
    numbers += [Compared(row, "clips", ours, theirs) for row, ours, theirs in counts]
    rows = [(row, percent(ours), percent(theirs)) for row, ours, theirs in shares]
    rows += [(row, whole(ours), whole(theirs)) for row, ours, theirs in counts]
    notes = (
        f"By Tables 2 and 7 {percent(_video_share())} of the rows are of corpora with video, by Figure 1c {percent(published['video'])}.",
        "Clips are counted once, whichever rows share them. Transcripts are part of prompts, so an atlas does not tell how many there are.",
    )
    forest = share_forest("Modalities", shares)
    return Sheet("Modalities and clips", ("", "Measured", "Published"), tuple(rows), 1, notes), forest, numbers


def _video_share() -> float:
    """The share of Table 7's rows whose dataset has video by Table 2."""
    known = [one for one in DATASETS.values() if one.is_benchmark and one.source not in COUNTED_ONCE]
    return sum(sum(one.counts or ()) for one in known if "V" in one.modalities) / sum(TOTAL_ROWS)


def _lengths(survey: Survey) -> tuple[list[Sheet], list[Forest], list[Compared]]:
    """Figure 1d: how long clips are."""
    clips = survey.clips()
    if clips is None or survey.lengths is None:
        return [], [], []
    known = len(clips.seconds)
    long_share = clips.long / known if known else None
    numbers = [Compared(f"clips over {LONG_SECONDS:g} s", "share", long_share, FIGURE_1["long_share"], 0.0005)]
    ends = [*(f"{low:g} to {high:g} s" for low, high in pairwise(BINS)), f"over {BINS[-1]:g} s"]
    bins = [(name, number / known if known else None, None) for name, number in zip(ends, clips.bins, strict=True)]
    long = (f"over {LONG_SECONDS:g} s", long_share, FIGURE_1["long_share"])
    rows = [(name, whole(number), percent(part), MISSING) for (name, part, _), number in zip(bins, clips.bins, strict=True)]
    rows.append((long[0], whole(clips.long), percent(long_share), percent(FIGURE_1["long_share"])))
    unreadable = sum(clips.unreadable.values())
    notes = (f"Clips or rows that cannot be read: {unreadable}.",) if unreadable else ()
    first = Sheet("Lengths of clips", ("Length", "Clips", "Share", "Published share"), tuple(rows), 1, notes)
    corpora = []
    for title, entries in survey.corpora():
        one = survey.lengths.get(entries[0].datasets[0].source)
        if one is not None and one.ends is not None:
            long_part = percent(one.long / len(one.seconds))
            corpora.append((title, f"{len(one.seconds):,}", f"{one.minutes:,.1f}", *(f"{end:.1f}" for end in one.ends), long_part))
    header = ("Corpus", "Clips", "Minutes", "Shortest, s", "Median, s", "Longest, s", f"Over {LONG_SECONDS:g} s")
    return [first, Sheet("Lengths by corpus", header, tuple(corpora), 1)], [share_forest("Lengths of clips", [*bins, long])], numbers
