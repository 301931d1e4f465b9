"""The first steps of an experiment on their own: the atlas, and the descriptors of its clips."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from hba_ray.runtime.session import ray_session
from hba_ray.runtime.storage import LOCK_SECONDS, Storage, claimed, finish
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.descriptors import USUAL_STREAMS
from hba_ray.sweeps.steps import atlas, describe
from hba_ray.sweeps.steps.base import Context, Draft, Step


def with_streams(spec: ExperimentSpec) -> ExperimentSpec:
    """The spec; where it asks for no descriptors, those of the paper."""
    if describe.settings(spec).streams:
        return spec
    return spec.model_copy(update={"descriptors": spec.descriptors.model_copy(update={"streams": USUAL_STREAMS})})


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
