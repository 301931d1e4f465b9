"""What all kinds of steps have in common: a name by content, a typed result, and what a step is given when it is done.

A kind of step is a class with one job for each question that can be asked of it:

    plan     which steps of this kind does a spec come to, and what do their results depend on?
    check    can they be done at all? Asked before the first step of a run
    needs    what must machines have that do one? Held against them before the first step
    work     what does one cost, in operations?
    make     do one of them, in a folder of its own
    notes    what has a reader of the report to know of it?
    progress how far has one come that was interrupted?
    version  raised when the code changes what `make` makes, so that old results are not taken for new ones

What a step makes is read back from its folder, so a step that was done yesterday and one that was done now look the
same to the steps after it. What they read is what it made: see `Step.whole` and `Step.file`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from hba_ray.errors import CheckpointError, DataError, HbaError
from hba_ray.evaluation.arms import Arm
from hba_ray.specs import ExperimentSpec, fingerprint
from hba_ray.specs.sections.model import model_folder
from hba_ray.steps.held_out import TRAINED_ON, untrained
from hba_ray.store.files import read_parquet
from hba_ray.store.finished import check_files, known_files, outdated_by, state_of
from hba_ray.store.folders import DO_AGAIN, DONE, Storage, done
from hba_ray.store.follow import Metrics
from hba_ray.store.mirror import mirror_of

if TYPE_CHECKING:
    from hba_ray.data.atlas import AtlasIndex
    from hba_ray.models.size.estimates import Effort
    from hba_ray.steps.needs.base import Need
    from hba_ray.steps.needs.model import Rows

TRANSCRIPTS = "transcripts.parquet"
"""In the folder of the describe step: `line`, the number of a row in the whole index, and `text`, what is said in its clip."""
STEP_LOG = "metrics.jsonl"
"""A step's metrics as they come, a JSON object a line."""
Drops = dict[str, dict[str, int]]
"""dataset -> reason -> rows."""
Lost = dict[str, Drops]
"""split -> dataset -> reason -> rows."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a finished step says of itself: the content of its `done.json`.

    Attributes:
        drops: rows that were left out when the atlas was made.
        lost: rows of the atlas that the step could not use.
        seconds: wall time; None where a former version of hba_ray, which did not measure it, did the step.
        version: of the kind of step; None where a former version of hba_ray, which did not say it, did the step.
    """

    drops: Drops = field(default_factory=dict)
    lost: Lost = field(default_factory=dict)
    seconds: float | None = None
    version: int | None = None


R = TypeVar("R", bound=Result)
T = TypeVar("T")


