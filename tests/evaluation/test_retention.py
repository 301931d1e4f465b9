"""How answers are written: perplexity against transformers' own loss and by hand, ratings by a judge."""

from __future__ import annotations

import io
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from hba_ray.errors import DataError
from hba_ray.evaluation.retention import AnswerQuality, backbone_log_losses, log_losses, mean_rating, perplexity, rate_answers, read_ratings
from hba_ray.judge.grade import JudgeItem
from hba_ray.progress import Bar
from tests.helpers.stub_judge import KEY, KEY_ENV, StubJudge


def bar() -> Bar:
    return Bar("test", None, Console(file=io.StringIO()))


class Uniform(torch.nn.Module):
    """Gives every token of its vocabulary the same chance."""

    def __init__(self, size: int):
        super().__init__()
        self.weight, self.size = torch.nn.Parameter(torch.zeros(1)), size

    def forward(self, input_ids, attention_mask, use_cache):
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, self.size))


class Letters:
    bos_token_id, eos_token_id = None, 0

    def __call__(self, text, add_special_tokens):
        return SimpleNamespace(input_ids=[1 + ord(letter) % 7 for letter in text])


def written(losses: list[tuple[float, int]]) -> list[AnswerQuality]:
    return [AnswerQuality(str(place), "mimeqa", f"clip-{place}", loss, tokens) for place, (loss, tokens) in enumerate(losses)]


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary():
    losses = log_losses(["abc", "", "de"], Uniform(50), Letters(), bar())
    assert [tokens for _, tokens in losses] == [3, 0, 2]
    found = perplexity(written(losses))
    assert [found.value, found.low, found.high] == pytest.approx([50] * 3)


def test_a_control_token_in_an_answer_counts_as_the_text_that_it_is():
    assert log_losses(["<|im_end|>"], Uniform(50), Letters(), bar())[0][1] == len("< |im_end|>")


def test_answers_are_pooled_by_token_and_nothing_has_no_perplexity():
    assert perplexity(written([(3.0, 1), (1.0, 3)])).value == pytest.approx(math.e)
    assert perplexity(written([(0.0, 0)])).value is None and perplexity([]).value is None


def test_the_interval_resamples_clips_and_not_answers():
    rng = np.random.default_rng(0)
    losses = [(float(loss) * 10, 10) for loss in rng.normal(2, 0.5, size=60)]
    apart = [AnswerQuality(str(place), "mimeqa", str(place), *one, fluency=1 + place % 5) for place, one in enumerate(losses)]
    together = [
        AnswerQuality(f"{place}-{copy}", "mimeqa", str(place), *one, fluency=1 + place % 5)
        for place, one in enumerate(losses)
        for copy in "abc"
    ]
    for of in (perplexity, lambda rows: mean_rating(rows, "fluency")):
        one, three = of(apart), of(together)
        assert one.low < one.value < one.high and three.clips == 60
        assert (three.value, three.low, three.high) == pytest.approx((one.value, one.low, one.high)), (
            "copies of a clip's rows tell nothing new"
        )
    spread = np.std([loss / 10 for loss, _ in losses], ddof=1) / 60**0.5
    found = perplexity(apart)
    assert math.log(found.high / found.low) == pytest.approx(2 * 1.96 * spread, rel=0.1), "the textbook's interval of a mean"


def test_answers_that_no_judge_rated_have_no_mean_rating():
    assert mean_rating(written([(1.0, 2)]), "fluency").value is None


def test_the_loss_is_that_of_transformers(tiny_backbone: Path):
    from hba_ray.models.backbone import load_backbone, load_processor

    text = "what does the person feel"
    ((loss, tokens),) = backbone_log_losses([text], str(tiny_backbone), gpu=False, bar=bar())
    tokenizer = load_processor(str(tiny_backbone)).tokenizer
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    ids = torch.tensor([[start, *tokenizer(text, add_special_tokens=False).input_ids]])
    model = load_backbone(str(tiny_backbone), dtype=torch.float32)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
    assert tokens == ids.shape[1] - 1
    assert loss / tokens == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.slow
def test_a_pretrained_model_finds_answers_likelier_than_their_words_in_another_order(small_backbone: Path):
    answers = [
        "She smiles because her brother has finally come home.",
        "He is angry that nobody listened to him at the meeting.",
        "They look at each other and start to laugh.",
        "The boy hides behind the door since he is afraid of the dog.",
    ]
    upset = [" ".join(np.random.default_rng(0).permutation(answer.split())) for answer in answers]
    losses = backbone_log_losses([*answers, *upset], str(small_backbone), gpu=False, bar=bar())
    as_written, as_upset = perplexity(written(losses[:4])), perplexity(written(losses[4:]))
    assert 2 < as_written.value < 200
    assert as_upset.low > 2 * as_written.high


@pytest.mark.parametrize(
    "reply",
    [
        '{"fluency": 3, "coherence": 4, "relevance": 5}',
        "<think>relevance: 1</think>fluency: 3\ncoherence: 4\nrelevance: 5",
        "- **Fluency**: 3\n- **Coherence**: 4\n- **Relevance**: 5",
    ],
)
def test_ratings_are_read_from_json_and_from_lines(reply: str):
    assert read_ratings(reply) == {"fluency": 3, "coherence": 4, "relevance": 5}


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "5",
        "good",
        '{"fluency": 3}',
        '{"fluency": 6, "coherence": 4, "relevance": 5}',
        '{"fluency": true, "coherence": 4, "relevance": 5}',
    ],
)
def test_what_is_no_rating_is_never_guessed(reply: str):
    with pytest.raises(DataError):
        read_ratings(reply)


@pytest.mark.parametrize("schema", [True, False])
def test_a_judge_rates_every_answer_once_and_what_it_does_not_say_is_missing(schema: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(KEY_ENV, KEY)
    items = [
        JudgeItem(str(place), "toy_answers", "What?", answer, "-") for place, answer in enumerate(["right", "wrong", "mumble", "right"])
    ]
    with StubJudge(failures=0.1, schema=schema) as stub:
        spec = stub.spec(retries=12)
        ratings = rate_answers(items, spec, tmp_path, bar())
        asked = len(stub.log())
        assert rate_answers(items, spec, tmp_path, bar()) == ratings and len(stub.log()) == asked
        assert sum(stub.graded().values()) == 3
    assert [rated and rated["relevance"] for rated in ratings] == [5, 2, None, 5]
