"""How far a cluster can grow is stated; what a run needs is asked for, waited for with a deadline, and given back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hba_ray.cluster.growth import GROWS_TO, addable, bundles, fit, largest, stated, whole
from hba_ray.cluster.session import check_capacity
from hba_ray.errors import EnvironmentMissing
from hba_ray.specs import ComputeSpec
from hba_ray.specs.load import as_yaml
from hba_ray.specs.sections.compute import NodesSpec
from tests.helpers.experiments import small_experiment
from tests.helpers.servers import free_port, mlflow_server
from tests.helpers.waiting import wait_until

GPU = NodesSpec(cpus=8, gpus=1, most=3)
JOINED = {"address": "auto", "workers": 2, "gpus_per_worker": 1.0, "loaders": 1}


def test_it_is_stated_by_the_spec_or_by_the_head_and_a_private_ray_does_not_grow():
    said = {GROWS_TO: stated([GPU])}
    assert addable(ComputeSpec(**JOINED), said) == (GPU,)
    own = NodesSpec(cpus=2, most=1)
    assert addable(ComputeSpec(**JOINED, grows_to=(own,)), said) == (own,)
    assert addable(ComputeSpec(**JOINED, grows_to=()), said) == addable(ComputeSpec(), said) == addable(ComputeSpec(**JOINED), {}) == ()


@pytest.mark.parametrize("said", ["", "64", '[{"cpus": 0, "most": 1}]', '[{"cpu": 4, "most": 1}]'])
def test_what_cannot_be_read_is_told_with_the_form(said: str):
    with pytest.raises(EnvironmentMissing, match=rf'{GROWS_TO}: is no list of nodes.*\n  give it as \[{{"cpus": 64'):
        addable(ComputeSpec(**JOINED), {GROWS_TO: said})


def test_a_cluster_of_a_head_alone_has_room_for_what_it_can_grow_to():
    spec = ComputeSpec(**JOINED, grows_to=(GPU,))
    assert largest(spec, {"CPU": 0.0}, 1) == (24, 3, 4)
    check_capacity(spec, *largest(spec, {"CPU": 0.0}, 1)[:2])
    with pytest.raises(EnvironmentMissing, match="needs 2 GPUs, but there are 0"):
        check_capacity(spec, 8, 0)
    assert largest(spec, {"CPU": 100.0, "GPU": 1.0}, 9) == (100, 3, 9)


def test_a_run_asks_for_its_workers_with_their_gpus_and_for_loaders():
    spec = ComputeSpec(**JOINED, cpus_per_worker=4)
    assert bundles(spec, 24, rollouts=2) == [{"CPU": 4.0, "GPU": 1.0}] * 2 + [{"CPU": 1.0}] * 2 + [{"CPU": 1.0}] * 2


@given(st.lists(st.integers(1, 4), max_size=6), st.lists(st.integers(0, 8), max_size=4))
def test_what_fits_leaves_no_node_with_more_than_it_has(cpus: list[int], nodes: list[int]):
    wanted, there = [{"CPU": float(one)} for one in cpus], [{"CPU": float(one)} for one in nodes]
    if fit(wanted, there):
        assert sum(cpus) <= sum(nodes) and max(cpus, default=0) <= max(nodes, default=0)
        assert fit(wanted, [*there, {"CPU": 1.0}])
    elif len(nodes) == 1 or not nodes:
        assert sum(cpus) > sum(nodes)
    assert there == [{"CPU": float(one)} for one in nodes]


@given(st.integers(0, 4), st.integers(0, 2), st.lists(st.tuples(st.integers(0, 40), st.integers(0, 8)), max_size=4))
def test_what_one_node_has_to_hold_is_all_that_a_run_holds_or_is_refused(workers: int, rollouts: int, kinds: list[tuple[int, int]]):
    spec = ComputeSpec(**JOINED | {"workers": workers, "loaders": None})
    nodes = [{"CPU": float(cpus), "GPU": float(gpus)} for cpus, gpus in kinds]
    workers = max(1, workers) if rollouts else workers  # verl has one
    least = 2 * workers + rollouts, workers
    large_enough = [node for node in nodes if node["CPU"] >= least[0] and node["GPU"] >= least[1]]
    if not large_enough:
        with pytest.raises(EnvironmentMissing, match=r"done whole on one node.*no node has them\n  lower compute.workers"):
            whole(spec, nodes, rollouts)
        return
    held, smallest = whole(spec, nodes, rollouts), min(large_enough, key=lambda node: node["CPU"])
    assert held.get("GPU", 0) == workers and least[0] <= held["CPU"] <= smallest["CPU"], "any of them can hold it"
    loaders = (held["CPU"] - workers - rollouts) / max(1, workers)
    assert loaders <= 12 and loaders == int(loaders)
    if workers and loaders > 1:
        assert held["CPU"] * smallest["GPU"] <= smallest["CPU"] * workers, "CPUs go with GPUs, so that GPUs are not left over"
    assert whole(spec, nodes, rollouts, 1000.0)["CPU"] == smallest["CPU"], "a step that can use more gets all of the node"


COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
NOTHING_ELSE = {f"{kind}_commands": [] for kind in COMMANDS} | {
    **{"file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False, "docker": {}},
    **{"rsync_exclude": [], "rsync_filter": []},
}
"""What `ray up` would fill in."""
AS_FAKES_ARE = {"use_node_id_as_ip": True, "disable_node_updaters": True, "launch_multiple": True}
"""Nodes of this machine have one address, and nobody logs in on them."""
RUN = """
import sys, ray
from hba_ray.cluster.growth import grown
from hba_ray.cluster.session import joined
from hba_ray.specs import ComputeSpec
from hba_ray.specs.sections.compute import NodesSpec
nodes = NodesSpec(cpus=4, most=2)
spec = ComputeSpec(address=sys.argv[1], workers=2, cpus_per_worker=3, loaders=1, grows_to=[nodes], wait_minutes=float(sys.argv[2]))
with joined(spec):
    with grown(spec, print):
        print("up", sorted(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]))
        print("ran", ray.get([ray.remote(lambda: 1).options(num_cpus=3).remote() for _ in range(2)]))
