"""A user's own dataset, declared in a YAML file beside its rows: its id, its task, its columns, its prompt.

A spec that names the folder as a source takes the declaration into itself, so a resolved spec and a pickled one hold it. Whoever has
such a spec, in whatever process, knows the dataset: a declaration tells its listeners (`data.tasks`) of itself when it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from hba_ray.errors import SpecError
from hba_ray.specs.base import Added, Spec
from hba_ray.specs.reading.files import UnreadableFile, whole_text
from hba_ray.specs.reading.yaml_text import InvalidYaml, parse_yaml

DECLARATION = "dataset.yaml"
"""Name of the file in the folder of the rows."""
OF_AN_ATLAS = "own_datasets.json"
"""Name of the file in a built atlas that holds the declarations of its datasets which are somebody's own."""
OWN_DATASETS = "HBA_OWN_DATASETS"
"""Environment variable that tells verl's processes of declarations."""
_ID = r"^[a-z][a-z0-9_]{1,39}$"


class OwnTask(Spec):
    """A task that the benchmark does not have."""

    id: str = Field(pattern=r"^[A-Z][A-Z0-9_]{1,15}$")
    """Its short name in tables: capital letters, digits, underscores."""
    name: str = Field(min_length=1, max_length=80)
    """Its name in words, such as `politeness`."""
    labels: tuple[str, ...] = ()
    """The classes of its head, in order. A task without labels has open answers."""
    metric: Literal["weighted_f1", "mean_weighted_accuracy", "judge_accuracy"] = "weighted_f1"
    """How it is scored; open answers by `judge_accuracy`."""
    rubric: str = ""
    """What the judge of open answers is told: when an answer is right."""

    @model_validator(mode="after")
    def _classes_or_answers(self) -> OwnTask:
        if len(set(self.labels)) != len(self.labels) or len(self.labels) == 1:
            raise ValueError(f"labels are {list(self.labels)}; give two or more, each once, or none for open answers")
        if any(label != " ".join(label.lower().split()) or not label for label in self.labels):
            raise ValueError("labels are compared in lower case: write them so, with single spaces")
        if bool(self.labels) == (self.metric == "judge_accuracy"):
            raise ValueError("metric judge_accuracy is that of tasks without labels, and of all of them")
        if not self.labels and not self.rubric.strip():
            raise ValueError("rubric is missing: say when an open answer is right, for the judge")
        return self


class OwnColumns(Spec):
    """Names of the columns, or keys, of the rows. Those that are null are not there."""

    answer: str = "answer"
    """The label, or the reference answer of an open question."""
    question: str | None = None
    """A question of the row's own, shown in place of `prompt`; open tasks need it."""
    transcript: str | None = None
    """What is said in the clip."""
    video: str | None = None
    """File of a video, as seen from the folder."""
    audio: str | None = None
    """File of a sound; where it is null, a video's own sound is used if `sound` is on."""
    image: str | None = None
    """File of an image."""
    id: str | None = None
    """A name of the row; its number by default."""
    group: str | None = None
    """Speaker, scene or recording: rows that share it stay in one split."""
    split: str | None = None
    """train, validation or test; without it, rows are divided by `splits`."""


class OwnDataset(Spec):
    """What `dataset.yaml` says."""

    dataset: str = Field(pattern=_ID)
    """Its id: lower-case letters, digits, underscores; none of the benchmark's."""
    title: str = ""
    """Its name in tables; the id by default."""
    task: str | OwnTask
    """The id of a task of the benchmark (`hba atlas list` shows them), or a task of your own."""
    labels: tuple[str, ...] | None = None
    """Its classes, where they are fewer than the task's."""
    file: str = "rows.csv"
    """The rows: a csv with a header, or a jsonl, in UTF-8."""
    columns: OwnColumns = OwnColumns()
    prompt: str = ""
    """The question that is put to each row, without the labels, which are named behind it."""
    sound: bool = True
    """Whether the sound of a video is shown, too."""
    sensitive: Annotated[bool, Added(before=False)] = False
    """Whether its texts are to be in no error, log, page or MLflow store, as those of patients are. A judge of open answers is sent
    them all the same."""
    splits: tuple[float, float, float] = (0.7, 0.15, 0.15)
    """Shares of train, validation and test, where no column names the split; groups stay together, and the spec's seed decides."""

    @model_validator(mode="after")
    def _consistent(self) -> OwnDataset:
        if abs(sum(self.splits) - 1) > 1e-6 or min(self.splits) < 0:
            raise ValueError(f"splits are {list(self.splits)}; give three shares that add up to 1")
        if not self.prompt.strip() and self.columns.question is None:
            raise ValueError("prompt is missing: say what each row is asked, or name a column as columns.question")
        if self.labels is not None and (not self.labels or len(set(self.labels)) != len(self.labels)):
            raise ValueError(f"labels are {list(self.labels)}; give each once, or leave the key out for all of the task")
        if Path(self.file).is_absolute() or ".." in Path(self.file).parts:
            raise ValueError(f"file is '{self.file}'; it lies in the folder of {DECLARATION}")
        declare(self)
        return self

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        declare(self)

    @property
    def modalities(self) -> str:
        """Letters of T, A and V, as Table 2 has them."""
        has_audio = self.columns.audio is not None or (self.columns.video is not None and self.sound)
        return "T" + "A" * has_audio + "V" * (self.columns.video is not None or self.columns.image is not None)


