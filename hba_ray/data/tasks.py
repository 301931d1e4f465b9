"""The benchmark as tables: dimensions, tasks, label sets, datasets, split counts (paper Tables 2 and 7), spellings of labels.

Everything that depends on a task or a dataset is looked up here: the metric, the label set, the
place of a class in the released 25-class layout, the counts that an atlas is checked against, and the
one spelling that the benchmark has for all spellings of a label in its sources (paper section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Literal

from hba_ray.data.text import comparable, quoted, visible
from hba_ray.errors import DataError, SpecError
from hba_ray.specs import AtlasSpec
from hba_ray.specs.sections.own import OwnDataset, listen

Dimension = Literal["Aff", "Cog", "Path", "Soc"]
DIMENSIONS: dict[Dimension, str] = {"Aff": "affective states", "Cog": "cognitive states", "Path": "pathology", "Soc": "social processes"}
"""The four dimensions of behaviour (paper section 3.1)."""
Metric = Literal["binary_weighted_f1", "mean_weighted_accuracy", "weighted_f1", "judge_accuracy"]


@dataclass(frozen=True)
class Task:
    """One of the ten behavioural tasks, or one of a user's own.

    Attributes:
        id: the paper's abbreviation.
        metric: the one metric of the task, the same on all its datasets (paper section 3.3).
        labels: the classes of its head, in the order of the released label map; empty for open answers.
        rubric: of a user's own task with open answers, what the judge is told.
    """

    id: str
    name: str
    metric: Metric
    labels: tuple[str, ...] = ()
    rubric: str = ""

    @property
    def is_open(self) -> bool:
        """Whether it is answered in free text by the decoder, not by a classifier head."""
        return not self.labels


_SENTIMENT = ("highly negative", "negative", "weakly negative", "neutral", "weakly positive", "positive", "highly positive")
_EMOTION = ("anger", "disgust", "fear", "happy", "neutral", "calm", "sad", "surprise")

BENCHMARK_TASKS = (
    Task("SEN", "sentiment polarity", "binary_weighted_f1", _SENTIMENT),
    Task("EMO", "emotion recognition", "mean_weighted_accuracy", _EMOTION),
    Task("PTSD", "PTSD detection", "weighted_f1", ("no ptsd", "ptsd")),
    Task("DEP", "depression detection", "weighted_f1", ("no depression", "depression")),
    Task("ANX", "anxiety detection", "weighted_f1", ("no anxiety", "anxiety")),
    Task("SAR", "sarcasm detection", "weighted_f1", ("not sarcasm", "sarcasm")),
    Task("HUM", "humour detection", "weighted_f1", ("not humour", "humour")),
    Task("SOC", "social reasoning", "judge_accuracy"),
    Task("INT", "intent recognition", "judge_accuracy"),
    Task("NVC", "non-verbal communication", "judge_accuracy"),
)
TASKS: dict[str, Task] = {task.id: task for task in BENCHMARK_TASKS}
"""The same by id, and those that specs declare."""

CLASS_TASKS: tuple[Task, ...] = tuple(task for task in BENCHMARK_TASKS if not task.is_open)
"""The seven tasks with a classifier head, in the order of the released heads (label_maps/unified_label_map.json)."""
CLASSES: tuple[tuple[str, str], ...] = tuple((task.id, label) for task in CLASS_TASKS for label in task.labels)
"""The 25 classes as (task, label), by global index."""
SPLIT_SURPRISE = ("positive surprise", "negative surprise")
"""Labels that replace `surprise` where a dataset tells them apart and `atlas.split_surprise` is on (paper section 3.3)."""


@dataclass(frozen=True)
class Dataset:
    """One pair of a dataset and a task; a corpus that is annotated for two tasks gives two of them.

    Attributes:
        id: the id in the released files.
        title: the name in the paper.
        modalities: letters of T, A, V in Table 2.
        labels: its own classes, a subset of its task's; empty for open answers.
        counts: rows in train, validation and test (Table 7); None where there is no published count.
        aliases: other spellings that are understood.
        source: the corpus it belongs to; datasets of one corpus share their clips.
        sensitive: its texts are those of patients or minors, which belong in no log, error or page: see `data.text`.
        is_own: declared by a spec, see `specs.sections.own`.
    """

    id: str
    title: str
    task: Task
    dimensions: tuple[Dimension, ...]
    modalities: str
    labels: tuple[str, ...] = ()
    counts: tuple[int, int, int] | None = None
    aliases: tuple[str, ...] = ()
    source: str = ""
    sensitive: bool = False
    is_own: bool = False

    @property
    def is_toy(self) -> bool:
        return self.source == "toy"

    @property
    def is_benchmark(self) -> bool:
        """Whether it is one of the sixteen of Table 2; IEMOCAP, which the paper transfers to (Table 9), is not."""
        return not self.is_own and self.source not in ("toy", "iemocap")

    @property
    def is_outside(self) -> bool:
        """Whether it is neither of the benchmark nor a toy: it is trained on and counted in means only where that is asked for."""
        return not self.is_benchmark and not self.is_toy


def _dataset(
    id: str,
    title: str,
    task: str,
    dimensions: str,
    modalities: str,
    labels: tuple[str, ...] | None = None,
    *,
    counts: tuple[int, int, int] | None = None,
    aliases: tuple[str, ...] = (),
    source: str = "",
    sensitive: bool = False,
) -> Dataset:
    own = TASKS[task].labels if labels is None else labels
    return Dataset(id, title, TASKS[task], tuple(dimensions.split()), modalities, own, counts, aliases, source or id, sensitive)  # type: ignore[arg-type]


_SIX = ("anger", "disgust", "fear", "happy", "neutral", "sad")
_DATASETS = (
    _dataset(
        "mosei_senti",
        "CMU-MOSEI (SEN)",
        "SEN",
        "Aff Cog",
        "TAV",
        counts=(16326, 1871, 4659),
        aliases=("mosei_sen", "cmu_mosei_sen", "MOSEI (S)"),
        source="mosei",
    ),
    _dataset(
        "mosei_emotion",
        "CMU-MOSEI (EMO)",
        "EMO",
        "Aff Cog",
        "TAV",
        ("anger", "disgust", "fear", "happy", "sad", "surprise"),
        counts=(6246, 599, 1753),
        aliases=("mosei_emo", "cmu_mosei_emo", "MOSEI (E)"),
        source="mosei",
    ),
    _dataset(
        "meld_senti",
        "MELD (SEN)",
        "SEN",
        "Aff Soc Cog",
        "TAV",
        ("negative", "neutral", "positive"),
        counts=(9988, 1108, 2610),
        aliases=("meld_sen", "meld_sentiment", "MELD (S)"),
        source="meld",
    ),
    _dataset(
        "meld_emotion",
        "MELD (EMO)",
        "EMO",
        "Aff Soc Cog",
        "TAV",
        (*_SIX, "surprise"),
        counts=(9988, 1108, 2610),
        aliases=("meld_emo", "MELD (E)"),
        source="meld",
    ),
    _dataset("tess", "TESS", "EMO", "Aff Cog", "TA", (*_SIX, "surprise"), counts=(1960, 420, 420)),
    _dataset("cremad", "CREMA-D", "EMO", "Aff", "TA", _SIX, counts=(5209, 1116, 1117), aliases=("crema_d",)),
    _dataset(
        "chsimsv2",
        "CH-SIMSv2",
        "SEN",
        "Aff",
        "TAV",
        ("highly negative", "weakly negative", "neutral", "weakly positive", "highly positive"),
        counts=(2722, 647, 1034),
        aliases=("ch_simsv2", "ch_sims_v2", "chsims"),
    ),
    _dataset("siq2", "Social-IQ 2.0", "SOC", "Soc Cog", "TAV", counts=(5562, 0, 875), aliases=("social_iq2", "socialiq", "social_iq_2")),
    _dataset("intentqa", "IntentQA", "INT", "Soc Cog", "TAV", counts=(12119, 2044, 2134), aliases=("intent_qa",)),
    _dataset("mimeqa", "MimeQA", "NVC", "Soc", "TAV", counts=(633, 0, 173), aliases=("mime_qa",)),
    _dataset("urfunny", "UR-FUNNYv2", "HUM", "Soc", "TAV", counts=(1709, 192, 224), aliases=("ur_funny", "ur_funnyv2", "urfunnyv2")),
    _dataset("mmsd", "MUStARD", "SAR", "Soc", "TAV", counts=(483, 104, 103), aliases=("mustard",), source="mustard"),
    _dataset("daicwoz", "DAIC-WOZ", "DEP", "Path", "TA", counts=(107, 35, 47), aliases=("daic_woz", "daic"), sensitive=True),
    _dataset(
        "mmpsy_depression",
        "MMPsy (DEP)",
        "DEP",
        "Path",
        "T",
        counts=(893, 191, 191),
        aliases=("mmpsy_dep", "MMPsy (D)"),
        source="mmpsy",
        sensitive=True,
    ),
    _dataset(
        "mmpsy_anxiety",
        "MMPsy (ANX)",
        "ANX",
        "Path",
        "T",
        counts=(893, 191, 191),
        aliases=("mmpsy_anx", "MMPsy (A)"),
        source="mmpsy",
        sensitive=True,
    ),
    _dataset("ptsd_in_the_wild", "PTSD-in-the-Wild", "PTSD", "Path", "TAV", counts=(506, 64, 64), aliases=("ptsd_wild", "ptsd")),
    _dataset("iemocap", "IEMOCAP", "EMO", "Aff", "TAV", (*_SIX, "surprise")),
    _dataset("toy_tone", "toy tone", "EMO", "Aff", "TA", ("anger", "happy", "sad"), source="toy"),
    _dataset("toy_nod", "toy nod", "SEN", "Aff", "TV", ("negative", "neutral", "positive"), source="toy"),
    _dataset("toy_words", "toy words", "SAR", "Soc", "T", source="toy"),
    _dataset("toy_answers", "toy answers", "NVC", "Soc", "TAV", source="toy"),
)
DATASETS: dict[str, Dataset] = {dataset.id: dataset for dataset in _DATASETS}
TOTAL_ROWS = (74451, 9499, 18014)
"""Rows of the whole benchmark in each split (Table 7's last row). MMPsy's clips carry two tasks and are counted once there."""

SPLITS: tuple[str, str, str] = ("train", "validation", "test")

CONSOLIDATED: dict[str, str] = {
    "angry": "anger",
    "disgusted": "disgust",
    "fearful": "fear",
    "joy": "happy",
    "happiness": "happy",
    "sadness": "sad",
    "surprised": "surprise",
    "pleasant surprise": "positive surprise",
    "pleasant_surprise": "positive surprise",
    "strongly negative": "highly negative",
    "strongly positive": "highly positive",
    "humor": "humour",
    "not humor": "not humour",
    "non-humour": "not humour",
    "sarcastic": "sarcasm",
    "not sarcastic": "not sarcasm",
    "depressed": "depression",
    "not depressed": "no depression",
    "with ptsd": "ptsd",
    "without ptsd": "no ptsd",
}
"""A source's spelling of a label -> the released label map's spelling."""

_DASHES = str.maketrans(dict.fromkeys("-\u2013 ", "_"))


def _plain(name: str) -> str:
    """A name as names are compared, with underscores for spaces and for both dashes that the paper prints."""
    return comparable(name).translate(_DASHES)


_BY_NAME = {_plain(name): dataset for dataset in _DATASETS for name in (dataset.id, dataset.title, *dataset.aliases)}


def _register(own: OwnDataset) -> None:
    """Enters a dataset that a spec declares, and its task.

    Raises:
        SpecError: an id is that of the benchmark, or a label is none of the task's.
    """
    known = DATASETS.get(own.dataset) or _BY_NAME.get(_plain(own.dataset))
    if known is not None and not known.is_own:
        raise SpecError("dataset", f"'{own.dataset}' is a name of {known.title}", "give it another id")
    if isinstance(own.task, str):
        if own.task not in TASKS:
            raise SpecError("task", f"'{own.task}' is none of {', '.join(TASKS)}", "name one of these, or declare one of your own")
        task = TASKS[own.task]
    else:
        task = Task(own.task.id, own.task.name, own.task.metric, own.task.labels, own.task.rubric)
        if unlike := [label for label in task.labels if comparable(label) != label]:
            raise SpecError("task.labels", f"no answer is '{unlike[0]}' as answers are compared", f"write '{comparable(unlike[0])}'")
        if TASKS.get(task.id, task) != task:
            raise SpecError("task", f"'{task.id}' is a task already, with another name, metric or labels", "give it another id")
    labels = task.labels if own.labels is None else own.labels
    if unknown := [label for label in labels if label not in task.labels]:
        raise SpecError("labels", f"'{unknown[0]}' is no label of {task.id} ({', '.join(task.labels)})", "correct it, or declare a task")
    TASKS[task.id] = task
    made = Dataset(
        own.dataset, own.title or own.dataset, task, (), own.modalities, labels, source=own.dataset, sensitive=own.sensitive, is_own=True
    )
    DATASETS[made.id] = _BY_NAME[_plain(made.id)] = made


listen(_register)


@dataclass(frozen=True)
class Heads:
    """The classifier heads of a model: those of the released layout, of a spec's own tasks, and of the two sides of surprise.

    Attributes:
        own: tasks with labels that the spec declares.
        split_surprise: whether surprise has two sides (paper section 3.3).
    """

    own: tuple[Task, ...] = ()
    split_surprise: bool = False

    @staticmethod
    def of(atlas: AtlasSpec) -> Heads:
        """Those that a spec asks for."""
        tasks = dict.fromkeys(DATASETS[own.dataset].task for own in atlas.own)
        return Heads(tuple(task for task in tasks if task.labels and task not in CLASS_TASKS), atlas.split_surprise)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """In the order of the heads; the sides of surprise, whose scores join those of emotion, come behind them."""
        return (*CLASS_TASKS, *self.own)

    @cached_property
    def classes(self) -> tuple[tuple[str, str], ...]:
        """(task, label) by global index."""
        own = tuple((task.id, label) for task in self.own for label in task.labels)
        return (*CLASSES, *own, *(("EMO", label) for label in SPLIT_SURPRISE if self.split_surprise))

    @cached_property
    def _index(self) -> dict[tuple[str, str], int]:
        return {pair: index for index, pair in enumerate(self.classes)}

    def index(self, task: str, label: str) -> int:
        """The global index of a class."""
        return self._index[task, label]

    def slot(self, task: str) -> int:
        """The place of a task's head; -1 of a task with open answers."""
        return next((slot for slot, one in enumerate(self.tasks) if one.id == task), -1)


BENCHMARK_HEADS = Heads()
"""The seven heads of the released layout."""
WITH_SPLIT_SURPRISE = Heads(split_surprise=True)
"""The same with a place for the two sides of surprise behind them."""


def find_dataset(name: str, *, where: str = "atlas.datasets") -> Dataset:
    """The dataset of an id, title or alias, in any case.

    >>> find_dataset("MUStARD").id
    'mmsd'

    Raises:
        DataError: no such dataset; names the nearest id.
    """
    try:
        return _BY_NAME[_plain(name)]
    except KeyError:
        near = get_close_matches(_plain(name)[:100], _BY_NAME, n=1)
        hint = f"did you mean '{_BY_NAME[near[0]].id}'?" if near else f"known: {', '.join(DATASETS)}"
        raise DataError(where, f"unknown dataset '{visible(name)}'", hint, reason="unknown dataset") from None


def consolidate(label: str, dataset: Dataset, *, where: str, split_surprise: bool = False) -> str:
    """The benchmark's spelling of a dataset's label.

    Args:
        split_surprise: also accept positive and negative surprise, where the row says which.

    Raises:
        DataError: the dataset has no such label; names the nearest one.
    """
    found = find_label(label, dataset, split_surprise=split_surprise)
    if found is not None:
        return found
    what = f"{quoted(label, is_sensitive=dataset.sensitive)} is not a label of {dataset.id} ({', '.join(dataset.labels)})"
    raise DataError(where, what, _nearest(comparable(label), dataset.labels), reason="unknown label")


def find_label(label: str, dataset: Dataset, *, split_surprise: bool = False) -> str | None:
    """What `consolidate` returns; None where the dataset has no such label."""
    plain = comparable(label)
    if plain in dataset.labels:  # a user's own may have `joy`
        return plain
    plain = CONSOLIDATED.get(plain, plain)
    if plain in SPLIT_SURPRISE and "surprise" in dataset.labels:
        return plain if split_surprise else "surprise"
    return plain if plain in dataset.labels else None


def _nearest(plain: str, labels: tuple[str, ...]) -> str:
    """A hint at the label that is meant. One that leaves a degree open, such as `positive` of five classes, may mean several."""
    degrees = [label for label in labels if label.split()[-1] == plain]
    if len(degrees) > 1:
        return f"say which is meant: {' or '.join(degrees)}"
    near = get_close_matches(plain[:100], labels, n=1)
    return f"did you mean '{near[0]}'?" if near else ""
