"""Ray sessions: starts a private Ray on this machine, or joins a cluster that is running, and refuses what cannot fit there.

A private Ray runs a dashboard and gives its address to every process that it starts. Ray Train frees the resources of a
stopped trial through the state API, which needs both: without them, later trials would wait for ever.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from hba_ray.cluster import forkserver, ray_private
from hba_ray.cluster.environment import NO_PROGRESS, local_ray_environ, ray_environ
from hba_ray.cluster.growth import largest
from hba_ray.cluster.nodes import HEAD
from hba_ray.cluster.private_folder import OF_RAY, keep_logs, private_folder, write_token
from hba_ray.errors import EnvironmentMissing
from hba_ray.limits import usable_cpus
from hba_ray.specs.sections.compute import ComputeSpec, TrackingSpec

LOOPBACK = "127.0.0.1"
ANYWHERE: dict[str, Any] = {"scheduling_strategy": "DEFAULT"}
"""Options of a task or actor that may be started within a trial of Ray Tune. Without them Ray would look for a place only among
the resources that the trial's driver holds, where there is none."""
CONNECT_SECONDS = 10.0
"""How long a server has to accept a connection."""


@dataclass(frozen=True)
class Session:
    """The Ray that a run uses.

    Attributes:
        address: HOST:PORT of its control service.
        cpus, gpus: logical resources of the whole cluster; where it has an autoscaler, at its largest size.
        nodes: machines of the cluster, counted likewise.
        head_memory: bytes that Ray counts on the head, where trials' drivers sit; infinite where it does not tell.
    """

    address: str
    cpus: float
    gpus: float
    nodes: int
    head_memory: float = float("inf")


def check_capacity(spec: ComputeSpec, available_cpus: float, available_gpus: float) -> None:
    """Refuses an experiment that would start and then wait for ever.

    Workers hold their CPUs as long as they run, and each is fed by `loaders` tasks of its own. Where no CPU is left for
    these, no row ever arrives, and Ray does not say why.

    Raises:
        EnvironmentMissing: names what is needed, what is there, and the fields to change.
    """
    if spec.worker_cpus + spec.loader_cpus > available_cpus:
        needed = f"{spec.worker_cpus + spec.loader_cpus:g} CPUs ({spec.worker_cpus:g} for workers, {spec.loader_cpus:g} for loaders)"
        raise EnvironmentMissing(
            "compute",
            f"the experiment needs {needed}, but there are {available_cpus:g}",
            "lower compute.workers, compute.cpus_per_worker, compute.loaders or compute.cpus_per_loader"
            + (", or raise compute.cpus: CPUs of a local Ray are logical ones" if spec.address == "local" else ", or add nodes"),
        )
    if spec.worker_gpus > available_gpus:
        raise EnvironmentMissing(
            "compute",
            f"the experiment needs {spec.worker_gpus:g} GPUs, but there are {available_gpus:g}",
            "lower compute.workers or compute.gpus_per_worker" + ("; 0 trains on the CPU" if spec.address == "local" else ", or add nodes"),
        )


def check_store(tracking: TrackingSpec, session: Session) -> None:
    """Refuses an MLflow store that several machines would write to as a file.

    Raises:
        EnvironmentMissing: the store is an sqlite file, and the cluster has several machines, on any of which the driver may run.
    """
    if session.nodes > 1 and (tracking.uri or "sqlite:").startswith("sqlite:"):
        raise EnvironmentMissing(
            "tracking.mlflow",
            f"an sqlite store is for one machine, and the cluster has up to {session.nodes}",
            "start `mlflow server` where the head can reach it, and give its address: tracking.mlflow=http://HOST:PORT",
        )


def local_cpus(spec: ComputeSpec, *, rollouts: int = 0, cores: int | None = None) -> int:
    """Logical CPUs of a private Ray: `compute.cpus`, or the cores that may be used and at least four.

    Args:
        rollouts: CPUs that verl will hold in it, which are added.
        cores: of the machine; those of this one by default.
    """
    return (spec.cpus or max(4, cores or usable_cpus())) + rollouts


