"""The guide to clusters, `clusters/README.md`, is typed word for word on hosts that have only a bucket in common."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pytest

from tests.helpers.buckets import make_bucket, s3_server
from tests.helpers.hosts import Host, hosts

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "clusters" / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PLACE = re.compile(r"^On (the head|each other machine|the machine that you sit at)\b", re.MULTILINE)
SITE = "site.sh"
NAMES = {"JOB": re.compile(r"^job  (\S+)$", re.MULTILINE), "RUN": re.compile(r"^report  s3://.+/(\S+)/report.html$", re.MULTILINE)}
"""What stands for a name that a job has printed."""
SUBMIT = "hba submit experiments/base/toy.yaml compute.workers=1 compute.storage=$STORAGE tracking.mlflow=$MLFLOW"
MUST_SAY = {
    f"{SUBMIT} --wait": "toy_nod",
    f"{SUBMIT} 'sweep.seeds=[0, 1]' --wait": "2 trials",
    "hba status": "hba-toy-",
    "hba stop JOB": "was stopped",
    "hba report $STORAGE/RUN": "toy_nod",
    "hba report $STORAGE/RUN --format latex": "table.tex",
    "ray job submit --working-dir job -- hba run spec.yaml": "succeeded",
    "hba cluster check aws mine.yaml": "image.cpu",
}
TO_FILL_IN = 2
"""The code of `hba cluster check` while a value is blank."""


@dataclass(frozen=True)
class Command:
    """A line of the guide.

    Attributes:
        where: the machines on which it is typed.
        source: the line by which their shell has read what it needs.
    """

    where: str
    source: str
    line: str


def commands() -> tuple[str, list[Command]]:
    """The file that the guide has its reader write, and the commands after it."""
    site, *blocks = BLOCK.finditer(GUIDE)
    found = []
    for block in blocks:
        where = PLACE.findall(GUIDE[: block.start()])[-1]
        source, *lines = block[1].splitlines()
        found += [Command(where, source, line) for line in lines]
    return site[1], found


@dataclass(frozen=True)
class Machine:
    """One of the guide's machines: a shell in a checkout.

    Attributes:
        within: the command that starts another one there.
        home: its reader's folder, on its own disk.
    """

    within: list[str]
    home: Path
    environ: dict[str, str]

    def prepare(self, site: str) -> None:
        """Makes the checkout, without copying what is in it, and the file of the site."""
        self.checkout.mkdir(parents=True)
        for name in ("clusters", "experiments"):
            (self.checkout / name).symlink_to(ROOT / name)
        (self.checkout / ".venv").symlink_to(sys.prefix)
        (self.checkout / SITE).write_text(site)

    @property
    def checkout(self) -> Path:
        return self.home / "hba_ray"

    def type(self, source: str, line: str) -> tuple[int, str]:
        """Exit code of a command, and what it prints. Servers that it starts go on, and what they print is theirs."""
        environ = self.environ | {"HOME": str(self.home), "RAY_TMPDIR": str(self.home), "HBA_SCRATCH": str(self.home / "scratch")}
        with tempfile.TemporaryFile("w+") as said:
            words = [*self.within, "bash", "-c", f"{source}\n{line}"]
            done = subprocess.run(words, cwd=self.checkout, env=environ, stdout=said, stderr=said, timeout=900)
            said.seek(0)
            return done.returncode, said.read()


@contextmanager
def machines(site: str) -> Iterator[dict[str, list[Machine]]]:
    """Machines of each kind that the guide names, with its file of the site on each."""
    folder = Path(tempfile.mkdtemp(prefix="hba"))  # short enough for Ray's sockets
    try:
        with hosts(3, folder) as (here, three), s3_server(here) as access:
            values = {
                "10.0.0.2": three[0].address,
                "s3://BUCKET/runs": make_bucket(access["AWS_ENDPOINT_URL"]),
                "=ID": f"={access['AWS_ACCESS_KEY_ID']}",
                "=SECRET": f"={access['AWS_SECRET_ACCESS_KEY']}",
                "=TOKEN": f"={'0123456789abcdef' * 4}",
            }
            for example, value in values.items():
                assert site.count(example) == 1, example
                site = site.replace(example, value)
            environ = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
            environ |= {"AWS_ENDPOINT_URL": access["AWS_ENDPOINT_URL"], "AWS_ALLOW_HTTP": "true", "RAY_USAGE_STATS_ENABLED": "0"}

            def machine(host: Host) -> Machine:
                return Machine(host.within, host.folder, environ)

            head, *others = map(machine, three)
            found = {"the head": [head], "each other machine": others, "the machine that you sit at": [Machine([], folder / "me", environ)]}
            for one in chain.from_iterable(found.values()):
                one.prepare(site)
            yield found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_the_guide_names_the_machine_of_each_command():
    site, typed = commands()
    assert all(line.startswith(("export ", "source ")) for line in site.splitlines())
    assert {command.where for command in typed} == {"the head", "each other machine", "the machine that you sit at"}
    assert {command.source for command in typed} == {f"source {SITE}", "source .venv/bin/activate"}
    assert MUST_SAY.keys() <= {command.line for command in typed}


@pytest.mark.parametrize("phrase", re.findall(r"^\| `([^`]+)` \|", GUIDE, re.MULTILINE))
def test_what_goes_wrong_is_quoted_from_the_errors(phrase: str):
    assert any(phrase in file.read_text(encoding="utf-8") for file in (ROOT / "hba_ray").rglob("*.py"))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_the_guide_leads_from_bare_machines_to_results():
    site, typed = commands()
    names: dict[str, str] = {}
    with machines(site) as found:
        for command in typed:
            line = command.line
            for name in NAMES.keys() & re.findall(r"\b[A-Z]+\b", line):
                line = line.replace(name, names[name])
            for machine in found[command.where]:
                code, said = machine.type(command.source, line)
                assert code == (TO_FILL_IN if line.startswith("hba cluster check") else 0), f"{line}\n{said}"
                assert MUST_SAY.get(command.line, "") in said, f"{line}\n{said}"
                if line.startswith("hba submit"):
                    names |= {name: match[1] for name, says in NAMES.items() if (match := says.search(said))}
