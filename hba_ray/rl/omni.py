"""Qwen2.5-Omni as verl trains it: the actor, the processor of its prompts, and positions that allow packing.

verl 0.9.1 and vLLM 0.24 must agree on four things about every row: the names of the weights, the
expanded prompt, the positions of its tokens, and which tokens can be sampled at all. Each is settled here.

Letters: B rows, S positions, V vocabulary; T frames or samples, H and W pixels.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.distributed
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    Qwen2_5OmniConfig,
    Qwen2_5OmniForConditionalGeneration,
    Qwen2_5OmniProcessor,
)
from transformers.feature_extraction_utils import BatchFeature
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniPreTrainedModelForConditionalGeneration

from hba_ray.data.clips import Clips, as_picture, process, video_metadata
from hba_ray.models.attention import join_windows

MEDIA_TOKENS = ("<|IMAGE|>", "<|VIDEO|>", "<|AUDIO|>")
"""Placeholders, one for each embedding of a clip."""
UNSAMPLED_TOKENS = (*MEDIA_TOKENS, "<|audio_bos|>", "<|audio_eos|>", "<|vision_bos|>", "<|vision_eos|>", "<|vision_pad|>")
"""Tokens that stand for clips. One that is sampled would stand for no clip, so no policy may choose them."""

_NEVER = -1e4
"""A logit without any weight in a softmax; finite, also after division by a temperature."""
_SHORTEST_AUDIO = 200
"""Mel frames (2 s) of the silent clip that a tower reads where a micro-batch has none."""


class OmniActor(Qwen2_5OmniForConditionalGeneration):
    """The thinker under the names of the full model (`thinker.*`), which are also vLLM's and the released ones.

    As in the sampler, logits of `UNSAMPLED_TOKENS` and of entries that pad the vocabulary are so low that their
    probability is 0. Otherwise these tokens would take a share of every softmax here but not in the sampler.
    """

    unsampled_ids: tuple[int, ...] = ()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        # The class's own wants the talker's file of speakers, which a model without speech does not have.
        model = super(Qwen2_5OmniForConditionalGeneration, cls).from_pretrained(*args, **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(args[0] if args else kwargs["pretrained_model_name_or_path"])
        join_windows(model.thinker)
        model.unsampled_ids = (*unsampled_ids(tokenizer), *range(len(tokenizer), model.thinker.lm_head.out_features))
        return model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        """The thinker's forward pass.

        Args:
            input_ids: [B, S], or [1, S] where rows are packed one behind the other.
            attention_mask: [B, S]; None where rows are packed.
            position_ids: [4, B, S], plain positions first, then time, height and width.
        """
        inputs.pop("images_seqlens", None)
        outputs = self.thinker(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **inputs)
        if self.unsampled_ids:
            outputs.logits[..., list(self.unsampled_ids)] = _NEVER
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            outputs.logits = outputs.logits + self._idle_towers(inputs, outputs.logits)
        return outputs

    def _idle_towers(self, inputs: Mapping[str, Any], logits_BSV: Tensor) -> Tensor:
        """Zero, computed by a pass through each tower that this micro-batch has no clip for.

        Workers gather a tower's weights together, so a worker that skipped the tower would leave the others waiting.
        """
        thinker = cast(Any, self.thinker)  # transformers declares neither its sub-configurations nor return_dict
        zero = logits_BSV.new_zeros(())
        if inputs.get("input_features") is None:
            mels = cast(Any, self.config.thinker_config).audio_config.num_mel_bins
            silence = torch.zeros(1, mels, _SHORTEST_AUDIO, device=logits_BSV.device, dtype=logits_BSV.dtype)
            mask = torch.ones(1, _SHORTEST_AUDIO, device=logits_BSV.device, dtype=torch.long)
            heard = thinker.get_audio_features(silence, feature_attention_mask=mask, return_dict=True).last_hidden_state
            zero = zero + 0.0 * heard.sum()
        if inputs.get("pixel_values") is None and inputs.get("pixel_values_videos") is None:
            vision = cast(Any, self.config.thinker_config).vision_config
            side = vision.spatial_merge_size
            values = 3 * vision.temporal_patch_size * vision.patch_size**2
            black = torch.zeros(side * side, values, device=logits_BSV.device, dtype=logits_BSV.dtype)
            grid = torch.tensor([[1, side, side]], device=logits_BSV.device)
            seen = thinker.get_video_features(black, grid, return_dict=True).pooler_output
            zero = zero + 0.0 * (torch.cat(list(seen)) if isinstance(seen, (list, tuple)) else seen).sum()
        return zero

    def get_input_embeddings(self) -> Any:
        return self.thinker.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.thinker.get_output_embeddings()


def verl_media(clips: Clips) -> dict[str, list[Any]]:
    """Decoded clips as verl passes them about.

    Returns:
        `images` (Pillow's), `videos` (uint8 [T, 3, H, W] with what is known of it), `audios` (float32 [T] at
        16 kHz); a modality without clips is left out.
    """
    media = {
        "images": [as_picture(image_CHW) for image_CHW in clips["image"]],
        "videos": [(torch.from_numpy(frames_TCHW), video_metadata(len(frames_TCHW), rate)) for frames_TCHW, rate in clips["video"]],
        "audios": clips["audio"],
    }
    return {name: found for name, found in media.items() if found}


class RolloutProcessor(Qwen2_5OmniProcessor):
    """The model's processor as verl calls it, one row at a time; tokens and pixels are those of `data.clips.process`."""

    image_token_id: int
    video_token_id: int
    audio_token_id: int

    def __call__(  # type: ignore[override]
        self,
        text: list[str],
        images: Sequence[Any] | None = None,
        videos: Sequence[Tensor] | None = None,
        audio: Sequence[np.ndarray] | None = None,
        video_metadata: Sequence[Mapping[str, Any]] | None = None,
        **_: Any,
    ) -> BatchFeature:
        """Tensors of one prompt: input_ids and attention_mask [1, S], and what `process` makes of its clips.

        Further arguments of verl (a sampling rate, the settings of `Prompt.settings`) say what holds here anyway.

        Args:
            text: the prompt, alone in a list.
            images: Pillow's, of the size that they shall have.
            videos: uint8 [T, 3, H, W] each.
            video_metadata: `fps` of each video, in frames per second.
        """
        rate = mean_rate(video_metadata) if video_metadata else 0.0
        clips: Clips = {
            "image": [np.array(image).transpose(2, 0, 1) for image in images or ()],
            "video": [(frames_TCHW.numpy(), rate) for frames_TCHW in videos or ()],
            "audio": list(audio) if audio is not None else [],
        }
        made = process(self, text, clips, super().__call__)
        input_ids = torch.tensor(made.pop("input_ids"))
        return BatchFeature({"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **made})

    def get_rope_index_kwargs(self, multi_modal_inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What verl 0.9.1 hands to `get_rope_index` beyond the grids (`agent_loop._compute_position_ids`)."""
        mask = multi_modal_inputs.get("feature_attention_mask")
        return {
            "audio_seqlens": None if mask is None else mask.sum(-1),
            "second_per_grids": multi_modal_inputs.get("video_second_per_grid"),
        }


def mean_rate(video_metadata: Sequence[Mapping[str, Any]]) -> float:
    """Frames per second that all videos of a row count with: vLLM takes one rate for a request, so it is their mean."""
    return float(np.mean([metadata["fps"] for metadata in video_metadata]))


def prepare_processor(processor: Qwen2_5OmniProcessor, config: Qwen2_5OmniConfig) -> RolloutProcessor:
    """The processor of a Qwen2.5-Omni folder as verl needs it: with ids of the placeholders, and positions."""
    tokenizer: Any = processor.tokenizer
    prepared: Any = RolloutProcessor(
        processor.image_processor, processor.video_processor, processor.feature_extractor, tokenizer, processor.chat_template
    )
    prepared.image_token_id, prepared.video_token_id, prepared.audio_token_id = tokenizer.convert_tokens_to_ids(list(MEDIA_TOKENS))
    prepared.get_rope_index = rope_index(config, tokenizer)
    return prepared


def rope_index(config: Qwen2_5OmniConfig, tokenizer: Any) -> Any:
    """The thinker's method `get_rope_index` without a thinker, of which it only reads ids in the config.

    Positions are computed before rows are packed, so they are right for packed and for padded rows alike.
    """
    thinker = cast(Any, config.thinker_config)  # declared as a dict or None; the constructor makes it a configuration
    convert = tokenizer.convert_tokens_to_ids
    ids = {
        "image_token_id": convert("<|IMAGE|>"),
        "video_token_id": convert("<|VIDEO|>"),
        "audio_token_id": convert("<|AUDIO|>"),
        "vision_start_token_id": convert("<|vision_bos|>"),
        "audio_start_token_id": convert("<|audio_bos|>"),
        "position_id_per_seconds": thinker.position_id_per_seconds,
        "seconds_per_chunk": thinker.seconds_per_chunk,
    }
    holder: Any = types.SimpleNamespace(config=types.SimpleNamespace(**ids), spatial_merge_size=thinker.vision_config.spatial_merge_size)
    for name in ("get_llm_pos_ids_for_vision", "get_chunked_index"):
        setattr(holder, name, types.MethodType(getattr(Qwen2_5OmniPreTrainedModelForConditionalGeneration, name), holder))
    method = types.MethodType(Qwen2_5OmniPreTrainedModelForConditionalGeneration.get_rope_index, holder)

    def get_rope_index(**inputs: Any) -> tuple[Tensor, Tensor]:
        inputs.pop("mm_token_type_ids", None)
        return method(**inputs)

    return get_rope_index


def unsampled_ids(tokenizer: Any) -> list[int]:
    """Ids of `UNSAMPLED_TOKENS`."""
    return [int(token) for token in tokenizer.convert_tokens_to_ids(list(UNSAMPLED_TOKENS))]


def drop_repeats(prompt_ids: Sequence[int], media_ids: Sequence[int]) -> list[int]:
    """The prompt with one placeholder for each clip, which vLLM expands itself.

    >>> drop_repeats([5, 9, 9, 9, 6, 9, 8, 8], media_ids=[8, 9])
    [5, 9, 6, 9, 8]
    """
    return [token for i, token in enumerate(prompt_ids) if not i or token != prompt_ids[i - 1] or token not in media_ids]


def register_actor() -> None:
    """Makes transformers' factory return `OmniActor` for Qwen2.5-Omni configs."""
    AutoModelForImageTextToText.register(Qwen2_5OmniConfig, OmniActor, exist_ok=True)
