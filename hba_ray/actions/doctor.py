"""What this machine has, beside what a spec needs: `hba doctor`. Nothing is started, and nothing heavy is imported."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from hba_ray.cluster.environment import defects, install, require_vllm, requirements
from hba_ray.cluster.session import CONNECT_SECONDS, check_capacity, check_reachable, local_cpus
from hba_ray.descriptors.environments import ENVIRONMENTS, built_python, default_folder, find_uv
from hba_ray.errors import EnvironmentMissing
from hba_ray.models.settings import settled
from hba_ray.report.differences import SpecDifference, differences
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.reading.secrets import masked
from hba_ray.specs.sections.descriptors import STREAMS, Stream
from hba_ray.steps.inputs import describe
from hba_ray.store.provenance import gpu_names

PYTHONS = ((3, 11), (3, 12))
"""Those that the libraries have wheels for."""
SHARED = Path("/dev/shm")
LEAST_DISK_GIB = 2.0
"""A rule of thumb, not measured: below it a run is expected to fill the disk."""
SYSTEM_TURN = "model.system_prompt=CHECKOUT/training/sft/dataset/base_dataset.py"
INSTRUCTION = "grpo.prompts=CHECKOUT/training/rl/format_prompt/default.jinja"
"""Keys whose files hold sentences of the released code, and where these lie in its repository."""
CODECS = ("h264", "hevc", "vp9", "aac", "mp3", "opus")


@dataclass(frozen=True)
class Check:
    """One thing that runs need.

    Attributes:
        what: the thing.
        found: what is there of it.
        way_out: what to do about it; empty where it is as it should be.
        needed: whether the spec in hand needs it.
    """

    what: str
    found: str
    way_out: str = ""
    needed: bool = True

    @property
    def state(self) -> str:
        return "ok" if not self.way_out else "missing" if self.needed else "not here"


def check_machine(spec: ExperimentSpec, *, stated: bool = True) -> list[Check]:
    """All checks of this machine.

    Args:
        spec: what is to be run.
        stated: whether someone asked for it; else nothing but Python is needed, and all is looked at.
    """
    streams = describe.settings(spec).streams
    serves = "grpo" in spec.stages or bool(spec.evaluate.baselines)
    gpu = spec.compute.gpus_per_worker > 0 if stated else bool(gpu_names())
    checks = [
        _python(),
        _packages("train", needed=stated),
        _packages("rl-gpu" if gpu else "rl-cpu", needed=stated and "grpo" in spec.stages),
        _asked("vLLM", lambda: _vllm(spec, gpu), needed=stated and serves),
        _clips(needed=stated),
        *(_extractor(stream, spec, needed=stated and stream in streams) for stream in STREAMS),
        _asked("CPUs, GPUs", lambda: _capacity(spec), needed=stated),
        Check("memory", f"{_available_gib():.1f} GiB free"),
        _shared(spec, needed=stated and spec.compute.workers > 0 and spec.compute.address == "local"),
        _disk(spec, needed=stated),
        _asked("Ray", lambda: _ray(spec), needed=stated and (spec.compute.workers > 0 or "grpo" in spec.stages)),
        _asked("MLflow", lambda: _mlflow(spec), needed=stated),
    ]
    return [*checks, *_judge(spec), *_wordings(spec)]


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


def _packages(extra: str, needed: bool) -> Check:
    stated = requirements(extra)
    if not stated:
        there = find_spec("torch") is not None
        found = "this package is a bare folder, so its bounds are not known" + ("" if there else "; torch is not installed")
        return Check(f"packages: {extra}", found, "" if there else install(extra), needed)
    wrong = defects(extra)
    found = f"{len(stated) - len(wrong)} of {len(stated)}" + (
        f": {', '.join(wrong[:4])}" + (", …" if len(wrong) > 4 else "") if wrong else ""
    )
    return Check(f"packages: {extra}", found, install(extra) if wrong else "", needed)


def _vllm(spec: ExperimentSpec, gpu: bool) -> str:
    require_vllm("vllm", gpu=gpu, otherwise="leave out the stage grpo and evaluate.baselines")
    return f"the {'GPU' if gpu else 'CPU'} build"


def _clips(needed: bool) -> Check:
    lacking = [name for name, module in (("av", "av"), ("soundfile", "soundfile"), ("pillow", "PIL")) if find_spec(module) is None]
    if lacking:
        return Check("decoding clips", f"{', '.join(lacking)} not installed", install("train"), needed)
    import av

    absent = [name for name in CODECS if name not in av.codecs_available]
    found = f"PyAV {av.__version__}: {', '.join(name for name in CODECS if name not in absent)}"
    return Check("decoding clips", found, f"PyAV's own wheel decodes {', '.join(absent)}: pip install av" if absent else "", needed)


def _extractor(stream: Stream, spec: ExperimentSpec, needed: bool) -> Check:
    what, environment = f"extractor: {stream}", ENVIRONMENTS[stream]
    python = getattr(spec.compute.pythons, stream)
    if python is not None:
        there = os.access(python, os.X_OK)
        return Check(what, python if there else f"{python} is no program", "" if there else f"correct compute.pythons.{stream}", needed)
    if environment.is_here:
        return Check(what, f"{environment.requirement}, in this environment", needed=needed)
    if not spec.compute.workers:
        way_out = "set compute.workers to 1 or more: on Ray it gets an environment of its own"
        return Check(what, f"{environment.requirement} is not in this environment", way_out, needed)
    if find_spec("ray") is None:
        return Check(what, f"{environment.requirement} is not in this environment", install("train"), needed)
    home = built_python(stream, default_folder(spec.compute.address, Path(spec.compute.storage).expanduser() / "descriptors"))
    if home.exists():
        return Check(what, f"{environment.requirement}, in {home.parents[1]}", needed=needed)
    if find_uv() is None:
        return Check(
            what, f"{environment.requirement} has no environment yet, and uv, which builds it, is not there", "pip install uv", needed
        )
    return Check(what, f"{environment.requirement}: uv builds its environment when it is first needed", needed=needed)


def _capacity(spec: ExperimentSpec) -> str:
    gpus = gpu_names()
    found = f"{os.cpu_count() or 1} cores, {len(gpus)} GPUs" + (f" ({', '.join(sorted(set(gpus)))})" if gpus else "")
    if spec.compute.address == "local":
        check_capacity(spec.compute, local_cpus(spec.compute, rollouts="grpo" in spec.stages), len(gpus))
    return found


def _available_gib() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 2**20
    return 0.0


def _shared(spec: ExperimentSpec, needed: bool) -> Check:
    """Looks at the size of shared memory: where it is too small, Ray keeps its objects on the disk and says so only in a log."""
    free = shutil.disk_usage(SHARED).free / 2**20 if SHARED.is_dir() else 0.0
    asked = spec.compute.object_store_mib
    way_out = f"lower compute.object_store_mib, or start the container with --shm-size={2 * asked}m" if free < asked else ""
    return Check("shared memory", f"{free:.0f} MiB free in {SHARED}, {asked} asked for", way_out, needed)


def _disk(spec: ExperimentSpec, needed: bool) -> Check:
    folder = Path(spec.compute.storage).expanduser().absolute()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free / 2**30
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Check("disk", f"{there} cannot be written to", "give another folder as compute.storage=FOLDER", needed)
    return Check(
        "disk",
        f"{free:.1f} GiB free for {folder}",
        "give another folder as compute.storage=FOLDER" if free < LEAST_DISK_GIB else "",
        needed,
    )


def _ray(spec: ExperimentSpec) -> str:
    if find_spec("ray") is None:
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
    if judge.key_env is not None:
        there = bool(os.environ.get(judge.key_env, "").strip())
        way_out = f"export {judge.key_env}=..., or give evaluate.judge.key_env=null for an endpoint that asks for no key"
        yield Check("judge's key", f"{judge.key_env} is {'' if there else 'not '}set", "" if there else way_out)

    def ask() -> str:
        _check_listening(judge.base_url, "evaluate.judge.base_url", "start the endpoint, or correct evaluate.judge.base_url")
        return f"an endpoint listens at {judge.base_url}"

    yield _asked("judge", ask, needed=True)