"""


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a head without CPUs whose autoscaler adds nodes of this machine, and the environment of its processes.

    A test may say what a node has; four CPUs by default.
    """
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

    folder, port = Path(tempfile.mkdtemp(prefix="hba")), free_port()
    workers = {"resources": getattr(request, "param", {"CPU": 4}), "node_config": {}, "min_workers": 0, "max_workers": 2}
    config = {
        "cluster_name": "fake",
        "max_workers": 2,
        "upscaling_speed": 20.0,
        "idle_timeout_minutes": 0.1,
        "provider": {"type": "fake_multinode", "gcs_address": f"127.0.0.1:{port}", **AS_FAKES_ARE},
        "auth": {},
        "available_node_types": {FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}, "cpu": workers},
        "head_node_type": FAKE_HEAD_NODE_TYPE,
    }
    (folder / "autoscaling.yaml").write_text(json.dumps(config | NOTHING_ELSE))
    own = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID}
    environ = (
        os.environ
        | own
        | {"RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 32, "PYTHONPATH": str(Path(__file__).parents[2])}
    )
    start = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--node-ip-address=127.0.0.1", f"--port={port}"]
    head = [*start, "--num-cpus=0", "--include-dashboard=false"]
    more = [f"--autoscaling-config={folder / 'autoscaling.yaml'}", "--object-store-memory=100000000", "--disable-usage-stats", "--block"]
    with (folder / "said").open("w") as said:
        process = subprocess.Popen([*head, *more], env=environ, stdout=said, stderr=said, start_new_session=True)
    try:
        wait_until(lambda: "Ray runtime started" in (folder / "said").read_text() or process.poll() is not None)
        assert process.poll() is None, (folder / "said").read_text()
        yield f"127.0.0.1:{port}", environ
    finally:
        import psutil

        mine = [one for one in psutil.process_iter() if _works_in(one, folder)]
        for one in [process, *mine]:
            one.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _works_in(process, folder: Path) -> bool:
    import psutil

    try:
        return process.environ().get("RAY_TMPDIR") == str(folder)
    except psutil.Error:
        return False


def nodes(address: str, environ: dict[str, str]) -> int:
    """How many nodes are up."""
    count = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False); print('nodes', sum(n['Alive'] for n in ray.nodes()))"
    asked = subprocess.run([sys.executable, "-c", count, address], env=environ, capture_output=True, text=True, check=True)
    return int(asked.stdout.split("nodes")[-1])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_from_zero_workers_come_work_is_done_and_they_go_again(cluster: tuple[str, dict[str, str]]):
    address, environ = cluster

    def run(minutes: float) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", RUN, address, str(minutes)]
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300, check=False)

    late = run(0)
    assert late.returncode == 1 and "8 CPUs are needed, and after 0 minutes 0 CPUs are there" in late.stderr, late.stdout + late.stderr
    done = run(4)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.splitlines()
    assert said[0] == "waiting for nodes: 8 CPUs are needed, 0 CPUs are there"
    assert said[-2:] == ["up [0, 4.0, 4.0]", "ran [1, 1]"]

    wait_until(lambda: nodes(address, environ) == 1, pause=2)  # what was asked for is given back


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_trains_on_workers_that_were_not_there(cluster: tuple[str, dict[str, str]], tmp_path: Path):
    address, environ = cluster
    with mlflow_server(tmp_path) as mlflow:
        compute = {
            "compute__address": address,
            "compute__workers": 2,
            "compute__cpus_per_worker": 3,
            "compute__wait_minutes": 4,
            "sft__batch": 8,
        }
        spec = small_experiment(tmp_path, **compute, tracking__mlflow=mlflow)
        (tmp_path / "spec.yaml").write_text(as_yaml(spec))
        command = [sys.executable, "-m", "hba_ray", "run", str(tmp_path / "spec.yaml")]
        more = {GROWS_TO: stated([NodesSpec(cpus=4, most=2)])}  # as the head of a rendered file has it
        done = subprocess.run(command, env=environ | more, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "waiting for nodes: 8 CPUs are needed, 0 CPUs are there" in done.stderr
    assert len(list(tmp_path.glob("steps/evaluate-*/done.json"))) == 1


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("cluster", [{"CPU": 8, "GPU": 1}], indirect=True)
def test_grpo_runs_on_a_worker_that_was_not_there(cluster: tuple[str, dict[str, str]], tmp_path: Path):
    """verl counts its places in GPUs, so the node has a logical one."""
    address, environ = cluster
    with mlflow_server(tmp_path) as mlflow:
        compute = {"compute__address": address, "compute__workers": 1, "compute__wait_minutes": 4, "tracking__mlflow": mlflow}
        sizes = {"steps": 1, "batch": 4, "mini_batch": 4, "micro_batch": 4, "rollouts": 2, "prompt_tokens": 512, "response_tokens": 8}
        grpo = {"validate_every": None, "reward": {"similarity_weight": 0}, **sizes}
        spec = small_experiment(tmp_path, stages=["grpo"], grpo=grpo, **compute)
        (tmp_path / "spec.yaml").write_text(as_yaml(spec))
        command = [sys.executable, "-m", "hba_ray", "run", str(tmp_path / "spec.yaml")]
        more = {GROWS_TO: stated([NodesSpec(cpus=8, gpus=1, most=2)])}
        done = subprocess.run(command, env=environ | more, capture_output=True, text=True, timeout=1000, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "waiting for nodes" in done.stderr and "GRPO took 1 steps" in done.stdout
    wait_until(lambda: nodes(address, environ) == 1, pause=2)
