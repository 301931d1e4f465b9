"""Before the first step of a run: all that is missing for any of its steps, in one list, in seconds and not after hours.

Kinds of steps say what they need (`StepKind.needs`), a machine says what it has (`cluster/machine.py`). `hba run` ends with the list
where something is missing, `hba doctor` shows all of it, and `hba plan` says in a line how much is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from hba_ray.cluster.machine import Machine, look
from hba_ray.errors import CheckpointError, EnvironmentMissing
from hba_ray.rl.settings import cpus_needed
from hba_ray.runs.plan import Experiment
from hba_ray.specs import ExperimentSpec
from hba_ray.steps.base import Step, StepKind
from hba_ray.steps.inputs.backbone import ask_hub
from hba_ray.steps.needs.base import Check, Need
from hba_ray.steps.needs.size import Capacity, Data, Room, Weights, rooms
from hba_ray.steps.needs.software import Architecture, Variable
from hba_ray.store.folders import Storage
from hba_ray.store.probe import check_storage

FIRST = (Data, Weights)
"""What takes longest to come by stands first in the list."""


def needs_of(trials: Sequence[Experiment]) -> list[Need]:
    """What the steps need that are not done yet, each once; what they write is counted for each of them."""
    found: list[Need] = []
    for spec, kind in _undone(trials):
        found += [need for need in kind.needs(spec) if isinstance(need, Room) or need not in found]
    return sorted(found, key=lambda need: not isinstance(need, FIRST))


def _undone(trials: Sequence[Experiment]) -> Iterator[tuple[ExperimentSpec, StepKind]]:
    """(spec, kind) of the steps that are not done, those that trials share once."""
    seen = set()
    for trial in trials:
        kinds: dict[str, list[Step]] = {}
        for step in trial.steps:
            if not step.is_done:
                kinds.setdefault(step.kind.name, []).append(step)
        for name, steps in kinds.items():
            key = (name, *(step.fingerprint for step in steps))
            if key not in seen:
                seen.add(key)
                yield trial.spec, steps[0].kind


def look_here(spec: ExperimentSpec, needs: Sequence[Need], *, hidden: Collection[str] = ()) -> Machine:
    """This machine, with the models looked for that are needed."""
    models = [need.source for need in needs if isinstance(need, Weights) and need.from_hub]
    return look(spec.compute.storage, models=models, hidden=hidden)


def starting(spec: ExperimentSpec, needs: Sequence[Need], machine: Machine | None = None) -> Machine:
    """The machine on which a run is started; where its workers are on a cluster, it only leads.

    Args:
        machine: what is held to be here; looked at by default.
    """
    here = machine or look_here(spec, needs)
    return here if spec.compute.address == "local" or not spec.compute.workers else replace(here, tasks=False, workers=0)


def judged(needs: Sequence[Need], machines: Sequence[Machine]) -> list[Check]:
    """Every need held against those machines on which what needs it would be done.

    Of several machines that lack the same, one is named. What is written lies on the first one's disk, or on one that all see.
    """
    return [*_on_each(needs, machines), rooms([need for need in needs if isinstance(need, Room)], machines[0])]


def _on_each(needs: Sequence[Need], machines: Sequence[Machine]) -> list[Check]:
    """Needs, those of room on disks aside, held against the machines that they concern; of several, that of a check is named."""
    checks = []
    for machine in machines:
        on = f" (on {machine.name})" if len(machines) > 1 else ""
        held = [need.check(machine) for need in needs if not isinstance(need, Room) and need.concerns(machine)]
        checks += [replace(check, found=check.found + on) for check in held]
    return merged(checks)


def not_judged(needs: Sequence[Need], machine: Machine) -> list[Check]:
    """What is needed on other machines than this one, which only leads the run: it is told, and nothing is missing yet."""
    later = "needed on the cluster's machines, which are looked at when a run has joined them"
    checks = (need.check(machine) for need in needs if not need.concerns(machine))
    return [replace(check, found=f"{check.found}; {later}", way_out="") for check in checks]


def capacity_of(trials: Sequence[Experiment], there: tuple[float, float] | None = None) -> Capacity:
    """The CPUs and GPUs of the trials' Ray; see `Capacity`."""
    return Capacity("compute", trials[0].spec.compute, max(cpus_needed(trial.spec).total for trial in trials), there)


def unreachable(trials: Sequence[Experiment], needs: Sequence[Need], *, checks: bool = True) -> list[Check]:
    """What the hub says of models that are not here, and each trial's own checks of services; all are asked side by side.

    Args:
        checks: whether steps check; a judge is asked a question then.

    Raises:
        HbaError: a spec or data are not in order.
    """
    variables = {need.where for need in needs if isinstance(need, Variable)}
    own = {(id(spec), kind.check): partial(kind.check, spec) for spec, kind in _undone(trials)} if checks else {}
    asked: list[tuple[str, Callable[[], object]]] = [("", check) for check in own.values()]
    models = {need.source: need for need in needs if isinstance(need, Weights) and need.from_hub}
    asked += [(need.title, partial(ask_hub, need.source, need.where)) for need in models.values()]
    with ThreadPoolExecutor(max(1, len(asked))) as pool:
        answers = list(pool.map(lambda one: _answer(*one), asked))
    return [check for check in answers if check is not None and check.where not in variables]


