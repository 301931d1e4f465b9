"""The paper's tables and figure that describe the atlas, measured from one and set beside what is published.

They need no trials. What no atlas can measure (who published a corpus, in which language) is a fact of `convert.origins`. Of prompts
only the lines are shown that all rows of a dataset share, since the others are rows' own texts.
"""

from __future__ import annotations

from collections.abc import Callable

from hba_ray.convert.origins import origin_of
from hba_ray.data.tasks import BENCHMARK_TASKS, DATASETS, DIMENSIONS, SPLITS, TOTAL_ROWS
from hba_ray.evaluation.published import ATLAS, INPUTS, OTHER_BENCHMARKS
from hba_ray.evaluation.survey import LETTERS, Survey
from hba_ray.report.atlas_figure import figure_1, region_shares
from hba_ray.report.beside import AtlasTable, Compared, count_forest, notes_on, side_by_side, sum_known, whole
from hba_ray.report.sheets import MISSING, Sheet

ORIGIN_NOTE = (
    "Regions are those of the publishers and of the recordings, as their publications state them; videos of the web come from anywhere. "
    "The paper names North America, Asia and Europe (Figure 1e). Published rows are those of Table 7."
)
BENCHMARK_NOTE = (
    "Descriptors: whether the atlas brings them along; `hba describe` extracts them otherwise. "
    "Dimensions and tasks of the other benchmarks are not stored."
)


WITH_PROMPTS, WITH_LENGTHS = {"T3", "T22"}, {"F1"}
"""Tables that need a survey with prompts, or with lengths of clips."""


def atlas_table(name: str, survey: Survey) -> AtlasTable:
    """One of `specs.paper.DESCRIPTIVE`.

    Args:
        survey: with prompts or lengths where the table needs them.
    """
    return _TABLES[name](survey)


