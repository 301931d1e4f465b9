"""The process that does one step of a cluster on the node it was started on, with a Ray of its own; see `steps/away.py`.

It gets its job on standard input and tells on standard output, as pickles. When its input ends, whoever started it is gone, and it
ends, too, as an interrupted run does.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from hba_ray.cluster.failures import MISTAKES, as_final
from hba_ray.cluster.session import ray_session
from hba_ray.errors import HbaError
from hba_ray.rl.settings import cpus_needed
from hba_ray.specs import ComputeSpec
from hba_ray.steps.away import END_SECONDS, GPUS, Event, Failed, Logged, StepJob, Told, Working
from hba_ray.steps.base import Context, Step
from hba_ray.steps.run import do_step
from hba_ray.store.folders import Storage

INTERRUPTED = 130


def main() -> int:
    """The exit code: 0 where the step is finished, or has said why not."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    events = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not come between events
    job: StepJob = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with, args=(sys.stdin.fileno(),), daemon=True).start()
    lock = threading.Lock()

    def tell(event: Event) -> None:
        with lock:
            pickle.dump(event, events)
            events.flush()

    try:
        _do(job, tell)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (HbaError, *MISTAKES) as error:
        traceback.print_exc()  # into the log of the Ray worker that started this process
        final = as_final(error, job.step.name)
        assert final is not None  # such an error always ends the work
        tell(Failed(final))
    return 0


def _do(job: StepJob, tell: Callable[[Event], None]) -> None:
    storage = Storage(job.spec.compute.storage)

    def here(step: Step) -> Step:
        return replace(step, folder=storage.folder / "steps" / step.folder.name, spec=job.spec)

    earlier = {name: here(step) for name, step in job.earlier.items()}
    logs = storage.folder / job.run / "logs"
    tell(Told(f"{job.step.name} {job.step.fingerprint}: is done on {socket.gethostname()}, with logs in {logs} there"))
    with (
        gpus_to_itself(job.spec.compute, storage.folder.parent, lambda line: tell(Told(f"{job.step.name}: {line}"))),
        ray_session(job.spec.compute, logs, rollouts=cpus_needed(job.spec).total),
    ):
        context = Context(job.spec, here(job.step), earlier, lambda metrics, number: tell(Logged(metrics, number)))
        do_step(context, lambda line: tell(Told(line)), again=lambda result: job.again, begun=lambda: tell(Working()))


@contextmanager
def gpus_to_itself(compute: ComputeSpec, folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Keeps the GPUs that Ray gave this process from the next one, for the time of the block, and waits for the one before.

    A driver that is killed, as by a scheduler of trials, leaves a process here that ends by itself; Ray gives its GPUs out before it has.

    Args:
        folder: of this machine, for locks; workers that take less than a GPU share them.
    """
    kind = fcntl.LOCK_EX if compute.gpus_per_worker == int(compute.gpus_per_worker) else fcntl.LOCK_SH
    with ExitStack() as stack:
        for gpu in sorted(filter(None, os.environ.get(GPUS, "").split(","))):
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / f".gpu-{gpu.replace('/', '-')}").open("ab"))  # parts of a GPU have names with slashes
            try:
                fcntl.flock(lock, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"waits for GPU {gpu}, on which the step before it ends")
                fcntl.flock(lock, kind)
        yield


def _end_with(pipe: int) -> None:
    """Ends this process, as at Ctrl-C, when the other end of a pipe is closed."""
    while os.read(pipe, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(END_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
