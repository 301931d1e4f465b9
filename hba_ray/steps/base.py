"""What all steps have in common: a name by content, the steps before it, and what it is given when it is done.

What a step makes is read back from its folder, so a step done yesterday and one done now look the
same to the next.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hba_ray.data.tasks import find_dataset
from hba_ray.errors import CheckpointError, DataError
from hba_ray.specs import ExperimentSpec, fingerprint
from hba_ray.specs.model import model_folder
from hba_ray.store.files import folder_digests, read_parquet
from hba_ray.store.folders import Storage, done, read_lines
from hba_ray.store.follow import Metrics

if TYPE_CHECKING:
    from hba_ray.data.atlas import AtlasIndex, Drop

TRANSCRIPTS = "transcripts.parquet"
"""In the folder of the describe step: line of the whole index, and what is said in the row's clip."""
STEP_LOG = "metrics.jsonl"
"""A step's metrics as they come, a JSON object a line."""
VERSIONS = {
    **{"atlas": 2, "describe": 1, "backbone": 1, "sft": 1, "states": 2, "bam": 2, "transfer": 2, "grpo": 2},
    **{"evaluate": 3, "judge": 1, "compare": 2, "retention": 2, "probe": 1},
}
"""Raised when the code of a step changes what it makes, so that old results are not taken for new ones."""
TRAINED_ON = ("train", "validation")
"""The splits that training looks at."""


@dataclass(frozen=True)
class Step:
    """One unit of work.

    Attributes:
        kind: which module of this package does it.
        name: unique within an experiment; the kind, and the arm or part where each of those has such a step.
        what: one line for people.
        resources: one line of what it needs at a time.
        uses_ray: whether it needs a Ray where `compute.workers` is not 0.
        arm: which variant of the model it looks at, as reports name it.
        part: which part of such work it is, for example a split.
    """

    kind: str
    name: str
    fingerprint: str
    folder: Path
    what: str
    resources: str = "1 CPU"
    uses_ray: bool = False
    arm: str | None = None
    part: str | None = None

    @property
    def is_done(self) -> bool:
        return done(self.folder) is not None


@dataclass(frozen=True)
class Draft:
    """A plan while it is made: the steps so far, in order."""

    spec: ExperimentSpec
    storage: Storage
    steps: list[Step] = field(default_factory=list)

    def __contains__(self, name: str) -> bool:
        return any(step.name == name for step in self.steps)

    def __getitem__(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)

    def add(
        self,
        kind: str,
        identity: dict[str, Any],
        what: str,
        *,
        arm: str | None = None,
        part: str | None = None,
        resources: str = "1 CPU",
        uses_ray: bool = False,
    ) -> Step:
        """Adds a step.

        Args:
            identity: JSON values that say all that the step's result depends on, earlier steps by their fingerprints.
        """
        digest = fingerprint({"kind": kind, "version": VERSIONS[kind], **identity})
        name = " ".join(word for word in (kind, part or arm) if word)
        step = Step(kind, name, digest, self.storage.step(kind, digest), what, resources, uses_ray, arm, part)
        self.steps.append(step)
        return step


@dataclass(frozen=True)
class Context:
    """What a step is given.

    Attributes:
        folders: name of an earlier step -> its folder.
        folder: the step's own.
        log: takes a step's metrics as they come: (values, optimiser step).
        arm, part: of the step.
    """

    spec: ExperimentSpec
    folders: dict[str, Path]
    folder: Path
    log: Callable[[Metrics, int], None]
    arm: str | None = None
    part: str | None = None

    @property
    def index(self) -> AtlasIndex:
        """The rows as stages see them: those of held-out datasets are in the test split alone."""
        return self.whole_index.without(held_out(self.spec), TRAINED_ON)

    @property
    def whole_index(self) -> AtlasIndex:
        """All rows of the atlas; once the describe step has made them, with the transcripts of those that have no text of their own."""

        from hba_ray.data.atlas import AtlasIndex

        index = AtlasIndex.load(self.folders["atlas"])
        file = self.folders.get("describe", self.folder) / TRANSCRIPTS
        if self.folder == file.parent or not file.exists():
            return index
        said = read_parquet(file).to_pydict()
        return replace(index, transcripts=dict(zip(said["line"], said["text"], strict=True)))

    @property
    def backbone(self) -> str:
        """Folder or hub id of the backbone."""
        name = self.spec.model.backbone
        return str(self.folders["backbone"] / "model") if "backbone" in self.folders else str(model_folder(name, "model.backbone") or name)


def held_out(spec: ExperimentSpec) -> list[str]:
    """The held-out datasets, by id."""
    return [find_dataset(name, where="atlas.held_out").id for name in spec.atlas.held_out]


def training_resources(spec: ExperimentSpec) -> str:
    """What the workers of a step and their loaders hold together, for people."""
    compute = spec.compute
    workers = max(1, compute.workers)
    cpus = workers * compute.cpus_per_worker + compute.workers * compute.loaders * compute.cpus_per_loader
    gpus = f", {compute.workers * compute.gpus_per_worker:g} GPUs" if compute.gpus_per_worker else ""
    return f"{cpus:g} CPUs{gpus} ({workers} worker{'s' if workers > 1 else ''})"