def _answer(what: str, ask: Callable[[], object]) -> Check | None:
    """What is missing by an answer, under its own name or that of its key; None where nothing is."""
    try:
        ask()
    except (EnvironmentMissing, CheckpointError) as missing:
        return Check(what or missing.where, missing.what, missing.way_out or "see the message", where=missing.where)
    return None


def merged(checks: Iterable[Check]) -> list[Check]:
    """One check for each thing, in the order in which things are first named: what is missing wins over what is there."""
    found: dict[str, Check] = {}
    for check in checks:
        if check.what not in found or (check.way_out and not found[check.what].way_out):
            found[check.what] = check
    return list(found.values())


def check_first(trials: Sequence[Experiment], *, uses_ray: bool, machine: Machine | None = None) -> None:
    """Refuses, before anything is done, what could only fail later.

    Args:
        uses_ray: whether a step that is not done needs Ray.
        machine: what is held to be here; looked at by default.

    Raises:
        EnvironmentMissing: names all that is missing here, each with its way out; or the storage is not safe to run on.
        HbaError: a spec or data are not in order.
    """
    needs = needs_of(trials)
    if not needs:
        return
    compute = trials[0].spec.compute
    check_storage(Storage(compute.storage).folder, by_several=compute.address != "local")
    if compute.address == "local" and uses_ray:
        needs.append(capacity_of(trials))
    here = [need for need in needs if not (compute.on_one_node and isinstance(need, Room))]  # steps write where they are done
    checks = judged(here, [starting(trials[0].spec, needs, machine)])
    refuse(merged([*checks, *unreachable(trials, needs)]))


def check_nodes(
    trials: Sequence[Experiment],
    there: tuple[float, float],
    *,
    head_leads: bool = False,
    machines: Sequence[Machine] | None = None,
) -> None:
    """The same for the machines of a cluster that was joined, as far as they are up; those that start later are not looked at.

    Args:
        there: CPUs and GPUs of the cluster at its largest.
        head_leads: whether the trials' own drivers are on the cluster's head.
        machines: of the cluster; looked at by default.

    Raises:
        EnvironmentMissing: names all that is missing on them.
    """
    from hba_ray.cluster.nodes import look_at_nodes

    needs = [need for need in needs_of(trials) if not isinstance(need, Data)]
    if needs:
        spec = trials[0].spec
        machines = machines or look_at_nodes(partial(look_here, spec, needs), spec.compute, head_leads=head_leads)
        refuse([*_on_each(needs, machines), *_rooms_there(spec, needs, machines), capacity_of(trials, there).check(machines[0])])


def _rooms_there(spec: ExperimentSpec, needs: Sequence[Need], machines: Sequence[Machine]) -> list[Check]:
    """Where each step is done whole on one node: the largest thing that one writes, held against the largest disk of those nodes."""
    able = [machine for machine in machines if machine.workers]
    written = [need for need in needs if isinstance(need, Room)]
    if not (spec.compute.on_one_node and able and written):
        return []
    return [rooms([max(written, key=lambda need: need.bytes)], max(able, key=lambda machine: machine.disk))]


def refuse(checks: Sequence[Check]) -> None:
    """Ends with those of the checks that found something missing; does nothing where there are none.

    Raises:
        EnvironmentMissing: names them.
    """
    missing = [check for check in checks if check.state == "missing"]
    if not missing:
        return
    if len(missing) == 1:
        (one,) = missing
        raise EnvironmentMissing(one.where or one.what, f"{one.what}: {one.found}" if one.what != one.where else one.found, one.way_out)
    lines = [f"  {check.what}: {check.found}\n    {check.way_out}" for check in missing]
    raise EnvironmentMissing(
        "preflight", f"{len(missing)} things are missing for this run\n" + "\n".join(lines), "`hba doctor SPEC` shows all"
    )


def in_a_line(trials: Sequence[Experiment], machine: Machine | None = None) -> str:
    """What a doctor would say of this machine, in a line, without asking any service."""
    needs = [need for need in needs_of(trials) if not isinstance(need, Architecture)]
    if not needs:
        return "nothing is left to do"
    needs += [capacity_of(trials)] if trials[0].spec.compute.address == "local" else []
    checks = judged(needs, [starting(trials[0].spec, needs, machine)])
    missing = [check.what for check in checks if check.state == "missing"]
    return (
        f"missing here for a run: {', '.join(missing)}; `hba doctor SPEC` says more"
        if missing
        else "nothing that was looked at is missing here"
    )
