"""A model without heads answers every row in words, and rows that it cannot be asked are counted."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from hba_ray.data.atlas import AtlasIndex, Drop, build_index
from hba_ray.data.feed.batches import BatchMaker
from hba_ray.data.feed.stream import make_here, unpacked
from hba_ray.data.predictions import SCHEMA
from hba_ray.data.prompts import load_reasoning
from hba_ray.data.tasks import DATASETS
from hba_ray.errors import CheckpointError, DataError
from hba_ray.evaluation.scores import score_predictions
from hba_ray.models.backbone import load_processor
from hba_ray.models.omni import decode
from hba_ray.predict.generate import Generator, generate_rows
from hba_ray.predict.jobs import GenerateJob
from hba_ray.specs import AtlasSpec
from tests.helpers.experiments import small_experiment


@pytest.fixture(scope="module")
def index(toy) -> AtlasIndex:
    return build_index(AtlasSpec(root=str(toy.parquet), limit=3), toy.parquet)


def job(index: AtlasIndex, model: Path | str, **changes: Any) -> GenerateJob:
    generation = {"engine": "transformers", "max_new_tokens": 6, **changes.pop("generation", {})}
    spec = small_experiment(Path("unused"), evaluate__generation=generation, **changes)
    return GenerateJob(spec, str(model), index)


def run(job: GenerateJob) -> tuple[dict[str, dict[str, Any]], list[Drop]]:
    """Records by sample, and drops."""
    records, drops = [], []
    for made, dropped in generate_rows(job):
        records, drops = records + made, drops + dropped
    by_sample = {record["sample_id"]: record for record in records}
    assert len(by_sample) == len(records)
    return by_sample, drops


@pytest.fixture(scope="module")
def greedy(index, tiny_backbone) -> dict[str, dict[str, Any]]:
    return run(job(index, tiny_backbone))[0]


def test_every_row_is_answered_and_scored(index, greedy):
    assert len(greedy) == len(index.rows_of("test"))
    for record in greedy.values():
        dataset = DATASETS[record["dataset"]]
        assert record["predicted"] is None or record["predicted"] in dataset.labels
        assert isinstance(record["response"], str) and record["answer"] == record["response"].strip()
        assert record["question"] and record["prompt_hash"]
    scores = score_predictions(pa.Table.from_pylist(list(greedy.values()), schema=SCHEMA), index.label_counts("train"))
    assert {score.dataset for score in scores.datasets} == {"toy_tone", "toy_nod", "toy_words", "toy_answers"}


def test_a_response_says_whether_it_ended_by_itself(index, tiny_backbone, greedy):
    """A random model writes no end mark within so few tokens, but where it is told that what it writes is one."""
    assert {record["cut"] for record in greedy.values()} == {True}
    asked = job(index, tiny_backbone)
    generator, maker = Generator(asked), BatchMaker(index, asked.settings, load_processor(str(tiny_backbone)), "test")
    batch = next(make_here(maker, asked.windows()))
    third = int(decode(generator.thinker, batch.inputs_on("cpu"), generator.decoding)[0][2])
    generator.decoding = replace(generator.decoding, eos_token_id=third)
    made = generator.predict(batch)
    assert not made[0]["cut"] and greedy[made[0]["sample_id"]]["response"].startswith(made[0]["response"])
    assert all(record["response"] == greedy[record["sample_id"]]["response"] for record in made if record["cut"])


def test_answers_do_not_depend_on_the_rows_beside_them(index, tiny_backbone, greedy):
    alone, _ = run(job(index, tiny_backbone, compute__micro_batch=1))
    assert {name: record["response"] for name, record in alone.items()} == {name: record["response"] for name, record in greedy.items()}


def test_sampling_follows_its_seed(index, tiny_backbone, greedy):
    def responses(seed: int) -> list[str]:
        made, _ = run(job(index, tiny_backbone, generation={"temperature": 1.0, "seed": seed}))
        return [made[name]["response"] for name in greedy]

    first = responses(0)
    assert first == responses(0)
    assert first != responses(1) and first != [record["response"] for record in greedy.values()]


def test_reasoning_prompts_are_asked_and_only_their_box_is_read(index, tiny_backbone, greedy):
    reasoning = replace(job(index, tiny_backbone), reasoning=load_reasoning("standard"), answer_from="boxed")
    made, _ = run(pickle.loads(pickle.dumps(reasoning)))
    for name, record in made.items():
        assert record["prompt_hash"] != greedy[name]["prompt_hash"] and record["question"] == greedy[name]["question"]
        assert record["answer"] is None and record["predicted"] is None
    facts = next(record for record in greedy.values() if record["dataset"] == "toy_tone")
    boxed = reasoning.record(facts, "<think>low voice</think> \\boxed{Sadness}", cut=False)
    assert (boxed["answer"], boxed["predicted"]) == ("Sadness", "sad")
    assert reasoning.record(facts, "\\boxed{calm}", cut=False)["predicted"] is None


def test_a_prompt_longer_than_the_context_is_a_bad_row(index, tiny_backbone):
    with pytest.raises(DataError, match=r"test row .* the prompt has \d+ tokens, and at most 63 fit"):
        run(job(index, tiny_backbone, generation={"context": 64}))
    made, drops = run(job(index, tiny_backbone, generation={"context": 64}, atlas__on_bad_row="drop"))
    assert drops and {drop.reason for drop in drops} == {"prompt too long"}
    assert len(made) + len(drops) == len(index.rows_of("test"))


def test_a_response_ends_where_the_context_does(index, tiny_backbone, greedy):
    whole, _ = run(job(index, tiny_backbone, generation={"context": 400, "max_new_tokens": 400}, compute__micro_batch=1))
    assert all(record["response"] for record in whole.values())


def test_a_model_that_is_not_there_is_refused(index, tmp_path: Path):
    with pytest.raises(CheckpointError, match="no such folder"):
        run(job(index, tmp_path / "nowhere"))


def test_an_error_that_an_actor_hands_on_is_raised_by_the_driver():
    made = [([{"row": 1}], []), CheckpointError("model", "has no chat template")]
    batches = [pa.table({"answers": [pickle.dumps(one)]}) for one in made]
    dataset: Any = SimpleNamespace(iter_batches=lambda **_: iter(batches))
    rows = unpacked(dataset, "answers")
    assert next(rows) == ([{"row": 1}], [])
    with pytest.raises(CheckpointError, match="has no chat template"):
        next(rows)


def test_a_response_is_read_by_the_rule_of_the_spec_and_by_the_other():
    asked = {"dataset": "meld_emotion", "sample_id": "one"}

    def read(response: str, **changes: Any) -> tuple[str | None, str | None]:
        spec = small_experiment(Path("unused"), **changes)
        record = GenerateJob(spec, "model", SimpleNamespace(split_surprise=False)).record(asked, response, cut=False)
        return record["predicted"], record["otherwise"]

    assert read("**Joy.**") == ("happy", None)
    assert read("**Joy.**", evaluate__matching="exact") == (None, "happy")
    assert read("HAPPY", evaluate__matching="exact") == ("happy", "happy")
