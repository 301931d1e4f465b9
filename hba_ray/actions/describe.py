"""The first steps of an experiment on their own: the atlas, and the descriptors of its clips."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hba_ray.cluster.session import ray_session
from hba_ray.data.repeats import Leak
from hba_ray.errors import SpecError
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.sections.descriptors import USUAL_STREAMS
from hba_ray.steps.base import Context, Draft, Step
from hba_ray.steps.inputs import describe
from hba_ray.steps.inputs.atlas import AtlasResult, AtlasSteps, found_in, say_found
from hba_ray.steps.run import do_step
from hba_ray.store.folders import Storage
from hba_ray.store.roots import stated_roots

if TYPE_CHECKING:
    from hba_ray.data.atlas import AtlasIndex


def with_streams(spec: ExperimentSpec) -> ExperimentSpec:
    """The spec, with the descriptors of the paper where it asks for none."""
    if describe.settings(spec).streams:
        return spec
    return spec.model_copy(update={"descriptors": spec.descriptors.model_copy(update={"streams": USUAL_STREAMS})})


def index_of(spec: ExperimentSpec) -> tuple[AtlasIndex, list[str]]:
    """The index of a spec's atlas without making one: of released files, or of an atlas that a run has made before.

    Returns:
        the index, and sentences about what was put right in its rows, and about rows in two splits.

    Raises:
        SpecError: the atlas is generated or converted, and was not made yet.
    """
    from hba_ray.data.atlas import AtlasIndex, build_index

    roots = [root for root in stated_roots(spec.atlas) if root is not None]
    if len(roots) == len(spec.atlas.parts):
        index = build_index(spec.atlas, roots)
        return index, say_found(*found_in(index))
    draft = Draft(spec, Storage(spec.compute.storage))
    AtlasSteps().plan(draft)
    step = draft["atlas"]
    if not step.is_done:
        sources = ", ".join(part.source for part in spec.atlas.parts)
        what = f"'{sources}' is not made yet; only rows that are there can be checked"
        way_out = "make it with `hba atlas build SPEC --to FOLDER`, `hba describe` or `hba run`, or give the folder of a finished atlas"
        raise SpecError("atlas.sources" if spec.atlas.sources else "atlas.source", what, way_out)
    result = step.result()
    index = AtlasIndex.load(step.whole(), stated=stated_roots(spec.atlas))
    return _with_found(index, result), say_found(result.changes, result.leaks)


def _with_found(index: AtlasIndex, result: AtlasResult) -> AtlasIndex:
    """The index with what the atlas step found in its rows, which only the step's result holds."""
    return replace(index, changes=result.changes, leaks=tuple(Leak(**leak) for leak in result.leaks))


@dataclass(frozen=True)
class MadeAtlas:
    """The atlas step of a spec, finished, and the index of its rows."""

    step: Step
    index: AtlasIndex

    @property
    def result(self) -> AtlasResult:
        return self.step.result()


def make_atlas(spec: ExperimentSpec, say: Callable[[str], None]) -> MadeAtlas:
    """Does the atlas step of a spec where it is not done.

    Args:
        say: takes a line for people.

    Raises:
        HbaError: the files, or a row, are not what they should be.
    """
    draft = Draft(spec, Storage(spec.compute.storage))
    AtlasSteps().plan(draft)
    step = draft["atlas"]
    do_step(Context(spec, step, {}), say)
    return MadeAtlas(step, _with_found(Context(spec, step, {step.name: step}).whole_index, step.result()))


def describe_atlas(spec: ExperimentSpec, say: Callable[[str], None]) -> describe.DescribeResult:
    """Does the atlas step where it is not done, and extracts every descriptor that the storage lacks.

    Unlike a run, it looks at the store also where the step was done before: what was taken away or
    has changed since is extracted. Ray is started only where something is missing.

    Args:
        spec: with streams, see `with_streams`.
        say: takes a line for people.

    Raises:
        HbaError: the atlas, a clip or an environment is not what it should be; what is extracted stays.
    """
    draft = Draft(spec, Storage(spec.compute.storage))
    for kind in (AtlasSteps(), describe.DescribeSteps()):
        kind.plan(draft)
    if "describe" not in draft:
        raise ValueError("the spec names no stream")
    rows, descriptors = draft["atlas"], draft["describe"]
    do_step(Context(spec, rows, {}), say)
    with ExitStack() as stack:
        start_ray = lambda: stack.enter_context(ray_session(spec.compute, descriptors.folder / "logs"))  # noqa: E731
        context = Context(spec, descriptors, {rows.name: rows}, start_ray=start_ray)
        do_step(context, say, again=lambda result: True)
    return descriptors.result()
