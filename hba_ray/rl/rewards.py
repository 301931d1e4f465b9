"""What a response earns: r = accuracy + 0.2 format + 0.5 similarity (paper equation 5), every part by its name.

`score_responses` is a pure function of the responses, their targets and `grpo.reward`. verl calls `compute_score`
for one response at a time; the parts that it returns reach verl's log and the table of responses.

Similarity is the cosine between sentence embeddings of answer and target. A process loads one encoder, which
needs no network and keeps the embeddings that were used last.

Letters: N texts, D width of an embedding (384 for all-MiniLM-L6-v2).
"""

from __future__ import annotations

import importlib.util
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from hba_ray.data.prompts import boxed, close_up_signs, plain_text, read_answer
from hba_ray.data.tasks import find_dataset
from hba_ray.errors import EnvironmentMissing
from hba_ray.specs.sections.grpo import EncoderSpec, RewardSpec

HARPO_WEIGHTS = (0.8, 0.2)
"""Weights of the answer and of the format (human_behaviour_harpo.py)."""
HARPO_LONGEST, HARPO_MARGIN, HARPO_PENALTY = 812, 128, 0.75
"""Limit of a response's length in characters, characters before the limit over which the penalty grows, and the penalty's
weight. The released code means tokens, but is given no lengths and falls back to characters."""
KEPT_TEXTS = 20_000
"""Embeddings that an encoder keeps, those used last; about 30 MB."""
LONGEST_TEXT = 8192
"""Characters of a text that are encoded; the encoder itself reads 256 tokens."""
DECIMALS = 6
"""Decimals of a similarity. Embeddings differ in the seventh with the texts that they are encoded with, and responses
that say the same must earn the same."""
_BATCH = 16
"""Texts of about one length that are encoded together; in larger batches short ones wait for long ones."""
_loading = Lock()

Parts = dict[str, float]
"""The reward `score` and the parts that it is made of: `acc`, `format`, and `similarity` and `overlong` where the spec has them.
All responses of a run have the same names."""


@dataclass(frozen=True)
class Response:
    """A response of the model, and the answer that it should give.

    Attributes:
        dataset: id of the row's dataset.
        target: the row's answer as free text.
    """

    dataset: str
    text: str
    target: str


def score_responses(responses: Sequence[Response], spec: RewardSpec, encoder: Encoder | None = None) -> list[Parts]:
    """The parts of each response's reward.

    Args:
        encoder: compares answers with targets; by default that of this process, loaded only where similarity is part of the reward.

    Raises:
        DataError: a dataset is unknown.
        EnvironmentMissing: the encoder is not installed.
    """
    answers = [_answer(response.text, spec) for response in responses]
    open_rows = [find_dataset(response.dataset, where="reward").task.is_open for response in responses]
    compared = [
        answer is not None and spec.needs_encoder and (is_open or spec.formula == "paper")
        for answer, is_open in zip(answers, open_rows, strict=True)
    ]
    pairs = [
        (plain_text(answer or ""), plain_text(response.target))
        for answer, response, wanted in zip(answers, responses, compared, strict=True)
        if wanted
    ]
    found = iter((encoder or shared_encoder(spec.encoder)).similarities(pairs) if pairs else ())
    cosines = [next(found) if wanted else None for wanted in compared]
    return [
        _parts(response, answer, cosine, is_open, spec)
        for response, answer, cosine, is_open in zip(responses, answers, cosines, open_rows, strict=True)
    ]


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, *, reward: Any = None, **_: Any) -> Parts:
    """The parts of one response's reward, by the names and arguments that verl calls with.

    Args:
        data_source: id of the row's dataset.
        solution_str: the decoded response.
        ground_truth: the row's answer.
        extra_info: what else verl knows of the row; not used.
        reward: `grpo.reward` as a mapping; None takes the defaults of the spec.
    """
    return score_responses([Response(data_source, solution_str, ground_truth)], _spec(reward))[0]


def format_score(text: str, rule: str) -> float:
    r"""Whether the response has the form that the prompt asks for: 0, 0.5 or 1.

    Args:
        rule: `split` pays half a point for a thought, <think>...</think>, and half for a box, neither of them
            empty (appendix B.2). `all_or_nothing` pays one point where the text begins with a thought and a box
            follows, empty or not (human_behaviour.py).

    >>> format_score(r"<think>So.</think> happy", "split")
    0.5
    """
    if rule == "split":
        return 0.5 * _has_thought(text) + 0.5 * bool(boxed(text))
    return float(_is_thought_then_box(close_up_signs(text)))


def overlong_penalty(length: int) -> float:
    """HARPO's penalty of a long response: 0 up to 684 characters, then falling to -1 at 812.

    >>> [overlong_penalty(length) for length in (684, 748, 812, 10_000)]
    [0.0, -0.5, -1.0, -1.0]
    """
    over = length - (HARPO_LONGEST - HARPO_MARGIN)
    return -min(1.0, over / HARPO_MARGIN) if over > 0 else 0.0


def _answer(text: str, spec: RewardSpec) -> str | None:
    """The answer in a response, or None; an empty box is no answer."""
    answer = read_answer(text, spec.answer_from)
    return None if spec.answer_from == "boxed" and not answer else answer


