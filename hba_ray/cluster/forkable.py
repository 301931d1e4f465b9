"""Brings a process into the state in which it can be forked: imports modules, and checks that forks of it will do.

`forkserver.py` runs this file by its path, since it is itself run as a script where this package may not be installed.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_FORKABLE_THREADS = {"jemalloc_bg_thd"}
"""Names of threads that may run when the process forks: that of pyarrow's allocator, which restarts it in a fork."""


def import_all(modules: Sequence[str]) -> None:
    """Imports modules, and checks that the process can still be forked.

    Raises:
        SystemExit: a module started threads, which a fork would lose in the middle of their work; or it drew an id from
            Ray's generator, from which all forks would then draw the same ids.
    """
    with _ray_generator_untouched():
        for module in modules:
            try:
                importlib.import_module(module)
            except ModuleNotFoundError as missing:
                sys.stderr.write(f"{module} is left out: {missing}\n")
    lost = set(_threads()) - _FORKABLE_THREADS
    if lost:
        sys.exit(f"the imports started threads ({', '.join(sorted(lost))}), so workers cannot be forked; set compute.fork to false")
    if "ray" in sys.modules and _drawn_in_a_fork() == _drawn_in_a_fork():
        sys.exit("the imports drew ids from Ray's generator, so workers cannot be forked; set compute.fork to false")
    gc.collect()
    gc.freeze()  # collections in workers would write to, and so copy, the shared memory


@contextmanager
def _ray_generator_untouched() -> Iterator[None]:
    """For the time of the block, classes that are declared as actors get ids from the operating system, not from Ray's generator.

    That generator (C++, one per thread) is seeded when it is first used, and a fork copies it. Workers with copies would
    give their placement groups the same ids, and Ray takes the second for the first (seen in Ray 2.60).
    """
    try:
        import ray.actor
    except ModuleNotFoundError:
        yield
        return
    name = "ActorClassID"  # by its name, since ray.actor only imports it
    own = getattr(ray.actor, name)

    class FromTheSystem:
        @staticmethod
        def from_random() -> object:
            return own(os.urandom(own.size()))

    setattr(ray.actor, name, FromTheSystem)
    try:
        yield
    finally:
        setattr(ray.actor, name, own)


def _drawn_in_a_fork() -> bytes:
    """The first id that Ray's generator gives in a fork of this process; two forks differ where it is not seeded yet."""
    from ray._raylet import JobID, TaskID

    readable, writable = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(writable, TaskID.for_fake_task(JobID.nil()).binary())
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as answer:
        drawn = answer.read()
    os.waitpid(pid, 0)
    return drawn


def _threads() -> Iterator[str]:
    """Names of the threads of this process but its main one."""
    for thread in os.listdir("/proc/self/task"):
        if int(thread) != os.getpid():
            with open(f"/proc/self/task/{thread}/comm") as name:
                yield name.read().strip()
