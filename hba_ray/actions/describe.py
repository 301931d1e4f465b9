"""The first steps of an experiment on their own: the atlas, and the descriptors of its clips."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hba_ray.cluster.session import ray_session
from hba_ray.errors import SpecError
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.descriptors import USUAL_STREAMS
from hba_ray.steps import atlas, describe
from hba_ray.steps.base import Context, Draft, Step
from hba_ray.store.folders import LOCK_SECONDS, Storage, claimed, finish

if TYPE_CHECKING:
    from hba_ray.data.atlas import AtlasIndex


def with_streams(spec: ExperimentSpec) -> ExperimentSpec:
    """The spec; where it asks for no descriptors, those of the paper."""
    if describe.settings(spec).streams:
        return spec
    return spec.model_copy(update={"descriptors": spec.descriptors.model_copy(update={"streams": USUAL_STREAMS})})


def index_of(spec: ExperimentSpec) -> AtlasIndex:
    """The index of a spec's atlas, for looking at it: of files that are there, or of an atlas that was made before.

    Raises:
        SpecError: the atlas is generated or converted, and was not made yet.
    """
    from hba_ray.data.atlas import AtlasIndex, build_index

    if spec.atlas.source == "released":
        return build_index(spec.atlas, Path(spec.atlas.root or ""))
    step = atlas.plan(Draft(spec, Storage(spec.compute.storage)))
    if not step.is_done:
        what = f"'{spec.atlas.source}' is not made yet; only files that are there can be checked"
        raise SpecError("atlas.source", what, "make it with `hba describe` or `hba run`, or give the folder of a finished atlas")
    return AtlasIndex.load(step.folder)


def describe_atlas(spec: ExperimentSpec, say: Callable[[str], None]) -> dict[str, Any]:
    """Does the atlas step where it is not done, and extracts every descriptor that the storage lacks.

    Unlike a run, it looks at the store also where the step was done before: what was taken away or
    has changed since is extracted. Ray is started only where something is missing.

    Args:
        spec: with streams, see `with_streams`.
        say: takes a line for people.

    Returns:
        `Summary.to_json` of hba_ray/descriptors/extract.py.

    Raises:
        HbaError: the atlas, a clip or an environment is not what it should be; what is extracted stays.
    """
    draft = Draft(spec, Storage(spec.compute.storage))
    rows, descriptors = atlas.plan(draft), describe.plan(draft)
    if descriptors is None:
        raise ValueError("the spec names no stream")
    folders = {step.name: step.folder for step in draft.steps}

    def context(step: Step) -> Context:
        say(f"{step.name} {step.fingerprint}: {step.what}")
        return Context(spec, folders, step.folder, lambda values, at: None)

    with claimed(rows.folder, wait_seconds=LOCK_SECONDS):
        if not rows.is_done:
            finish(rows.folder, atlas.make(context(rows)))
    with ExitStack() as stack, claimed(descriptors.folder, wait_seconds=LOCK_SECONDS):
        start_ray = lambda: stack.enter_context(ray_session(spec.compute, descriptors.folder / "logs"))  # noqa: E731
        facts = describe.make(context(descriptors), start_ray)
        finish(descriptors.folder, facts)
    return facts