def _parts(response: Response, answer: str | None, cosine: float | None, is_open: bool, spec: RewardSpec) -> Parts:
    parts: Parts = {
        "acc": float(answer is not None and plain_text(answer) == plain_text(response.target)),
        "format": format_score(response.text, spec.format_rule),
    }
    reward = _harpo_reward if spec.formula == "harpo" else _paper_reward
    return reward(parts, response, cosine, is_open, spec)


def _paper_reward(parts: Parts, response: Response, cosine: float | None, is_open: bool, spec: RewardSpec) -> Parts:
    score = spec.accuracy_weight * parts["acc"] + spec.format_weight * parts["format"]
    if spec.needs_encoder:
        similarity = 0.0 if cosine is None else cosine if spec.similarity_range == "cosine" else max(0.0, cosine)
        parts |= {"similarity": similarity}
        score += spec.similarity_weight * similarity
    return {"score": score, **parts}


def _harpo_reward(parts: Parts, response: Response, cosine: float | None, is_open: bool, spec: RewardSpec) -> Parts:
    similarity = 0.0 if cosine is None else (cosine + 1) / 2
    overlong = overlong_penalty(len(response.text))
    of_answer, of_format = HARPO_WEIGHTS
    score = of_answer * (similarity if is_open else parts["acc"]) + of_format * parts["format"] + HARPO_PENALTY * overlong
    return {"score": score, **parts, "similarity": similarity, "overlong": overlong}


def _has_thought(text: str) -> bool:
    start = text.find("<think>")
    end = text.find("</think>", start) if start >= 0 else -1
    return end >= 0 and bool(text[start + len("<think>") : end].strip())


def _is_thought_then_box(text: str) -> bool:
    if not text.startswith("<think>"):
        return False
    thought = text.find("</think>", len("<think>"))
    box = text.find("\\boxed{", thought) if thought >= 0 else -1
    return box >= 0 and text.find("}", box) >= 0


def _spec(reward: Any) -> RewardSpec:
    if isinstance(reward, RewardSpec):
        return reward
    from omegaconf import OmegaConf

    return RewardSpec.model_validate(OmegaConf.to_container(reward) if OmegaConf.is_config(reward) else reward or {})


class Encoder:
    """A sentence-transformers model on the CPU that encodes each text once. Threads may share it.

    Args:
        folder: a sentence-transformers model.
    """

    def __init__(self, folder: Path):
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._using = Lock()

    def similarities(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """The cosine of each pair's embeddings, in -1..1; texts that are new are encoded in one batch.

        Equal texts have 1 and are not encoded.
        """
        other = [pair for pair in pairs if pair[0] != pair[1]]
        first_ND, second_ND = np.split(self.embed([text for pair in zip(*other, strict=True) for text in pair]), 2)
        cosines = iter(np.clip(np.einsum("nd,nd->n", first_ND, second_ND), -1, 1))
        return [1.0 if first == second else round(float(next(cosines)), DECIMALS) for first, second in pairs]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of length 1, shape (N, D), float32."""
        cut = [text[:LONGEST_TEXT].encode(errors="replace").decode() for text in texts]  # no lone surrogates
        with self._using:
            new = [text for text in dict.fromkeys(cut) if text not in self._kept]
            if new:
                vectors = self._model.encode(new, batch_size=_BATCH, normalize_embeddings=True, show_progress_bar=False)
                self._kept.update(zip(new, np.asarray(vectors, dtype=np.float32), strict=True))
            for text in cut:
                self._kept.move_to_end(text)
            found_ND = np.stack([self._kept[text] for text in cut]) if cut else np.empty((0, 0), dtype=np.float32)
            while len(self._kept) > KEPT_TEXTS:
                self._kept.popitem(last=False)
        return found_ND


def shared_encoder(spec: EncoderSpec) -> Encoder:
    """The encoder of this process, loaded at the first call.

    Raises:
        EnvironmentMissing: neither the package nor the folder is there, or sentence-transformers is not installed.
    """
    with _loading:
        return _loaded(encoder_folder(spec))


def encoder_folder(spec: EncoderSpec) -> Path:
    """The folder of the encoder's model on this machine.

    Raises:
        EnvironmentMissing: the package or the folder is not there.
    """
    if spec.path is not None:
        folder, where = Path(spec.path), "grpo.reward.encoder.path"
    else:
        where = "grpo.reward.encoder.package"
        found = importlib.util.find_spec(spec.package)
        if found is None or not found.submodule_search_locations:
            raise EnvironmentMissing(
                where,
                f"no package '{spec.package}' is installed",
                "install the extra rl-cpu or rl-gpu, or give grpo.reward.encoder.path=FOLDER",
            )
        folder = Path(found.submodule_search_locations[0]) / "model"
    if not (folder / "modules.json").is_file():
        raise EnvironmentMissing(
            where, f"{folder} is no sentence-transformers model", "it lacks modules.json; give a folder with all its files"
        )
    return folder


@cache
def _loaded(folder: Path) -> Encoder:
    if importlib.util.find_spec("sentence_transformers") is None:
        raise EnvironmentMissing("grpo.reward", "sentence-transformers is not installed", "install the extra rl-cpu or rl-gpu")
    return Encoder(folder)