@contextmanager
def ray_session(spec: ComputeSpec, log_folder: Path, *, rollouts: int = 0) -> Iterator[Session]:
    """Provides Ray for the time of the block; after it, also on Ctrl-C, Ray is shut down and the environment is as before.

    Where this process is connected to a Ray already, as within another session, that one is used and left running.

    Args:
        spec: `address` says which Ray; `cpus` and `object_store_mib` are the size of a private one.
        log_folder: gets `ray.log`, what Ray says to this process, and the logs of the processes of a private Ray.
        rollouts: CPUs that verl will hold in it; 0 where it will not run. A private Ray without GPUs gets as many more, and one
            logical GPU for each worker, since verl counts its places in GPUs on any machine.

    Raises:
        EnvironmentMissing: no such cluster, no token for it, or not enough CPUs or GPUs in it.
    """
    import ray

    if ray.is_initialized():
        yield _describe(spec)
        return
    log_folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(_environ())
        stack.enter_context(_ray_log(log_folder / "ray.log"))
        stack.enter_context(_native_log(log_folder / "native.log"))
        if spec.address == "local":
            check_capacity(spec, local_cpus(spec, rollouts=rollouts), float("inf"))
            stack.enter_context(_private(spec, log_folder, rollouts))
        else:
            stack.enter_context(joined(spec))
        session = _describe(spec)
        check_capacity(spec, session.cpus, session.gpus)
        yield session


@contextmanager
def _private(spec: ComputeSpec, log_folder: Path, rollouts: int) -> Iterator[None]:
    """A Ray of this user's alone: in a folder that others cannot enter, on the loopback, and for those only who know its token."""
    import ray

    port = _free_port()
    os.environ.update(RAY_GCS_SERVER_PORT=str(port), RAY_ADDRESS=f"{LOOPBACK}:{port}")
    for name, value in local_ray_environ(gpu=spec.gpus_per_worker > 0, cpus=local_cpus(spec)).items():
        os.environ.setdefault(name, value)
    forks, cpus = spec.fork and not spec.gpus_per_worker, local_cpus(spec, rollouts=rollouts)
    with private_folder() as folder, ray_private.own_token(lambda: write_token(folder)), ray_private.on_loopback():
        try:
            with _Starting(log_folder), _own_end():
                ray.init(
                    address="local",
                    runtime_env={"py_executable": forkserver.executable(str(folder))} if forks else None,
                    num_cpus=cpus,
                    num_gpus=max(1, spec.workers) if rollouts and not spec.gpus_per_worker else None,
                    object_store_memory=spec.store_mib(cpus) * 2**20,
                    include_dashboard=True,
                    dashboard_host=LOOPBACK,
                    dashboard_port=0,
                    log_to_driver=False,
                    _temp_dir=str(folder / OF_RAY),
                    _node_ip_address=LOOPBACK,
                )
            _configure_ray_data()
            yield
        finally:
            ray.shutdown()
            keep_logs(folder, log_folder)
            _tell_of_failed_forks(folder, log_folder)


def _tell_of_failed_forks(folder: Path, log_folder: Path) -> None:
    """Says that workers were not forked, where their server could not import what it has to, and keeps its log."""
    for failed in folder.glob(f"*{forkserver.FAILED}"):
        log = Path(shutil.copy(failed.with_suffix(".log"), log_folder))
        message = "compute.fork: workers were started one by one, since the process to fork them from has failed; %s says why"
        logging.getLogger(__name__).warning(message, log)


@dataclass(frozen=True)
class _Starting:
    """Turns Ray's errors when a private one does not start, as on a busy machine after 30 seconds, into one with a way out."""

    log_folder: Path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is Exception or isinstance(error, (RuntimeError, ConnectionError, TimeoutError)):  # Ray raises `Exception` itself
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            way_out = f"wait until the machine is less busy, or free memory, and run it again; Ray's own logs are in {self.log_folder}"
            raise EnvironmentMissing("compute.address", f"no private Ray could be started: {reason}", way_out) from error


@contextmanager
def _own_end() -> Iterator[None]:
    """Keeps what this process does at a SIGTERM. Ray would have its own processes killed first, of which it then cannot take leave."""
    kept = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, kept)


