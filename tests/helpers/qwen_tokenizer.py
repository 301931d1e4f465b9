"""The tokenizer of Qwen2.5-Omni, made of the ranks that the public package `dashscope` carries: the vocabulary that Qwen2.5 kept.

`make` installs the package without what it depends on, since only its file is read. The special tokens are those of the released
tokenizer, which follow the 151,643 ranks.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiktoken
from tiktoken.load import load_tiktoken_bpe
from transformers import Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from hba_ray.models.layout import SPECIAL_TOKENS, qwen2_tokenizer

LATER_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
"""What Qwen2.5 added behind the special tokens; the tokenizer's only tokens with sharp brackets that are not special."""
_PATTERN = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""


def ranks_file() -> Path:
    """The file of ranks; skips the test where the package is not installed."""
    package = find_spec("dashscope")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the package dashscope, which carries the ranks of Qwen's tokenizer, is not installed: run `make .venv`")
    return Path(package.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"


@lru_cache(maxsize=1)
def qwen_encoding(file: Path) -> tiktoken.Encoding:
    """The ranks as their own library reads them, without special tokens."""
    return tiktoken.Encoding("qwen", pat_str=_PATTERN, mergeable_ranks=load_tiktoken_bpe(str(file)), special_tokens={})


@lru_cache(maxsize=1)
def qwen_tokenizer(file: Path) -> Qwen2Tokenizer:
    """The tokenizer, as transformers loads the released one."""
    vocabulary, merges = TikTokenConverter().extract_vocab_merges_from_model(str(file))
    vocabulary |= {token: len(vocabulary) + place for place, token in enumerate((*SPECIAL_TOKENS, *LATER_TOKENS))}
    tokenizer = qwen2_tokenizer(vocabulary, merges)
    tokenizer.add_tokens(list(LATER_TOKENS))
    return tokenizer
