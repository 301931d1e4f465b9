"""What this machine has, beside what a spec needs: `hba doctor`. Nothing is started, and nothing heavy is imported."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from hba_ray.cluster.environment import install
from hba_ray.cluster.machine import Machine, look
from hba_ray.cluster.session import CONNECT_SECONDS, check_reachable, local_cpus
from hba_ray.errors import EnvironmentMissing
from hba_ray.models.settings import settled
from hba_ray.report.differences import SpecDifference, differences
from hba_ray.runs.preflight import capacity_of, judged, merged, needs_of, not_judged, starting, unreachable
from hba_ray.runs.sweep_plan import planned_trials
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.reading.secrets import masked
from hba_ray.specs.sections.descriptors import STREAMS
from hba_ray.steps.needs.base import GIB, Check
from hba_ray.steps.needs.size import Capacity
from hba_ray.steps.needs.software import ExtractorPackages, Packages, Vllm
from hba_ray.store.folders import Storage

PYTHONS = ((3, 11), (3, 12))
"""Those that the libraries have wheels for."""
SHARED = Path("/dev/shm")
SYSTEM_TURN = "model.system_prompt=CHECKOUT/training/sft/dataset/base_dataset.py"
INSTRUCTION = "grpo.prompts=CHECKOUT/training/rl/format_prompt/default.jinja"
"""Keys whose files hold sentences of the released code, and where these lie in its repository."""
CODECS = ("h264", "hevc", "vp9", "aac", "mp3", "opus")


def check_machine(spec: ExperimentSpec, *, stated: bool = True, machine: Machine | None = None) -> list[Check]:
    """All checks of this machine: first what the steps of a spec need that are not done yet, data and weights before all else.

    Args:
        spec: what is to be run.
        stated: whether someone asked for it; else nothing but Python is needed, and all is looked at.
        machine: what is held to be here; looked at by default.
    """
    if not stated:
        machine = machine or look(spec.compute.storage)
        extras = ("train", "descriptors", "rl-gpu" if machine.gpus else "rl-cpu")
        needs = [*(Packages("", extra) for extra in extras), *(ExtractorPackages("", stream, spec.compute) for stream in STREAMS)]
        unasked = [Vllm("", bool(machine.gpus), "leave out the stage grpo and evaluate.baselines"), Capacity("", spec.compute, 0)]
        looked = [replace(check, needed=False) for check in judged([*needs, *unasked], [machine])]
        return [_python(), *looked, *_services(spec, machine, stated=False)]
    if unwritable := list(_unwritable(spec)):
        machine = machine or look(spec.compute.storage)
        return [*unwritable, _python(), *_services(spec, machine, stated=True)]  # without a storage nothing can be planned
    trials = planned_trials(spec)
    needs = needs_of(trials)
    machine = starting(spec, needs, machine)
    checks = judged([*needs, *([capacity_of(trials)] if spec.compute.address == "local" else [])], [machine])
    found = merged([*checks, *not_judged(needs, machine), *unreachable(trials, needs, checks=False)])
    first = [check for check in found if check.what.startswith(("data", "weights"))]
    return [*first, _python(), *(check for check in found if check not in first), *_services(spec, machine, stated=True)]


def _services(spec: ExperimentSpec, machine: Machine, *, stated: bool) -> Iterator[Check]:
    """What no step needs by itself: decoders, memory, places to write to, services, and what would make a run faster or truer."""
    yield _clips(needed=stated)
    yield Check("memory", f"{machine.memory / GIB:.1f} GiB free")
    yield _shared(spec, needed=stated and spec.compute.workers > 0 and spec.compute.address == "local")
    yield _asked("Ray", lambda: _ray(spec, machine), needed=stated and (spec.compute.workers > 0 or "grpo" in spec.stages))
    yield _asked("MLflow", lambda: _mlflow(spec), needed=stated)
    yield from _flash(machine)
    yield from _judge(spec)
    yield from _wordings(spec)


def _flash(machine: Machine) -> Iterator[Check]:
    """Names flash-attn where there is a GPU that it works on: towers attend within many small windows, which it computes at once."""
    if machine.gpus:
        version = machine.version("flash-attn")
        way_out = "" if version else f"{install('flash')}; both towers and long prompts are faster with it. Nothing needs it"
        yield Check("flash-attn", version or "not installed", way_out, needed=False)


def known_differences(spec: ExperimentSpec) -> tuple[SpecDifference, ...]:
    """In what a spec, run with the settings of the checkpoints that it names, differs from the paper and the released code.

    Raises:
        SpecError: it states other settings than a checkpoint's.
        CheckpointError: the settings of a checkpoint are damaged.
    """
    return differences(settled(spec))


def _wordings(spec: ExperimentSpec) -> Iterator[Check]:
    """Says which file of a checkout of the released repository, or of the model, a sentence comes from that this package does not ship."""
    source, given = "of a checkout of the released repository", spec.model.system_prompt
    way_out = f"{SYSTEM_TURN} {source}, or chat_template.json of the backbone says what its own is"
    yield Check("system turn", given or "that of the backbone's chat template", "" if given else way_out, needed=False)
    if "grpo" in spec.stages:
        ours = spec.grpo.prompts == "standard"
        found = "our words" if ours else spec.grpo.prompts
        yield Check("reasoning instruction", found, f"{INSTRUCTION} {source} has the released one" if ours else "", needed=False)


def _asked(what: str, ask: Callable[[], str], needed: bool) -> Check:
    """The result of a check that a run makes, too: it raises where the run would be refused."""
    try:
        return Check(what, ask(), needed=needed)
    except EnvironmentMissing as missing:
        return Check(what, missing.what, missing.way_out, needed)


def _python() -> Check:
    found = f"{sys.version.split()[0]} in {sys.prefix}"
    return Check("Python", found, "" if sys.version_info[:2] in PYTHONS else "make the environment with Python 3.11 or 3.12")


def _clips(needed: bool) -> Check:
    lacking = [name for name, module in (("av", "av"), ("soundfile", "soundfile"), ("pillow", "PIL")) if find_spec(module) is None]
    if lacking:
        return Check("decoding clips", f"{', '.join(lacking)} not installed", install("train"), needed)
    import av

    absent = [name for name in CODECS if name not in av.codecs_available]
    found = f"PyAV {av.__version__}: {', '.join(name for name in CODECS if name not in absent)}"
    return Check("decoding clips", found, f"PyAV's own wheel decodes {', '.join(absent)}: pip install av" if absent else "", needed)


def _shared(spec: ExperimentSpec, needed: bool) -> Check:
    """Looks at the size of shared memory: where it is too small, Ray keeps its objects on the disk and says so only in a log."""
    free = shutil.disk_usage(SHARED).free / 2**20 if SHARED.is_dir() else 0.0
    asked = spec.compute.store_mib(local_cpus(spec.compute))
    way_out = f"lower compute.object_store_mib, or start the container with --shm-size={2 * asked}m" if free < asked else ""
    return Check("shared memory", f"{free:.0f} MiB free in {SHARED}, {asked} asked for", way_out, needed)


def _unwritable(spec: ExperimentSpec) -> Iterator[Check]:
    """Says that runs cannot be written at all."""
    try:
        Storage(spec.compute.storage)
    except EnvironmentMissing as missing:
        yield Check("disk", missing.what, missing.way_out)


def _ray(spec: ExperimentSpec, machine: Machine) -> str:
    if machine.version("ray") is None:
        raise EnvironmentMissing("ray", "Ray is not installed", install("train"))
    if spec.compute.address == "local":
        return "a private one, started for a run"
    check_reachable(spec.compute.address)
    return f"a cluster answers at {spec.compute.address}" if spec.compute.address != "auto" else "the running cluster, if there is one"


def _mlflow(spec: ExperimentSpec) -> str:
    uri = spec.tracking.uri
    if uri is None or not uri.startswith(("http:", "https:")):
        return spec.tracking.shown or "an sqlite store in compute.storage"
    _check_listening(uri, "tracking.mlflow", "start `mlflow server`, or correct tracking.mlflow")
    return f"a server listens at {spec.tracking.shown}"


def _check_listening(url: str, where: str, way_out: str) -> None:
    try:
        parts = urlsplit(url)
        place = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection(place, timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as cause:
        raise EnvironmentMissing(where, f"nothing listens at {masked(url)}: {cause}", way_out) from None


def _judge(spec: ExperimentSpec) -> Iterator[Check]:
    judge = spec.evaluate.judge
    if judge is None:
        yield Check("judge", "none: open answers are scored by exact match", needed=False)
        return

    def ask() -> str:
        _check_listening(judge.base_url, "evaluate.judge.base_url", "start the endpoint, or correct evaluate.judge.base_url")
        return f"an endpoint listens at {judge.base_url}"

    yield _asked("judge", ask, needed=True)
