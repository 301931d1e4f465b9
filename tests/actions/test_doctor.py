"""`hba doctor` says what a spec would miss here, in the words of the run itself, and no secret."""

import socket
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

import hba_ray
from hba_ray.actions import doctor
from hba_ray.actions.doctor import check_machine
from hba_ray.cluster.machine import Gpu, Machine
from hba_ray.report.differences import sentences
from hba_ray.specs import ExperimentSpec
from hba_ray.steps.needs.base import Check
from tests.helpers.machines import machine

BARE = machine(packages={})


def checks(stated: bool = True, on: Machine | None = None, **sections: object) -> dict[str, Check]:
    spec = ExperimentSpec.model_validate({"name": "x", "atlas": {"source": "toy"}, "sft": {"batch": 64}, **sections})
    return {check.what: check for check in check_machine(spec, stated=stated, machine=on)}


def test_nothing_is_missing_of_what_no_spec_asks_for(tmp_path: Path):
    found = checks(stated=False, on=BARE, compute={"storage": str(tmp_path)})
    assert {check.state for check in found.values()} == {"ok", "not here"}
    assert found["Ray"].state == "not here" and "'.[train]'" in found["Ray"].way_out


def test_what_a_spec_needs_and_is_not_there_is_missing(tmp_path: Path):
    found = checks(on=BARE, compute={"storage": str(tmp_path)}, model={"backbone": "tiny"})
    assert [found[what].state for what in ("Ray", "packages: train")] == ["missing", "missing"]
    assert "extractor: pose" not in found
    found = checks(on=BARE, compute={"storage": str(tmp_path)}, model={"backbone": "tiny"}, descriptors={"streams": ["pose"]})
    assert found["extractor: pose"].state == "missing"


def test_flash_attention_is_named_where_there_is_a_gpu_that_would_gain_by_it():
    gpus = (Gpu("NVIDIA H200", 141 * 2**30),)
    flash = checks(stated=False, on=machine(gpus=gpus))["flash-attn"]
    assert (flash.state, flash.found) == ("not here", "not installed") and "'.[flash]'" in flash.way_out
    assert checks(stated=False, on=machine(gpus=gpus, packages={"flash-attn": "2.8.3"}))["flash-attn"].state == "ok"
    assert "flash-attn" not in checks(stated=False, on=machine())


@pytest.mark.parametrize(
    ("sections", "what", "says"),
    [
        ({"compute": {"gpus_per_worker": 1}}, "CPUs, GPUs", "needs 1 GPUs"),
        ({"compute": {"cpus": 1, "workers": 4}}, "CPUs, GPUs", "needs 8 CPUs"),
        ({"compute": {"object_store_mib": 10**9}}, "shared memory", "1000000000 asked for"),
        ({"compute": {"address": "127.0.0.1:1"}}, "Ray", "no Ray cluster answers"),
        ({"tracking": {"mlflow": "http://127.0.0.1:1"}}, "MLflow", "nothing listens at http://127.0.0.1:1"),
        ({"evaluate": {"judge": {"base_url": "http://127.0.0.1:1/v1"}}}, "judge", "nothing listens at http://127.0.0.1:1/v1"),
        (
            {"descriptors": {"streams": ["pose"]}, "compute": {"pythons": {"pose": "/nowhere/python"}}},
            "extractor: pose",
            "/nowhere/python is no program",
        ),
    ],
)
def test_a_thing_that_is_missing_is_named_with_a_way_out(sections: dict, what: str, says: str, tmp_path: Path):
    compute = {"storage": str(tmp_path), **sections.pop("compute", {})}
    check = checks(on=machine(cores=2), model={"backbone": "tiny"}, compute=compute, **sections)[what]
    assert (check.state, bool(check.way_out)) == ("missing", True)
    assert says in check.found


def test_a_service_that_listens_is_ok_and_the_key_is_not_shown(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        judge = {"base_url": f"{url}/v1", "key_env": "A_KEY"}
        monkeypatch.setenv("A_KEY", "sk-secret")
        found = checks(tracking={"mlflow": url}, evaluate={"judge": judge})
        assert [found[what].state for what in ("MLflow", "judge", "judge's key")] == ["ok"] * 3
        assert "sk-secret" not in str(found)
        monkeypatch.delenv("A_KEY")
        assert checks(evaluate={"judge": judge})["judge's key"].state == "missing"


def test_a_python_of_another_version_is_missing_even_without_a_spec(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "sys", SimpleNamespace(version="3.13.1 (main)", version_info=(3, 13, 1), prefix="/env"))
    assert checks(stated=False)["Python"].state == "missing"


def test_packages_out_of_bounds_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metadata, "requires", lambda name: ['pydantic==1.0; extra == "train"'])
    check = checks()["packages: train"]
    assert check.state == "missing" and check.found.startswith("0 of 1: pydantic is ")


def test_the_files_of_the_released_sentences_are_named(tmp_path: Path):
    found = checks(compat="authors", stages=["sft", "grpo"], compute={"micro_batch": 2})
    assert "model.system_prompt=CHECKOUT/training/sft/dataset/base_dataset.py" in found["system turn"].way_out
    assert "grpo.prompts=CHECKOUT/training/rl/format_prompt/default.jinja" in found["reasoning instruction"].way_out
    turn, own = tmp_path / "turn.txt", tmp_path / "own.yaml"
    turn.write_text("You look at people.")
    own.write_bytes((Path(hba_ray.__file__).parent / "data" / "reasoning.yaml").read_bytes())
    given = checks(stages=["sft", "grpo"], model={"system_prompt": str(turn)}, grpo={"prompts": str(own)}, compute={"micro_batch": 2})
    assert (given["system turn"].state, given["system turn"].found, given["reasoning instruction"].found) == ("ok", str(turn), str(own))


def test_the_differences_of_a_spec_are_those_of_its_checkpoints(tmp_path: Path):
    (tmp_path / "pytorch_model_fsdp.bin").touch()
    base = {"name": "x", "atlas": {"source": "toy"}, "sft": {"batch": 64}}
    said = " ".join(sentences(doctor.known_differences(ExperimentSpec.model_validate(base))))
    assert "passes no audio or video" in said and "sft.epochs=5 (10)" in said
    released = base | {"sft": {"batch": 64, "checkpoint": str(tmp_path)}}
    said = " ".join(sentences(doctor.known_differences(ExperimentSpec.model_validate(released))))
    assert "passes no audio or video" not in said and "sft.epochs" not in said
