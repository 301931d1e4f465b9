"""Capacity is checked before anything starts; one real private Ray shows the rest."""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hba_ray.cluster import session as module
from hba_ray.cluster.environment import NO_PROGRESS
from hba_ray.cluster.session import check_capacity, local_cpus, ray_session
from hba_ray.errors import EnvironmentMissing
from hba_ray.limits import usable_cpus
from hba_ray.specs.sections.compute import ComputeSpec
from tests.helpers.other_user import as_other, needs_root
from tests.helpers.waiting import wait_until


def test_workers_that_leave_nothing_for_their_loaders_are_refused() -> None:
    spec = ComputeSpec(workers=2, cpus_per_worker=1, loaders=1, cpus_per_loader=1)
    check_capacity(spec, 4, 0)
    with pytest.raises(EnvironmentMissing) as refused:
        check_capacity(spec, 3, 0)
    assert "needs 4 CPUs (2 for workers, 2 for loaders), but there are 3" in str(refused.value)
    assert "compute.loaders" in str(refused.value) and "raise compute.cpus" in str(refused.value)


def test_a_cluster_is_told_to_grow_instead() -> None:
    with pytest.raises(EnvironmentMissing, match="or add nodes"):
        check_capacity(ComputeSpec(address="auto", workers=8), 4, 0)


def test_missing_gpus_are_named() -> None:
    with pytest.raises(EnvironmentMissing, match="needs 2 GPUs, but there are 1"):
        check_capacity(ComputeSpec(workers=2, gpus_per_worker=1), 16, 1)


def test_a_loop_without_workers_needs_nothing_of_ray() -> None:
    check_capacity(ComputeSpec(workers=0), 0, 0)
    with pytest.raises(EnvironmentMissing):
        check_capacity(ComputeSpec(workers=1), 0, 0)


@given(
    workers=st.integers(0, 16),
    per_worker=st.floats(0.25, 8),
    loaders=st.integers(1, 8),
    per_loader=st.floats(0.25, 2),
    cpus=st.integers(0, 128),
)
def test_capacity_is_refused_exactly_where_it_is_not_enough(
    workers: int, per_worker: float, loaders: int, per_loader: float, cpus: int
) -> None:
    spec = ComputeSpec(workers=workers, cpus_per_worker=per_worker, loaders=loaders, cpus_per_loader=per_loader)
    if workers * per_worker + workers * loaders * per_loader <= cpus:
        check_capacity(spec, cpus, 0)
    else:
        with pytest.raises(EnvironmentMissing):
            check_capacity(spec, cpus, 0)