@dataclass(frozen=True)
class StepKind(ABC, Generic[R]):
    """A kind of step. Kinds have no state of their own; `steps.KINDS` lists them."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    raised: ClassVar[str] = ""
    """What the newest version changed; shown where finished steps are older and will be done again."""
    unversioned: ClassVar[int] = 1
    """The version of finished steps whose `done.json` names none."""
    result_type: ClassVar[type[Result]] = Result
    working: ClassVar[tuple[str, ...]] = ()
    """Folders of a step in which it keeps what it goes on from when it is interrupted; they are no part of what it made."""

    @abstractmethod
    def plan(self, draft: Draft) -> None:
        """Adds the steps of this kind to a plan; none where the spec asks for none.

        Raises:
            HbaError: what a step is made from is not there.
        """

    @staticmethod
    def check(spec: ExperimentSpec) -> None:
        """Makes sure, before the first step of a run, that steps of this kind can be done when their turn comes.

        Kinds that need the same check assign the same function; a run calls each function once.

        Raises:
            HbaError: they could not.
        """

    def needs(self, spec: ExperimentSpec) -> Iterable[Need]:
        """What the machines must have that do a step of this kind; nothing where the spec asks for no such step."""
        return ()

    def work(self, step: Step, rows: Rows) -> Effort | None:
        """What a step of this kind costs with these rows; None where a model has no part in it."""
        return None

    @abstractmethod
    def make(self, context: Context) -> R:
        """Does one step."""

    def notes(self, spec: ExperimentSpec, result: R) -> list[str]:
        """Sentences for the report."""
        return []

    def progress(self, spec: ExperimentSpec, folder: Path) -> str:
        """How far an interrupted step of this kind has come, such as "step 40, in epoch 2 of 4"; "" where nothing is kept of it.

        For people who look at a plan, so it reads small files alone and passes over those that a run would refuse.
        """
        return ""

    def said(self, folder: Path, facts: Mapping[str, Any] | None = None) -> R:
        """What a finished step of this kind says of itself, whatever became of its files. `facts`: its `done.json`, if read already.

        Raises:
            HbaError: it is not finished.
            DataError: what it says is damaged.
        """
        said = done(folder) if facts is None else facts
        if said is None:
            raise HbaError(str(folder), f"this '{self.name}' step is not finished", "run the spec first")
        own = {field.name for field in fields(self.result_type)} - {field.name for field in fields(Result)}
        if own and not own & said.keys():
            raise DataError(str(folder / DONE), f"is damaged: it says nothing of {sorted(own)}", DO_AGAIN, reason="corrupt file")
        try:
            return _reader(self.result_type).validate_python(said)
        except ValidationError as cause:
            error = cause.errors()[0]
            defect = f"is damaged: {'.'.join(map(str, error['loc']))}: {error['msg']}"
            raise DataError(str(folder / DONE), defect, DO_AGAIN, reason="corrupt file") from cause


@cache
def _reader(kind: type[Result]) -> TypeAdapter[Any]:
    """Validates the content of `done.json`; keys that another version of hba_ray has added are ignored."""
    return TypeAdapter(kind)


@dataclass(frozen=True)
class Step:
    """One unit of work of an experiment, with a folder of its own.

    Attributes:
        name: unique within an experiment: the kind, and the arm or part where there are several of a kind.
        what: one line for people.
        resources: one line of what it needs at a time.
        uses_ray: whether it needs a Ray where `compute.workers` is not 0.
        holds_workers: whether it holds the CPUs and GPUs of the spec's workers, which is what it costs.
        arm: which variant of the model it looks at.
        part: which part of such work it is, for example a split.
        spec: that it was planned for; None where it was found in a ledger.
    """

    kind: StepKind[Any]
    name: str
    fingerprint: str
    folder: Path
    what: str
    resources: str = "1 CPU"
    uses_ray: bool = False
    holds_workers: bool = False
    arm: Arm | None = None
    part: str | None = None
    spec: ExperimentSpec | None = field(default=None, compare=False, repr=False)

    @property
    def is_done(self) -> bool:
        """Whether it is finished, and what it was made from is still the same."""
        facts = done(self.folder)
        return facts is not None and not outdated_by(self.folder, facts, without=[STEP_LOG])

    def outdated_by(self) -> list[str]:
        """Folders of steps that it was made from and that were done again since, with another result."""
        facts = done(self.folder)
        return [] if facts is None else outdated_by(self.folder, facts, without=[STEP_LOG])

    @property
    def progress(self) -> str:
        """How far it has come where it was interrupted; see `StepKind.progress`."""
        return "" if self.spec is None or self.is_done else self.kind.progress(self.spec, self.folder)

    def result(self) -> Any:
        """What the finished step says of itself, once all its files are known to be there in their size; in a bucket, to be listed.

        Raises:
            HbaError: it is not finished.
            DataError: what it says is damaged, or a file is gone or has another size.
        """
        return self._checked(None)

    def whole(self) -> Path:
        """The folder of the finished step, once all its files are known to hold what they held.

        Each is read once; the storage remembers its digest until it changes.

        Raises:
            HbaError: it is not finished.
            DataError: what it says is damaged, or a file is not what it was.
        """
        self._checked(None, content=True)
        return self.folder

    def file(self, name: str) -> Path:
        """A file that the finished step has made, once it is known to hold what it held.

        Raises:
            HbaError: the step is not finished.
            DataError: what it says is damaged, or the file is not what it was.
        """
        self._checked(name, content=True)
        return self.folder / name

    def has(self, name: str) -> bool:
        """Whether the finished step has made a file of this name, even if it is gone by now; of a former version's steps, what is there."""
        known = known_files(self.folder, done(self.folder) or {})
        return os.path.lexists(self.folder / name) if known is None else name in known

    def state(self) -> str:
        """A name for the content of the finished step's files; the log of its metrics, which holds times, does not enter."""
        return state_of(done(self.folder) or {}, without=[STEP_LOG])

    def _checked(self, only: str | None, *, content: bool = False) -> Any:
        """What the finished step says of itself, once its files, or one of them, are known to be what they were."""
        facts = done(self.folder)
        said = self.kind.said(self.folder, facts)
        check_files(self.folder, facts or {}, self.name, only=only, content=content, memory=self.folder.parents[1])
        return said

    def to_json(self, result: Result) -> dict[str, Any]:
        """What the step's `done.json` says of a result."""
        return asdict(replace(result, version=self.kind.version))