def shown_metrics(name: str, line: Mapping[str, Any]) -> tuple[Metrics, int]:
    """A line of the log of a step with this name, under the names that MLflow shows, and its optimiser step.

    >>> shown_metrics("sft", {"step": 3, "loss": 0.5, "improved": True})
    ({'sft/loss': 0.5}, 3)
    """
    numbers = {key: value for key, value in line.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    place = name.replace(" ", "/")
    return {f"{place}/{key}": float(value) for key, value in numbers.items() if key != "step"}, int(line["step"])


def logged_metrics(step: Step) -> Iterator[tuple[Metrics, int]]:
    """All metrics that a step has logged, whoever ran it; where lines were taken back, the first of a step counts."""
    for line in read_lines(step.folder / STEP_LOG):
        yield shown_metrics(step.name, line)


def digest_checkpoint(draft: Draft, name: str, key: str) -> list[list[str]]:
    """Name and digest of each file of a checkpoint that a key of the spec names.

    Raises:
        CheckpointError: it is no folder.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise CheckpointError(key, f"no such folder: {name}", "give the folder of a checkpoint")
    return folder_digests(folder, memory=draft.storage.folder)


def count_drops(drops: list[Drop]) -> dict[str, dict[str, int]]:
    """dataset -> reason -> rows."""
    counts: dict[str, dict[str, int]] = {}
    for (dataset, reason), rows in sorted(Counter((drop.dataset, drop.reason) for drop in set(drops)).items()):
        counts.setdefault(dataset, {})[reason] = rows
    return counts


def check_rows(index: AtlasIndex, split: str) -> None:
    """Refuses a split without rows, where something is to be learnt from it, or scored.

    Raises:
        DataError: it has none.
    """
    if not len(index.rows_of(split)):
        way_out = f"the folder needs a file such as {split}.jsonl or {split}-00000-of-00001.parquet; `hba atlas check` counts its rows"
        raise DataError(index.root, f"the {split} split holds no rows", way_out, reason="no rows")


def check_some_left(split: str, rows: int, drops: list[Drop]) -> None:
    """Refuses a split of which no row could be read: there is nothing to train on, or to score.

    Raises:
        DataError: says why the rows were dropped.
    """
    lost = {drop for drop in drops if drop.split == split}
    if rows and len(lost) >= rows:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(Counter(drop.reason for drop in lost).items()))
        raise DataError(f"the {split} split", f"none of its {rows} rows could be read ({reasons})", "mend the clips", reason="no rows left")


def losses(drops: list[Drop]) -> dict[str, dict[str, dict[str, int]]]:
    """split -> dataset -> reason -> rows that a step had to leave out of those that the atlas holds."""
    splits = sorted({drop.split for drop in drops})
    return {split: count_drops([drop for drop in drops if drop.split == split]) for split in splits}


def join_losses(parts: Iterable[Mapping[str, dict[str, dict[str, int]]]]) -> dict[str, dict[str, dict[str, int]]]:
    """What several steps lost, together: two steps that read a split leave out the same rows, which count once.

    >>> join_losses([{"test": {"cremad": {"corrupt audio": 2}}}, {"test": {"cremad": {"corrupt audio": 2}}}])
    {'test': {'cremad': {'corrupt audio': 2}}}
    """
    joined: dict[str, dict[str, dict[str, int]]] = {}
    for part in parts:
        for split, datasets in part.items():
            for dataset, reasons in datasets.items():
                kept = joined.setdefault(split, {}).setdefault(dataset, {})
                kept.update({reason: max(rows, kept.get(reason, 0)) for reason, rows in reasons.items()})
    return joined


def rows_left(counts: Mapping[str, Mapping[Any, int]], lost: Mapping[str, Mapping[str, Mapping[str, int]]]) -> dict[str, dict[Any, int]]:
    """dataset -> split -> rows of the atlas, less those that steps had to leave out.

    >>> rows_left({"cremad": {"train": 9, "test": 5}}, {"test": {"cremad": {"corrupt audio": 2}}})
    {'cremad': {'train': 9, 'test': 3}}
    """
    return {
        dataset: {split: rows - sum(lost.get(split, {}).get(dataset, {}).values()) for split, rows in splits.items()}
        for dataset, splits in counts.items()
    }


def rows_used(steps: Sequence[Step]) -> dict[str, dict[Any, int]]:
    """dataset -> split -> rows that finished steps of an experiment had, as reports and tables count them."""
    facts = {step.name: done(step.folder) or {} for step in steps}
    return rows_left(facts["atlas"].get("counts", {}), join_losses(fact["lost"] for fact in facts.values() if fact.get("lost")))


def add_drops(parts: list[dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    """The sum of several counts."""
    totals: dict[str, Counter[str]] = {}
    for part in parts:
        for dataset, reasons in part.items():
            totals.setdefault(dataset, Counter()).update(reasons)
    return json.loads(json.dumps(totals))