def test_a_local_ray_has_at_least_four_logical_cpus() -> None:
    assert local_cpus(ComputeSpec()) == max(4, usable_cpus())
    assert local_cpus(ComputeSpec(cpus=2)) == 2


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "host:port", "ray://127.0.0.1:10001", "127.0.0.1:99999999"])
def test_an_address_where_no_cluster_is_ends_with_a_way_out(address: str, tmp_path: Path) -> None:
    import ray  # sets a variable of its own, once

    assert not ray.is_initialized()
    before = dict(os.environ)
    with pytest.raises(EnvironmentMissing, match=r"compute\.address: .*\n  \w+"), ray_session(ComputeSpec(address=address), tmp_path):
        pytest.fail("there is no such cluster")
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    "failure",
    [
        Exception("The current node timed out during startup. This could happen because\nthe GCS has become overloaded."),
        RuntimeError("Failed to start GCS.  Last 0 lines of error files:\n."),
        TimeoutError(),
    ],
)
def test_a_private_ray_that_does_not_start_ends_with_a_way_out(failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def fail(**options: object) -> None:
        raise failure

    monkeypatch.setattr(ray, "init", fail)
    before = dict(os.environ)
    with pytest.raises(EnvironmentMissing) as refused, ray_session(ComputeSpec(), tmp_path / "logs"):
        pytest.fail("it was not started")
    assert refused.value.where == "compute.address" and f"logs are in {tmp_path / 'logs'}" in refused.value.way_out
    assert refused.value.what.endswith((str(failure) or "TimeoutError").splitlines()[0]) and refused.value.__cause__ is failure
    assert dict(os.environ) == before


def test_a_mistake_of_ours_at_the_start_of_ray_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def fail(**options: object) -> None:
        raise ValueError("no such option")

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(ValueError, match="no such option"), ray_session(ComputeSpec(), tmp_path / "logs"):
        pytest.fail("it was not started")


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A temporary folder; `tmp_path` is too long for a socket in it."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        yield Path(folder)


@pytest.mark.ray
@pytest.mark.slow
def test_a_private_ray_computes_and_leaves_nothing_behind(
    tmp_path: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import ray.data
    from ray._private import worker
    from ray._private.utils import publish_error_to_driver
    from ray.util.state import list_actors

    monkeypatch.setenv("RAY_TMPDIR", str(short_folder))
    monkeypatch.setenv("RAY_num_workers_soft_limit", "6")
    handlers = {name: logging.getLogger(name).handlers[:] for name in ("ray", "ray.data")}
    before = dict(os.environ)
    logs = tmp_path / "logs"
    spec = ComputeSpec(cpus=3, object_store_mib=100)

    with pytest.raises(KeyboardInterrupt), ray_session(spec, logs) as session:
        assert (session.cpus, session.gpus) == (3, ray.cluster_resources().get("GPU", 0))
        with ray_session(ComputeSpec(cpus=64, workers=64), logs) as nested:
            assert nested == session
        assert ray.is_initialized()

        @ray.remote
        def names() -> dict[str, str]:
            print("said by a worker")
            return dict(os.environ)

        seen = ray.get(names.remote())
        assert (seen["RAY_ADDRESS"], seen["OMP_NUM_THREADS"], seen["DS_ACCELERATOR"]) == (session.address, "1", "cpu")
        assert seen["RAY_num_workers_soft_limit"] == "6"
        assert float(seen[NO_PROGRESS]) == ray.data.DataContext.get_current().execution_no_progress_timeout_s > 3600
        assert list_actors() == []  # the state API answers: Train's clean-up of stopped trials depends on it
        assert ray.data.range(8).map_batches(lambda batch: batch, num_cpus=1).count() == 8
        publish_error_to_driver("worker_pool_large", "said by a raylet", worker.global_worker.gcs_client)
        wait_until(lambda: "said by a raylet" in (logs / "ray.log").read_text())
        raise KeyboardInterrupt

    assert not ray.is_initialized()
    assert dict(os.environ) == before
    assert {name: logging.getLogger(name).handlers for name in handlers} == handlers
    assert list(short_folder.iterdir()) == []
    assert "Started a local Ray instance" in (logs / "ray.log").read_text()
    said = [file for file in logs.glob("session_*/worker-*.out") if "said by a worker" in file.read_text()]
    assert said
    assert capfd.readouterr() == ("", "")


INTRUDE = """
address, dashboard, folder = sys.argv[1:]
def tried(act):
    try:
        act()
    except (OSError, ray.exceptions.RayError, RuntimeError) as error:
        return f"{type(error).__name__} {getattr(error, 'code', '')}".strip()
    return "done"
def submit(headers):
    body = json.dumps({"entrypoint": "true"}).encode()
    urllib.request.urlopen(urllib.request.Request(f"http://{dashboard}/api/jobs/", body, {"Content-Type": "application/json", **headers}))
print(json.dumps([
    tried(lambda: GcsClient(address=address).internal_kv_keys(b"", None, timeout=10)),
    tried(lambda: GcsClient(address=address).internal_kv_put(b"key", b"planted", True, None, timeout=10)),
    tried(lambda: submit({})),
    tried(lambda: submit({"Authorization": "Bearer " + "0" * 64})),
    tried(lambda: os.listdir(folder)),
    tried(lambda: open(os.path.join(folder, "token"))),
    tried(lambda: os.mkdir(os.path.join(folder, "r", "planted"))),
]))
os._exit(0)
"""
"""What another user tries: to read and write the control service's store, to submit a job, to read the folder and the token, to plant."""


@needs_root
@pytest.mark.ray
@pytest.mark.slow
def test_nobody_else_reads_connects_to_submits_to_or_reaches_a_private_ray(
    tmp_path: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil
    import ray

    monkeypatch.setenv("RAY_TMPDIR", str(short_folder))
    short_folder.chmod(0o1777)
    tmp_path.chmod(0o755)
    with ray_session(ComputeSpec(cpus=2, object_store_mib=100), tmp_path / "logs") as session:

        @ray.remote
        def told() -> tuple[str, str]:
            return ray.util.get_node_ip_address(), os.environ["RAY_AUTH_MODE"]

        assert ray.get(told.remote()) == (module.LOOPBACK, "token")
        (folder,) = short_folder.glob("hba-ray-*")
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        heard = {
            (process.name(), connection.laddr.ip)
            for process in processes
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert len(heard) > 5 and all(ip_address(ip.removeprefix("::ffff:")).is_loopback for _, ip in heard), heard
        dashboard = ray._private.worker.global_worker.node.webui_url
        preload = "json, os, sys, socket, urllib.request, encodings.idna, ray, ray.exceptions\nfrom ray._raylet import GcsClient"
        environ = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
        said = json.loads(as_other(INTRUDE, session.address, dashboard, str(folder), preload=preload, environ=environ, seconds=200))
        assert said[:2] == ["AuthenticationError"] * 2
        assert all(one.startswith("HTTPError 40") for one in said[2:4]), said
        assert said[4:] == ["PermissionError"] * 3
    opened = [path for path in (tmp_path / "logs").rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o022]
    assert not opened


def test_what_native_code_writes_to_standard_error_goes_to_a_file_and_what_python_writes_does_not(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from hba_ray.cluster.session import _native_log
with _native_log(Path(sys.argv[1])):
    os.write(2, b"core_worker.cc:1: a line of Ray's core\\n")
    print("a line of Python's", file=sys.stderr)
os.write(2, b"the last line\\n")
print("and Python's", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "native.log")], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["a line of Python's", "the last line", "and Python's"]
    assert (tmp_path / "native.log").read_text() == "core_worker.cc:1: a line of Ray's core\n"
