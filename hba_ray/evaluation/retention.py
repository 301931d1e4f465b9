"""How well a fine-tuned model still writes: perplexity of its open answers, and a judge's ratings of them (paper appendix D.9, Table 17).

The paper does not say what its perplexity is conditioned on. Here an answer is read alone, without its
prompt, by the backbone before training; the numbers of all answers are pooled by token.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from hba_ray.data.text import break_tokens
from hba_ray.errors import DataError
from hba_ray.evaluation.statistics import Interval, ratio_interval
from hba_ray.judge.cache import Grade, GradeCache, open_cache
from hba_ray.judge.client import Endpoint, ask_all
from hba_ray.judge.grade import WAIT_SECONDS, JudgeItem, run_coroutine
from hba_ray.judge.prompts import ReplyFormat, stated_object
from hba_ray.judge.replies import Reply
from hba_ray.progress import Bar
from hba_ray.specs.base import fingerprint
from hba_ray.specs.sections.evaluate import JudgeSpec

if TYPE_CHECKING:
    from torch import nn

DIMENSIONS = ("fluency", "coherence", "relevance")
LOWEST, HIGHEST = 1, 5
RATING_SCHEMA: dict[str, Any] = {
    "name": "ratings",
    "strict": True,
    "schema": {
        "type": "object",
        "properties": {name: {"type": "integer", "enum": list(range(LOWEST, HIGHEST + 1))} for name in DIMENSIONS},
        "required": list(DIMENSIONS),
        "additionalProperties": False,
    },
}
RUBRIC = """You rate how an answer to an open question is written, on three scales from 1, the worst, to 5, the best.
- fluency: from 1, broken grammar that is hard to make out, over 3, readable with a few slips, to 5, smooth and natural throughout.
- coherence: from 1, disjointed or at odds with itself, over 3, mostly clear, to 5, clear and of one piece.
- relevance: from 1, beside the question, over 3, on its topic but vague or incomplete, to 5, straight to what was asked.
A short answer is as good as a long one, and taste in style does not count. Whether the answer is true is graded elsewhere: ignore it,
unless it is plain nonsense. Ignore thoughts between think tags, and questions that the answer asks in return."""
REPLY: dict[ReplyFormat, str] = {
    "schema": 'Reply with one JSON object and nothing else, with the integers "fluency", "coherence" and "relevance".',
    "text": "Reply with three lines and nothing else: fluency: N, coherence: N, relevance: N.",
}
USER = "Question: {question}\n\nAnswer: {answer}"
_LINE = re.compile(r"^\W*(fluency|coherence|relevance)\W+([1-5])\b\W*$", re.IGNORECASE)


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class AnswerQuality:
    """How one open answer is written.

    Attributes:
        clip_id: the recording that it is about; a row without one is its own.
        log_loss: negative log-likelihood of its tokens under the backbone, summed, in nats.
        tokens: number of tokens that `log_loss` is a sum over; 0 for an empty answer.
        fluency, coherence, relevance: 1 to 5; None where no judge was asked or its reply is unreadable.
    """

    sample_id: str
    dataset: str
    clip_id: str
    log_loss: float
    tokens: int
    fluency: int | None = None
    coherence: int | None = None
    relevance: int | None = None


def log_losses(texts: Sequence[str], model: nn.Module, tokenizer: Any, bar: Bar) -> list[tuple[float, int]]:
    """(summed negative log-likelihood in nats, tokens) of each text, read alone after an end-of-text token.

    Args:
        model: a causal language model, or an Omni thinker, which is given text only.
    """
    import torch
    from torch.nn import functional

    device = next(model.parameters()).device
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    found = []
    for text in texts:
        ids = tokenizer(break_tokens(text), add_special_tokens=False).input_ids if text else []
        if ids:
            ids_1S = torch.tensor([[start, *ids]], device=device)
            with torch.no_grad():
                output = cast(Any, model)(input_ids=ids_1S, attention_mask=torch.ones_like(ids_1S), use_cache=False)
            loss = functional.cross_entropy(output.logits[0, :-1].float(), ids_1S[0, 1:], reduction="sum")
            found.append((float(loss), len(ids)))
        else:
            found.append((0.0, 0))
        bar.advance()
    return found


def backbone_log_losses(texts: Sequence[str], backbone: str, *, gpu: bool, bar: Bar) -> list[tuple[float, int]]:
    """`log_losses` under a backbone as it was before training; loads it.

    Raises:
        CheckpointError: as `load_backbone`.
    """
    import torch

    from hba_ray.models.backbone import load_backbone, load_processor

    thinker = load_backbone(backbone, dtype=torch.bfloat16 if gpu else torch.float32)
    return log_losses(texts, cast(Any, thinker).to("cuda") if gpu else thinker, load_processor(backbone).tokenizer, bar)


def perplexity(rows: Sequence[AnswerQuality]) -> Interval:
    """exp of the mean loss a token, over all answers, with its interval from resampling whole clips; all None without tokens."""
    loss = ratio_interval([row.log_loss for row in rows], [row.tokens for row in rows], [row.clip_id for row in rows])
    value, low, high = (None if one is None else math.exp(one) for one in (loss.value, loss.low, loss.high))
    error = None if value is None or loss.standard_error is None else value * loss.standard_error  # delta method for exp
    return replace(loss, value=value, low=low, high=high, standard_error=error)


def mean_rating(rows: Sequence[AnswerQuality], dimension: str) -> Interval:
    """The mean of the readable ratings, 1 to 5, with its interval from resampling whole clips; all None where there are none.

    Args:
        dimension: one of `DIMENSIONS`.
    """
    rated = [(getattr(row, dimension), row.clip_id) for row in rows if getattr(row, dimension) is not None]
    return ratio_interval([rating for rating, _ in rated], [1] * len(rated), [clip for _, clip in rated])


def rate_answers(items: Sequence[JudgeItem], spec: JudgeSpec, cache: Path, bar: Bar) -> list[dict[str, int] | None]:
    """A judge's ratings of each answer, by dimension; None where its reply is unreadable. Equal answers are asked about once.

    Raises:
        EnvironmentMissing: as `judge_items`.
    """
    identity = {**spec.identity(), "prompts": [RUBRIC, REPLY, USER], "asks": "ratings"}
    keys = [hashlib.sha256(json.dumps([fingerprint(identity), item.question, item.answer]).encode()).hexdigest() for item in items]
    waits = partial(bar.show, waiting="for another run of this judge")
    with open_cache(cache, fingerprint(identity), wait_seconds=WAIT_SECONDS, on_wait=waits) as known:
        missing = {key: item for key, item in zip(keys, items, strict=True) if key not in known}
        bar.advance(len(items) - len(missing))
        if missing:
            run_coroutine(_rate(missing, spec, known, bar))
        return [_ratings_or_none(known[key].reply) if key in known else None for key in keys]


async def _rate(missing: dict[str, JudgeItem], spec: JudgeSpec, known: GradeCache, bar: Bar) -> None:
    async with Endpoint(spec, RATING_SCHEMA) as endpoint:
        await endpoint.probe()
        system = f"{RUBRIC}\n\n{REPLY[endpoint.dialect.reply]}"
        turns = {key: (system, break_tokens(USER.format(question=item.question, answer=item.answer))) for key, item in missing.items()}
        await ask_all(endpoint, turns, _Ratings(missing, known, bar))


class _Ratings:
    """Puts replies into the cache. An answer without a reply counts as unreadable and is not cached, so that it is asked about again."""

    def __init__(self, items: dict[str, JudgeItem], known: GradeCache, bar: Bar):
        self.items, self.known, self.bar = items, known, bar

    def keep(self, key: str, reply: Reply) -> None:
        defect = "" if _ratings_or_none(reply.text) else "no ratings"
        item = {"question": self.items[key].question, "answer": self.items[key].answer}
        self.known.add(key, Grade(None, defect, reply.text, reply.served_by, reply.input_tokens, reply.output_tokens), item)
        self.bar.advance()

    def fail(self, key: str, what: str) -> None:
        self.bar.advance()

    def watch(self, state: str) -> None:
        self.bar.show(batch=state)


def read_ratings(reply: str) -> dict[str, int]:
    """The ratings that a reply states.

    >>> read_ratings('{"fluency": 4, "coherence": 5, "relevance": 1}')
    {'fluency': 4, 'coherence': 5, 'relevance': 1}

    Raises:
        DataError: it states not all three, or one that is no whole number from 1 to 5.
    """
    text = reply.rpartition("</think>")[2].strip()
    stated = stated_object(text)
    if not stated:
        found = [match.groups() for line in text.splitlines() if (match := _LINE.match(line))]
        stated = {name.lower(): int(rating) for name, rating in found} if len(found) == len(DIMENSIONS) else {}
    if not all(type(stated.get(name)) is int and LOWEST <= stated[name] <= HIGHEST for name in DIMENSIONS):
        raise DataError("judge", "the reply states no ratings", reason="no ratings")
    return {name: stated[name] for name in DIMENSIONS}


def _ratings_or_none(reply: str) -> dict[str, int] | None:
    try:
        return read_ratings(reply)
    except DataError:
        return None
