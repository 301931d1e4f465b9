"""The server that workers are forked from: what a worker gets, how it ends, and that nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hba_ray.cluster import forkserver
from tests.helpers.waiting import wait_until

SERVE = (
    "import sys; from hba_ray.cluster import forkserver; forkserver.MODULES = tuple(sys.argv[3:]); "
    "forkserver.main(['serve', *sys.argv[1:3]])"
)
TELL = """
import json, os, sys
print(json.dumps([sys.argv[1:], os.getcwd(), os.environ["COLOUR"], os.getpgid(0) == os.getpid(), "colorsys" in sys.modules, __name__]))
sys.exit(3)
"""


class Server:
    """A server whose raylet is a sleeping process."""

    def __init__(self, folder: Path, *modules: str):
        self.folder = folder
        self.raylet = subprocess.Popen(["sleep", "600"])
        variables = {**os.environ, "RAY_RAYLET_PID": str(self.raylet.pid)}
        name = forkserver.stem({})
        self.socket = folder / f"{name}.sock"
        words = [sys.executable, "-c", SERVE, str(folder), name, *modules]
        self.process = subprocess.Popen(words, env=variables, stderr=subprocess.PIPE, text=True)
        wait_until(self.socket.exists, seconds=30)

    def ask(self, script: Path, *words: str, cwd: Path | None = None) -> subprocess.Popen[str]:
        command = f"{forkserver.executable(str(self.folder))} {script} {' '.join(words)}"
        return subprocess.Popen(["bash", "-c", f"exec {command}"], env={"COLOUR": "green"}, cwd=cwd, stdout=subprocess.PIPE, text=True)

    def close(self) -> None:
        self.raylet.kill()
        self.raylet.wait()
        self.process.communicate(timeout=30)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="it's ") as name:  # short, as sockets need it, and in need of quotes
        yield Path(name)


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    server = Server(folder, "colorsys", "no_such_module")
    yield server
    server.close()


def test_a_worker_has_its_own_words_folder_variables_group_and_exit_status(server: Server, folder: Path, tmp_path: Path):
    program = tmp_path / "worker.py"
    program.write_text(TELL)
    client = server.ask(program, "one", "two", cwd=tmp_path)
    told, _ = client.communicate(timeout=30)
    assert json.loads(told) == [["one", "two"], str(tmp_path), "green", True, True, "__main__"]
    assert client.returncode == 3


def test_a_killed_worker_is_told_and_its_siblings_live(server: Server, tmp_path: Path):
    program = tmp_path / "worker.py"
    program.write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n")
    first, second = server.ask(program), server.ask(program)
    assert first.stdout and second.stdout
    pids = [int(stdout.readline()) for stdout in (first.stdout, second.stdout)]
    os.killpg(pids[0], signal.SIGKILL)
    assert first.wait(timeout=30) == 128 + signal.SIGKILL
    assert second.poll() is None and Path(f"/proc/{pids[1]}").exists()
    second.kill()  # the client: its worker goes with it
    wait_until(lambda: not Path(f"/proc/{pids[1]}").exists(), seconds=30)
    second.communicate(timeout=30)


def test_the_server_ends_with_its_raylet(server: Server):
    server.raylet.kill()
    server.raylet.wait()
    assert server.process.wait(timeout=30) == 0


def test_what_imports_set_in_the_environment_is_there_and_what_a_worker_is_given_counts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "setting_module.py").write_text("import os\nos.environ.update(SHAPE='round', COLOUR='red')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    server = Server(folder, "setting_module")
    program = tmp_path / "worker.py"
    program.write_text("import os\nprint(os.environ['SHAPE'], os.environ['COLOUR'], 'RAY_RAYLET_PID' in os.environ)\n")
    told, _ = server.ask(program).communicate(timeout=30)
    server.close()
    assert told.split() == ["round", "green", "False"]


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n", "started threads"),
        ("import ray._raylet as ray\nray.TaskID.for_fake_task(ray.JobID.nil())\n", "Ray's generator"),
    ],
    ids=["threads", "generator"],
)
def test_modules_that_change_what_forks_share_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, what: str
):
    (tmp_path / "unfit_module.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    server = Server(folder, "unfit_module")
    _, said = server.process.communicate(timeout=60)
    server.close()
    assert server.process.returncode == 1
    assert what in said and "set compute.fork to false" in said


def test_variables_that_imports_heed_have_a_server_of_their_own():
    places = [forkserver.stem(given) for given in ({}, {"COLOUR": "green"}, {"HF_HUB_OFFLINE": "1"}, {"HF_HUB_OFFLINE": "0"})]
    assert places[0] == places[1]
    assert len(set(places)) == 3


@pytest.mark.slow
def test_what_the_processes_of_verl_import_can_be_forked(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("vllm")
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", "hba_ray.rl.plugin")
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    server = Server(folder, *forkserver.MODULES)
    program = tmp_path / "worker.py"
    program.write_text("import sys\nprint('vllm' in sys.modules, 'hba_ray.rl.rollouts' in sys.modules)\n")
    told, _ = server.ask(program).communicate(timeout=300)
    server.close()
    assert told.split() == ["True", "True"]


@pytest.mark.ray
@pytest.mark.slow
def test_workers_of_a_private_ray_are_forks_of_one_server(tmp_path: Path):
    import ray

    from hba_ray.cluster.session import ray_session
    from hba_ray.specs import ComputeSpec

    with ray_session(ComputeSpec(fork=True), tmp_path):

        @ray.remote(num_cpus=0.5)
        class Worker:
            def pids(self) -> tuple[int, int]:
                import torch

                assert torch.ones(3).sum() == 3
                return os.getpid(), os.getppid()

            def placement_group(self) -> str:
                from ray.util import placement_group

                group = placement_group([{"CPU": 0.1}])
                ray.get(group.ready())
                return group.id.hex()

        workers = [Worker.remote() for _ in range(3)]  # type: ignore[attr-defined]
        pids = ray.get([worker.pids.remote() for worker in workers])
        assert len({pid for pid, _ in pids}) == 3
        servers = {parent for _, parent in pids}
        assert len(servers) == 1 and os.getpid() not in servers
        groups = ray.get([worker.placement_group.remote() for worker in workers])
        assert len(set(groups)) == 3  # from generators of their own
        ray.kill(workers[0])
        wait_until(lambda: not Path(f"/proc/{pids[0][0]}").exists(), seconds=30)
        assert ray.get(workers[1].pids.remote()) == pids[1]
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in {*servers, *(pid for pid, _ in pids)}), seconds=30)


def test_where_the_imports_fail_a_worker_is_started_by_itself_and_the_failure_is_noted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "broken_module.py").write_text("import time\ntime.sleep(1)\nraise OSError('no room')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    server = Server(folder, "broken_module")
    program = tmp_path / "worker.py"
    program.write_text("import os, sys\nprint(sys.argv[1:], os.environ['COLOUR'])\nsys.exit(3)\n")
    early = server.ask(program, "early")  # waits while the server still imports
    _, said = server.process.communicate(timeout=60)
    assert "no room" in said
    late = server.ask(program, "late")
    for client, word in ((early, "early"), (late, "late")):
        told, _ = client.communicate(timeout=60)
        assert told.split() == [f"['{word}']", "green"] and client.returncode == 3
    assert [file.name for file in folder.glob(f"*{forkserver.FAILED}")] == [forkserver.stem({}) + forkserver.FAILED]
    server.close()
