"""Several corpora in one spec: their rows are one atlas, and those outside the benchmark are trained on only where the spec says so."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hba_ray.data.atlas import read_rows
from hba_ray.data.feed.order import plan_epoch
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS
from hba_ray.errors import SpecError
from hba_ray.runs.plan import plan
from hba_ray.specs import ExperimentSpec, load_spec
from hba_ray.steps.base import Context, Step
from hba_ray.steps.inputs.atlas import AtlasSteps
from hba_ray.steps.run import do_step
from hba_ray.steps.stages.grpo import asked_rows
from hba_ray.store.folders import Storage
from hba_ray.training.sft import SftJob
from tests.convert.conftest import write_meld, write_mustard
from tests.helpers.fourteen import write_fourteen

EXPERIMENTS = Path(__file__).parents[3] / "experiments"


def write_released(folder: Path) -> Path:
    """Rows of IEMOCAP and of two datasets of the benchmark, each in two splits, some with a sound beside them."""
    (folder / "media").mkdir(parents=True)
    for split in ("train", "test"):
        rows: list[dict[str, Any]] = [
            {"problem": f"Feels? {split} {place}", "answer": label, "dataset": dataset, "audios": []}
            for dataset in ("iemocap", "tess")
            for place, label in enumerate(("anger", "sad", "happy"))
        ]
        rows += [{"problem": f"Why? {split}", "answer": "To wave.", "dataset": "siq2", "audios": [f"media/{split}.wav"]}]
        (folder / "media" / f"{split}.wav").write_bytes(b"RIFF" + split.encode())
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    root = tmp_path_factory.mktemp("corpora")
    for name in ("meld", "mustard"):
        (root / name).mkdir()
    return [
        {"source": "meld", "root": str(write_meld(root / "meld")), "datasets": ["MELD (EMO)"]},
        {"source": "mustard", "root": str(write_mustard(root / "mustard"))},
        {"source": "released", "root": str(write_released(root / "released"))},
    ]


def experiment(storage: Path, sources: list[dict[str, Any]], file: Path | None = None, **atlas: Any) -> ExperimentSpec:
    spec = load_spec(file or EXPERIMENTS / "paper" / "T4_multitask.yaml", ["atlas.root=unused"])
    section = {"sources": sources, "on_bad_row": "drop", **atlas}
    return spec.model_validate({**spec.model_dump(), "atlas": section, "compute": {"storage": str(storage), "workers": 0}})


def made(spec: ExperimentSpec) -> tuple[Context, Step]:
    """A context in which the atlas is made, and its step."""
    (step,) = [
        step for step in plan(spec.model_copy(update={"stages": ("sft",)}), Storage(spec.compute.storage)).steps if step.name == "atlas"
    ]
    do_step(Context(spec, step, {}), lambda line: None)
    return Context(spec, step, {"atlas": step}), step


def datasets_in(context: Context, split: str) -> set[str]:
    index = context.index
    return {index.dataset_of(line) for line in index.rows_of(split)}


def test_joined_rows_are_those_of_each_corpus_and_are_found_when_the_storage_moves(corpora, tmp_path: Path):
    spec = experiment(tmp_path / "old", corpora)
    context, step = made(spec)
    index = context.whole_index
    assert {name: sum(splits.values()) for name, splits in index.counts().items()} == {
        "meld_emotion": 8, "mmsd": 12, "iemocap": 6, "tess": 6, "siq2": 2,
    }  # fmt: skip
    rows = [row for row in read_rows(index, range(len(index.table))) if isinstance(row, Row)]
    assert len(rows) == 34
    assert {row.media["audio"][0].read_bytes() for row in rows if row.dataset.id == "siq2"} == {b"RIFFtrain", b"RIFFtest"}
    cards = AtlasSteps().said(step.folder).cards
    assert [card["source"] for card in cards] == ["meld", "mustard"]
    assert {count["dataset"] for count in cards[0]["counts"]} == {"meld_emotion"}
    shutil.move(tmp_path / "old", tmp_path / "new")
    moved, again = made(experiment(tmp_path / "new", corpora))
    assert again.fingerprint == step.fingerprint and moved.whole_index.table.equals(index.table)
    assert all(Path(shard.path).is_file() for shard in moved.whole_index.shards)


def test_each_corpus_enters_the_name_of_the_joined_atlas_and_a_single_source_does_not_change_its(corpora, tmp_path: Path):
    names = {made(experiment(tmp_path, chosen))[1].fingerprint for chosen in (corpora, corpora[:2], corpora[1:], corpora[:1])}
    assert len(names) == 4


def test_the_words_of_prompts_enter_the_name_and_where_their_file_lies_does_not(corpora, tmp_path: Path):
    def named(**atlas: str) -> str:
        spec = experiment(tmp_path / "runs", corpora, **atlas).model_copy(update={"stages": ("sft",)})
        return next(step.fingerprint for step in plan(spec, Storage(spec.compute.storage)).steps if step.name == "atlas")

    for name, words in (("a", "Sarcastic?"), ("b", "Sarcastic?"), ("c", "Meant so?")):
        (tmp_path / name).write_text(f"prompts: {{mmsd: '{{given}}. {words} {{labels}}'}}")
    ours, first, moved, other = named(), *(named(prompts=str(tmp_path / name)) for name in "abc")
    assert first == moved and len({ours, first, other}) == 3 and named(prompts="standard") == ours
    (tmp_path / "a").write_text("prompts: {mmsd: '{given}'}")
    with pytest.raises(SpecError, match=r"atlas\.prompts=.*needs given and labels"):
        named(prompts=str(tmp_path / "a"))


def test_no_batch_of_table_4_holds_a_row_of_iemocap_unless_the_spec_says_so(corpora, tmp_path: Path):
    spec = experiment(tmp_path, corpora)
    context, step = made(spec)
    assert "iemocap" in context.whole_index.counts() and "train" in context.whole_index.counts()["iemocap"]
    job = SftJob(spec, "backbone", context.index, "log")
    batched = {job.index.dataset_of(line) for window in plan_epoch(job.index, job.order(0, 1)) for line in window.lines}
    assert batched == {"meld_emotion", "mmsd", "tess", "siq2"}
    rollouts = asked_rows(spec, context.index)
    assert {rollouts.dataset_of(line) for line in rollouts.rows_of("train")} == batched
    assert "iemocap" in datasets_in(context, "test") and "iemocap" not in datasets_in(context, "validation")
    assert any(
        note == "Outside the benchmark, and not trained on since atlas.train_also does not name them: iemocap."
        for note in AtlasSteps().notes(spec, AtlasSteps().said(step.folder))
    )
    asked, other = made(experiment(tmp_path, corpora, train_also=["iemocap"]))
    assert "iemocap" in datasets_in(asked, "train") and other.fingerprint != step.fingerprint


def test_all_datasets_of_the_fourteen_corpora_are_in_the_batches_of_table_4_but_for_iemocap(tmp_path: Path):
    pytest.importorskip("h5py")
    spec = experiment(tmp_path, write_fourteen(tmp_path / "public"))
    context, _ = made(spec)
    job = SftJob(spec, "backbone", context.index, "log")
    batched = {job.index.dataset_of(line) for window in plan_epoch(job.index, job.order(0, 1)) for line in window.lines}
    assert batched == {dataset.id for dataset in DATASETS.values() if dataset.is_benchmark}
    assert datasets_in(context, "test") == {*batched, "iemocap"} and "iemocap" not in datasets_in(context, "validation")


def test_a_spec_can_train_on_meld_and_transfer_to_mustard(corpora, tmp_path: Path):
    spec = experiment(tmp_path, corpora[:2], held_out=["MUStARD"]).model_copy(update={"stages": ("sft", "transfer")})
    context, _ = made(spec)
    assert datasets_in(context, "train") == {"meld_emotion"} and datasets_in(context, "test") == {"meld_emotion", "mmsd"}
    assert "transfer mmsd" in [step.name for step in plan(spec, Storage(str(tmp_path))).steps]
    assert len(context.whole_index.only("mmsd").rows_of("train"))


@pytest.mark.parametrize(
    ("atlas", "said"),
    [
        ({"root": "x", "sources": [{"source": "toy"}]}, "or clear them"),
        ({"sources": [{"source": "meld"}]}, "root is missing"),
        ({"sources": [{"source": "toy"}], "held_out": ["iemocap"], "train_also": ["iemocap"]}, "in held_out and in train_also"),
    ],
)
def test_sources_that_say_two_things_are_refused(atlas, said, tmp_path: Path):
    file = tmp_path / "spec.yaml"
    file.write_text(json.dumps({"name": "x", "atlas": atlas}))
    with pytest.raises(SpecError, match=said):
        load_spec(file)