_DECLARATIONS = TypeAdapter(list[OwnDataset])
_declared: dict[str, OwnDataset] = {}
_listeners: list[Callable[[OwnDataset], None]] = []


def declare(own: OwnDataset) -> None:
    """Makes a declaration known in this process.

    Raises:
        SpecError: its id or task is taken, by the benchmark or by another declaration.
    """
    before = _declared.get(own.dataset)
    if before is not None and (before.task, before.labels) != (own.task, own.labels):
        what = f"'{own.dataset}' has another task or other labels than a spec that this process has read before"
        raise SpecError("dataset", what, "give it another id, or start again")
    for listener in _listeners:
        listener(own)
    _declared[own.dataset] = own


def declared() -> tuple[OwnDataset, ...]:
    """All that are known in this process."""
    return tuple(_declared.values())


def listen(listener: Callable[[OwnDataset], None]) -> None:
    """Has a function told of every declaration, those that are known already first."""
    for own in _declared.values():
        listener(own)
    _listeners.append(listener)


def in_words(own: Sequence[OwnDataset]) -> str:
    """Declarations as a text, for an atlas, and for processes that get environment variables and no spec; `declare_all` reads it."""
    return _DECLARATIONS.dump_json(list(own)).decode()


def declare_all(text: str) -> None:
    """Makes declarations that `in_words` has written known in this process."""
    _DECLARATIONS.validate_json(text)


def declared_in(root: str) -> list[OwnDataset]:
    """The declarations of an atlas that was built with rows of somebody's own; none of others, and of those in a bucket.

    Raises:
        SpecError: the file of them cannot be read, or holds something else.
    """
    file = Path(root).expanduser() / OF_AN_ATLAS
    if "://" in root or not file.exists():
        return []
    way_out = "build the atlas again, or take the file away if it is not of this atlas"
    try:
        return _DECLARATIONS.validate_json(whole_text(file))
    except UnreadableFile as cause:
        raise SpecError(str(file), cause.what, cause.way_out) from None
    except ValidationError as cause:
        raise SpecError(str(file), f"holds no declarations: {cause.errors()[0]['msg']}", way_out) from None


def read_declaration(root: str) -> OwnDataset:
    """The declaration in a folder.

    Raises:
        SpecError: it is not there, not YAML, or a key is missing, unknown or not valid; names file and line.
    """
    file = Path(root).expanduser() / DECLARATION
    try:
        values, lines = parse_yaml(whole_text(file))
    except UnreadableFile as cause:
        way_out = f"`hba atlas new {root}` writes one from the files that it finds" if cause.is_missing else cause.way_out
        raise SpecError(str(file), cause.what, way_out) from None
    except InvalidYaml as cause:
        raise SpecError(f"{file}, line {cause.line}", str(cause), "correct the YAML") from None
    try:
        return OwnDataset.model_validate(values)
    except ValidationError as invalid:
        errors = [one for one in invalid.errors() if one["loc"][-1:] != ("str",)]  # `task` as a name, where keys are given
        error = (errors or invalid.errors())[0]
        path = tuple(str(part) for part in error["loc"] if part != "str" and "OwnTask" not in str(part))
        line = next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), None)
        where = f"{file}, line {line}" if line else str(file)
        said = "should be keys and values" if error["type"] == "model_type" else error["msg"].removeprefix("Value error, ")
        way_out = f"keys here: {', '.join(OwnDataset.model_fields)}"
        if error["type"] == "string_type":
            way_out = "in YAML, yes, no, null and numbers are texts only in quotes"
        raise SpecError(where, f"{'.'.join(path)}: {said}" if path else said, way_out) from None