def _benchmarks(survey: Survey) -> AtlasTable:
    """Table 1: what each benchmark has; benchmarks are columns, since a screen is narrow."""
    counted = [entry for entry in survey.entries() if survey.is_counted(entry)]
    held = [one for entry in counted for one in entry.datasets if one.id in survey.datasets]
    ours = {name: any(survey.with_modalities(entry, name) for entry in counted) for name in LETTERS.values()}
    ours |= {"raw clips": ours["audio"] or ours["video"], "descriptors": any(survey.datasets[one.id].has_descriptors for one in held)}
    ours |= {name: any(name in one.dimensions for one in held) for name in DIMENSIONS}
    ours |= {task.id: any(one.task is task for one in held) for task in BENCHMARK_TASKS}
    others = OTHER_BENCHMARKS
    thousands = [f"{one.thousands:g}k" for one in (*others, ATLAS)]
    rows = [("samples", *thousands, f"{survey.total() / 1000:.1f}k")]
    rows.append(("made by", *("people" if one.is_real else "models" for one in (*others, ATLAS)), MISSING))
    rows += [(name, *(_tick(name in one.inputs) for one in (*others, ATLAS)), _tick(ours[name])) for name in INPUTS]
    names = (*DIMENSIONS, *(task.id for task in BENCHMARK_TASKS))
    rows += [(name, *[MISSING] * len(others), _tick(True), _tick(ours[name])) for name in names]
    numbers = (
        Compared("samples", "thousands", survey.total() // 1000, ATLAS.thousands),
        *(Compared(name, "has it", float(ours[name]), 1.0) for name in (*INPUTS, *names)),
    )
    header = ("", *(one.name for one in others), f"{ATLAS.name}, published", "This atlas")
    return AtlasTable("T1", survey, (Sheet("Benchmarks", header, tuple(rows), len(header), (BENCHMARK_NOTE, *notes_on(survey))),), numbers)


def _tick(has: bool) -> str:
    return "yes" if has else "no"


def _datasets(survey: Survey) -> AtlasTable:
    """Table 2: corpora with their dimensions, tasks, modalities, samples and metrics."""
    rows, numbers, drawn = [], [], []
    for title, entries in survey.corpora():
        datasets = [one for entry in entries for one in entry.datasets]
        published = sum_known(entry.published() for entry in entries)
        measured = sum_known(survey.rows(entry) for entry in entries)
        tasks = dict.fromkeys(one.task for one in datasets)
        letters = [" ".join(letter for letter in LETTERS if any(letter in one.modalities for one in datasets)), survey.letters(entries)]
        numbers.append(Compared(title, "samples", measured, published))
        drawn.append((title, measured, published))
        rows.append(
            (
                title,
                "; ".join(dict.fromkeys(name for one in datasets for name in one.dimensions)) or MISSING,
                ", ".join(task.id for task in tasks),
                "text" if all(task.is_open for task in tasks) else "label",
                ", ".join(dict.fromkeys(task.metric.replace("_", " ") for task in tasks)),
                letters[0],
                letters[1] if measured is not None else MISSING,
                *side_by_side(measured, published),
            )
        )
    whole_atlas = (
        side_by_side(survey.total(), sum(TOTAL_ROWS)) if not survey.is_toy else (whole(survey.total()), whole(sum(TOTAL_ROWS)), MISSING)
    )
    rows.append(("Total", *[""] * 6, *whole_atlas))
    numbers.append(Compared("Total", "samples", survey.total(), sum(TOTAL_ROWS)))
    header = (
        "Corpus",
        "Dimensions",
        "Tasks",
        "Answer",
        "Metric",
        "Modalities",
        "Measured modalities",
        "Samples",
        "Published",
        "Difference",
    )
    sheet = Sheet("Corpora", header, tuple(rows), 7, notes_on(survey))
    return AtlasTable("T2", survey, (sheet,), tuple(numbers), (count_forest("Samples of each corpus", {"": drawn}),))


def _splits(survey: Survey) -> AtlasTable:
    """Table 7: rows of each split."""
    lines = [
        (entry.title, [survey.rows(entry, split) for split in SPLITS], [entry.published(split) for split in SPLITS])
        for entry in survey.entries()
    ]
    lines.append(("Total", [survey.total(split) for split in SPLITS], list(TOTAL_ROWS)))
    rows = [(title, *map(whole, [*ours, sum_known(ours)]), *map(whole, [*theirs, sum_known(theirs)])) for title, ours, theirs in lines]
    numbers = [
        Compared(title, name, measured, published)
        for title, ours, theirs in lines
        for name, measured, published in zip((*SPLITS, "total"), [*ours, sum_known(ours)], [*theirs, sum_known(theirs)], strict=True)
    ]
    names = (*(split.capitalize() for split in SPLITS), "Total")
    sheet = Sheet("Rows", ("Dataset", *names, *(f"Published {name.lower()}" for name in names)), tuple(rows), 1, notes_on(survey))
    groups = {
        split: [(title, ours[place], theirs[place]) for title, ours, theirs in lines if title != "Total"]
        for place, split in enumerate(SPLITS)
    }
    return AtlasTable("T7", survey, (sheet,), tuple(numbers), (count_forest("Rows of each split", groups),))


def _prompts(name: str) -> Callable[[Survey], AtlasTable]:
    """Table 3 (MELD's sentiment) or 22 (all others): inputs, targets, and what prompts of a dataset share."""

    def made(survey: Survey) -> AtlasTable:
        wanted = [one for one, dataset in DATASETS.items() if (one == "meld_senti") == (name == "T3") and dataset.is_benchmark]
        others = [one for one in survey.datasets if name == "T22" and not DATASETS[one].is_benchmark]
        rows = tuple(_prompt(survey, dataset) for dataset in [*wanted, *others])
        header = ("Dataset", "Inputs published", "Inputs measured", "Target published", "Target measured", "Prompt of all rows")
        said = (
            "Of prompts, the lines are shown that all rows with the commonest inputs share; … stands for what each row has of its own.",
            "No prompt is shown of few rows, nor of a corpus whose texts are those of patients or minors.",
            "Targets: each class is at once a label and an answer in words (section 3.2); open answers are words alone.",
        )
        return AtlasTable(name, survey, (Sheet("Prompts and targets", header, rows, len(header), said),))

    return made


def _prompt(survey: Survey, name: str) -> tuple[str, ...]:
    dataset, found = DATASETS[name], survey.datasets.get(name)
    published = ", ".join(LETTERS[letter] for letter in dataset.modalities)
    target = "words" if dataset.task.is_open else f"one of {len(dataset.labels)} labels"
    if found is None:
        return dataset.title, published, MISSING, target, MISSING, MISSING
    inputs = "; ".join(f"{signature.replace('_', ', ')} ({rows:,})" for signature, rows in sorted(found.signatures.items()))
    labels = [label for label in dataset.labels if any(label in counts for counts in found.labels.values())]
    extra = sorted({label for counts in found.labels.values() for label in counts} - set(labels))
    return dataset.title, published, inputs, target, ", ".join([*labels, *extra]) or "words", " / ".join(found.prompt) or MISSING


def _regions(survey: Survey) -> AtlasTable:
    """Table 21: where corpora come from."""
    rows = []
    for title, entries in survey.corpora():
        origin = origin_of(entries[0].datasets[0])
        facts = (origin.material, origin.recorded, origin.publishers, origin.language, origin.licence) if origin else (MISSING,) * 5
        rows.append(
            (title, *facts, whole(sum_known(survey.rows(entry) for entry in entries)), whole(sum_known(e.published() for e in entries)))
        )
    header = ("Corpus", "Recordings", "Recorded in", "Publishers", "Language", "Licence", "Rows", "Published rows")
    sheet = Sheet("Origins", header, tuple(rows), 6, (ORIGIN_NOTE, *notes_on(survey)))
    shares, forest = region_shares(survey)
    return AtlasTable("T21", survey, (sheet, *shares), (), (forest,))


_TABLES: dict[str, Callable[[Survey], AtlasTable]] = {
    "T1": _benchmarks,
    "T2": _datasets,
    "T3": _prompts("T3"),
    "T7": _splits,
    "T21": _regions,
    "T22": _prompts("T22"),
    "F1": figure_1,
}
