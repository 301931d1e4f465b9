"""Hosts on this machine: network namespaces with an address and folders of their own, which a bridge joins.

The machine itself is on the bridge, too, and serves what hosts have in common: a bucket, MLflow. Of the disk, each sees a folder of its
own, and not those of others.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Host:
    """
    Attributes:
        name: of its namespace.
        folder: its own disk.
        others: the disks of the other hosts, which it does not see.
    """

    name: str
    address: str
    folder: Path
    others: tuple[Path, ...]

    @property
    def within(self) -> list[str]:
        """The command that starts another command on this host."""
        hide = " && ".join(f"mount -t tmpfs none {shlex.quote(str(folder))}" for folder in self.others)
        return ["ip", "netns", "exec", self.name, "sh", "-c", f'{hide} && exec "$@"', "sh"]

    @property
    def scratch(self) -> dict[str, str]:
        """The variable that keeps storages in buckets on its disk."""
        return {"HBA_SCRATCH": str(self.folder / "scratch")}

    def die(self) -> None:
        """Ends all that runs on it, at once."""
        while pids := _ip("netns", "pids", self.name).split():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)

    def cut_off(self) -> None:
        """Takes away its network; what runs on it goes on."""
        _ip("-n", self.name, "link", "set", "eth0", "down")

    def join(self) -> None:
        """Gives its network back."""
        _ip("-n", self.name, "link", "set", "eth0", "up")


@contextmanager
def hosts(count: int, folder: Path) -> Iterator[tuple[str, list[Host]]]:
    """So many hosts for the time of the block, and the address of this machine among them. Skips where namespaces are not allowed.

    Args:
        folder: gets a folder for each.
    """
    mark = uuid.uuid4().hex[:6]
    subnet, bridge = f"10.{int(mark[:2], 16)}.{int(mark[2:4], 16)}", f"hba{mark}"
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` on this machine, by which hosts are made")
    made: list[Host] = []
    try:
        try:
            _ip("link", "add", bridge, "type", "bridge")
        except subprocess.CalledProcessError as cause:
            pytest.skip(f"no bridge may be made on this machine: {cause.stderr.strip()}")
        _ip("addr", "add", f"{subnet}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        disks = [folder / f"host{number}" for number in range(count)]
        for disk in disks:
            disk.mkdir()
        for number, disk in enumerate(disks):
            host = Host(f"hba{mark}-{number}", f"{subnet}.{number + 2}", disk, tuple(other for other in disks if other != disk))
            _add(host, bridge, f"hba{mark}v{number}")
            made.append(host)
        yield f"{subnet}.1", made
    finally:
        for host in made:
            host.die()
            _ip("netns", "del", host.name)
        with suppress(subprocess.CalledProcessError):
            _ip("link", "del", bridge)


def _add(host: Host, bridge: str, cable: str) -> None:
    try:
        _ip("netns", "add", host.name)
    except subprocess.CalledProcessError as cause:
        pytest.skip(f"no network namespace may be made on this machine: {cause.stderr.strip()}")
    _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", host.name)
    _ip("link", "set", cable, "master", bridge, "up")
    _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        _ip("-n", host.name, "link", "set", device, "up")


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