@dataclass(frozen=True)
class Draft:
    """A plan while it is made: the steps so far, in order.

    Attributes:
        absent: collects the errors about files that are not there yet, by their text; None raises them.
    """

    spec: ExperimentSpec
    storage: Storage
    steps: list[Step] = field(default_factory=list)
    absent: dict[str, HbaError] | None = None

    def content(self, read: Callable[[], T], otherwise: T) -> T:
        """What `read` says of files, by which a step is named; in a plan that is made before they are there, `otherwise`."""
        try:
            return read()
        except (DataError, CheckpointError) as missing:
            if self.absent is None:
                raise
            self.absent[str(missing)] = missing
            return otherwise

    def __contains__(self, name: str) -> bool:
        return any(step.name == name for step in self.steps)

    def __getitem__(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)

    def of_kind(self, name: str) -> list[Step]:
        """The steps of a kind that are in the plan already."""
        return [step for step in self.steps if step.kind.name == name]

    def add(
        self,
        kind: StepKind[Any],
        identity: Mapping[str, Any],
        what: str,
        *,
        arm: Arm | None = None,
        part: str | None = None,
        resources: str | None = None,
        uses_ray: bool = False,
        holds_workers: bool = False,
    ) -> Step:
        """Adds a step.

        Args:
            identity: JSON values that say all that the step's result depends on, earlier steps by their fingerprints.
            resources: by default those of the workers, or one CPU where it holds none.
            holds_workers: see `Step`; such a step uses Ray.
        """
        digest = fingerprint({"kind": kind.name, "version": kind.version, **identity})
        name = " ".join(word for word in (kind.name, part or (arm and str(arm))) if word)
        folder = self.storage.step(kind.name, digest)
        resources = resources or (training_resources(self.spec) if holds_workers else "1 CPU")
        step = Step(kind, name, digest, folder, what, resources, uses_ray or holds_workers, holds_workers, arm, part, self.spec)
        self.steps.append(step)
        return step


@dataclass(frozen=True)
class Context:
    """What a step is given when it is done.

    Attributes:
        earlier: name of an earlier step -> that step.
        log: takes the step's metrics as they come: (values, optimiser step).
        start_ray: starts a Ray where there is none; for steps that find out themselves whether they need one.
        read: names of the earlier steps that the step has read.
    """

    spec: ExperimentSpec
    step: Step
    earlier: Mapping[str, Step]
    log: Callable[[Metrics, int], None] = lambda values, number: None
    start_ray: Callable[[], object] = lambda: None
    read: set[str] = field(default_factory=set)

    @property
    def folder(self) -> Path:
        """The step's own folder."""
        return self.step.folder

    @property
    def part(self) -> str:
        assert self.step.part is not None
        return self.step.part

    @property
    def arm(self) -> Arm:
        assert self.step.arm is not None
        return self.step.arm

    @property
    def storage(self) -> Storage:
        return Storage(self.spec.compute.storage)

    def folder_of(self, name: str) -> Path:
        """The folder of an earlier step, whose files are looked at when the step first reads them; see `Step.whole` for the errors."""
        if name in self.read:
            return self.earlier[name].folder
        folder = self.earlier[name].whole()
        self.read.add(name)
        return folder

    @property
    def index(self) -> AtlasIndex:
        """The rows as stages see them: datasets that are not trained on have rows in the test split alone."""
        index = self.whole_index
        return index.without(untrained(self.spec, index.counts()), TRAINED_ON)

    @property
    def whole_index(self) -> AtlasIndex:
        """All rows of the atlas; once the describe step is done, with the transcripts of rows that have no text of their own.

        After the pack step, their clips are read in the pack. A step is not made from it, since it gets the same without it.
        """
        from hba_ray.data.atlas import AtlasIndex
        from hba_ray.data.packed import ROWS, Pack
        from hba_ray.store.roots import stated_roots

        index = AtlasIndex.load(self.folder_of("atlas"), stated=stated_roots(self.spec.atlas))
        pack = None if self.step.kind.name in ("atlas", "describe", "pack") else self.earlier.get("pack")
        if pack is not None and pack.is_done:
            rows = pack.file(ROWS).parent if mirror_of(pack.folder) is None else pack.whole()  # of a bucket, shards have to be fetched
            index = replace(index, pack=Pack(str(rows)))
        if "describe" not in self.earlier or "transcripts" not in self.spec.descriptors.streams:
            return index
        said = read_parquet(self.folder_of("describe") / TRANSCRIPTS).to_pydict()
        return replace(index, transcripts=dict(zip(said["line"], said["text"], strict=True)))

    @property
    def backbone(self) -> str:
        """Folder or hub id of the backbone."""
        if "backbone" in self.earlier:
            return str(self.folder_of("backbone") / "model")
        name = self.spec.model.backbone
        return str(model_folder(name, "model.backbone") or name)


def training_resources(spec: ExperimentSpec) -> str:
    """One line, for people, of the CPUs and GPUs that the workers of a step and their loaders hold."""
    workers, (cpus, gpus) = max(1, spec.compute.workers), spec.compute.held
    return f"{cpus:g} CPUs{f', {gpus:g} GPUs' if gpus else ''} ({workers} worker{'s' if workers > 1 else ''})"