@contextmanager
def joined(spec: ComputeSpec) -> Iterator[None]:
    import ray
    from ray.exceptions import AuthenticationError

    check_reachable(spec.address)
    ray_private.use_token()
    missing = {name: value for name, value in ray_environ(gpu=spec.gpus_per_worker > 0).items() if name not in os.environ}
    os.environ.update(missing)
    try:
        with _own_end():
            ray.init(address=spec.address, log_to_driver=False, runtime_env={"env_vars": missing})
    except (AuthenticationError, ConnectionError) as cause:
        if spec.address == "auto" and "RAY_ADDRESS" not in os.environ:
            raise _no_cluster(spec.address) from cause
        way_out = "if it asks for a token, set RAY_AUTH_TOKEN to it and RAY_AUTH_MODE=token; its Ray must be of the same version"
        raise EnvironmentMissing("compute.address", f"the Ray cluster at '{spec.address}' turned the connection down", way_out) from cause
    try:
        _configure_ray_data()
        yield
    finally:
        ray.shutdown()


def check_reachable(address: str) -> None:
    """Refuses an address at which nothing listens. Ray itself would try for a minute and then end the process.

    Raises:
        EnvironmentMissing: no such cluster, or no address of one.
    """
    if address.startswith("ray://"):
        way_out = "start it on the cluster, with compute.address=auto, through `ray job submit`"
        raise EnvironmentMissing("compute.address", f"'{address}' is Ray Client, through which training cannot be driven", way_out)
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition(":")
    if not address or address == "auto":
        return
    if not port.isdigit():
        raise EnvironmentMissing("compute.address", f"'{address}' is no Ray address", "give local, auto or HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as cause:
        raise _no_cluster(address) from cause


def _no_cluster(address: str) -> EnvironmentMissing:
    way_out = "start one with `ray start --head`, give its HOST:PORT, or set compute.address=local"
    return EnvironmentMissing("compute.address", f"no Ray cluster answers at '{address}'", way_out)


def _describe(spec: ComputeSpec) -> Session:
    import ray

    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus, nodes = largest(spec, ray.cluster_resources(), len(there))
    memory = next((resources["memory"] for resources in there if HEAD in resources and "memory" in resources), float("inf"))
    return Session(ray.get_runtime_context().gcs_address, cpus, gpus, nodes, memory)


def _configure_ray_data() -> None:
    """Sets in this process what `ray_environ` tells child processes; ray.data may have been imported before its variables were set."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.use_datasource_v2 = False
    context.execution_no_progress_timeout_s = float(os.environ[NO_PROGRESS])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


@contextmanager
def _environ() -> Iterator[None]:
    """Restores `os.environ` after the block."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _ray_log(file: Path) -> Iterator[None]:
    """Writes what Ray's libraries log in this process, and what raylets report to it, to `file` instead of the terminal."""
    os.environ.setdefault("RAY_DATA_LOGGING_CONFIG", str(Path(__file__).with_name("ray_data_logging.yaml")))
    import ray.data  # noqa: F401  # its import adds handlers, which are removed below

    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("ray", "ray.data", "ray.train", "ray.tune")]
    before = [(logger, logger.handlers[:], logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [], True
    loggers[0].handlers, loggers[0].propagate = [handler], False
    try:
        with ray_private.raylet_reports(_log_report):
            yield
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
        handler.close()


def _log_report(lines: Sequence[str]) -> None:
    for line in lines:
        logging.getLogger("ray.raylet").warning(line)


@contextmanager
def _native_log(file: Path) -> Iterator[None]:
    """Writes what native code, such as Ray's core, prints to standard error to `file`. What Python prints there is left as it is."""
    sys.stderr.flush()
    python, terminal = sys.stderr, os.dup(2)
    with file.open("ab") as log, os.fdopen(terminal, "w", buffering=1, encoding="utf-8", errors="backslashreplace") as kept:
        os.dup2(log.fileno(), 2)
        if _descriptor(python) == 2:
            sys.stderr = kept
        try:
            yield
        finally:
            kept.flush()
            os.dup2(terminal, 2)
            sys.stderr = python


def _descriptor(stream: TextIO) -> int | None:
    """The file descriptor of a stream; None where it is an object in memory, as in notebooks."""
    with suppress(OSError, ValueError, AttributeError):
        return stream.fileno()
    return None


def fitting_trials(compute: ComputeSpec, cpus: float, gpus: float) -> int:
    """How many trials fit side by side into these CPUs and GPUs; a trial has its workers and their loaders.

    >>> fitting_trials(ComputeSpec(workers=2, gpus_per_worker=1), cpus=16, gpus=3)
    1
    """
    fits = int(cpus / (compute.worker_cpus + compute.loader_cpus) + 1e-9)
    return min(fits, int(gpus / compute.worker_gpus + 1e-9)) if compute.worker_gpus else fits
