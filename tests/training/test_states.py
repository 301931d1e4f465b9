"""The backbone's states are computed once, are what the model gives, and are never taken for those of something else."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from ray.util import state

from hba_ray.cluster.session import ray_session
from hba_ray.data.atlas import AtlasIndex, read_rows
from hba_ray.data.predictions import ROW_COLUMNS
from hba_ray.errors import DataError
from hba_ray.models.bam import DecoderTail
from hba_ray.training import states
from hba_ray.training.bam_job import BamJob
from hba_ray.training.sources import stored_answers
from hba_ray.training.states import SCHEMA, StateExtractor, StatesJob, StateStore, compute_states, load_sft
from tests.helpers.bam_jobs import BamShop, make_shop


@pytest.fixture(scope="module")
def made(small_index, tiny_backbone, tmp_path_factory) -> tuple[BamShop, BamJob]:
    """Stores of the train split in both kinds, in fp32."""
    shop = make_shop(small_index, tiny_backbone, tmp_path_factory.mktemp("states"))
    job = shop.with_states(shop.job(), "train")
    return shop, shop.with_states(job, "train", open_answers=True)


def pooled_job(job: BamJob, split: str = "train") -> StatesJob:
    return job.states_job(split, open_answers=False)


def stored(job: StatesJob, folder: Path, dataset: str) -> dict[str, torch.Tensor]:
    store = StateStore.open(job, folder)
    table = store.read(dataset, (*ROW_COLUMNS, "states"))
    vectors = store.tensor(table.column("states").to_pylist(), 64)
    return dict(zip(table.column("sample_id").to_pylist(), vectors, strict=True))


def test_pooled_states_are_the_model_s(made):
    _, job = made
    wanted = pooled_job(job)
    model = load_sft(job.spec, job.backbone, job.model)
    kept = {name: h for dataset in ("toy_tone", "toy_nod", "toy_words") for name, h in stored(wanted, states_of(job), dataset).items()}
    maker = states.BatchMaker(wanted.rows, replace(wanted.settings, micro_batch=1), states.load_processor(job.backbone), "train")
    windows = states.plan_epoch(wanted.rows, states.Order("train", 64, 1, shuffle=False))
    seen = 0
    for batch in states.make_here(maker, windows):
        with torch.no_grad():
            h = model.pooled(batch.inputs_on("cpu"))[0]
        assert torch.allclose(kept[batch.rows[0]["sample_id"]], h, atol=1e-5)
        seen += 1
    assert seen == len(kept) == 15


def without(index: AtlasIndex, dataset: str) -> AtlasIndex:
    return replace(index, table=index.table.filter(pc.field("dataset") != dataset))


def states_of(job: BamJob, split: str = "train") -> Path:
    return job.states_folder(split, open_answers=False)


def test_open_answer_states_give_the_model_s_answer_loss(made):
    shop, job = made
    model = load_sft(job.spec, job.backbone, job.model)
    for injection in ("penultimate", "post_norm"):
        own = shop.with_states(shop.job(decoder_injection=injection), "train", open_answers=True)
        wanted = own.states_job("train", open_answers=True)
        store = StateStore.open(wanted, own.states_folder("train", open_answers=True))
        source = stored_answers(store, "toy_answers", DecoderTail(model), injection)
        rows = torch.arange(len(source.samples))
        with torch.no_grad():
            loss = source.loss_sum(source.load(rows), torch.zeros(len(rows), 64), None)
            maker = states.BatchMaker(wanted.rows, wanted.settings, states.load_processor(job.backbone), "train")
            windows = states.plan_epoch(wanted.rows, states.Order("train", 64, 4, shuffle=False))
            batches = list(states.make_here(maker, windows))
            whole = sum(
                model(batch.inputs_on("cpu"), batch.class_index, batch.task_slot, batch.answer_labels, batch.weight).answer_loss_sum
                for batch in batches
            )
        assert len(rows) == 5 and float(loss) == pytest.approx(float(whole), rel=1e-6)


def test_a_bf16_row_takes_at_most_8_kb_at_the_released_width(tmp_path):
    rows = 2000
    state = torch.randn(3584).to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
    record = {
        "clip_id": "0123456789abcdef",
        "dataset": "meld_emotion",
        "task": "EMO",
        "true": "surprise",
        "class_index": 14,
        "states": state,
    }
    records = [record | {"sample_id": f"meld_emotion-{i:016x}"} for i in range(rows)]
    tables = (pa.Table.from_pylist(records[i : i + 4], schema=SCHEMA) for i in range(0, rows, 4))
    states.write_part(tmp_path / "part.parquet", ((table, []) for table in tables), "pooled", lambda rows: None)
    assert (tmp_path / "part.parquet").stat().st_size / rows < 8000
    assert pq.read_metadata(tmp_path / "part.parquet").num_rows == rows


def test_bf16_states_are_the_rounded_ones(made):
    shop, job = made
    rounded = shop.with_folder(shop.folder / "bf16").job(cache_precision="bf16")
    shop.with_states(rounded, "train")
    exact, kept = (stored(pooled_job(one), states_of(one), "toy_words") for one in (job, rounded))
    assert exact.keys() == kept.keys()
    assert all(torch.equal(exact[name].to(torch.bfloat16), kept[name]) for name in exact)


def test_complete_states_are_not_computed_again(made, monkeypatch):
    _, job = made
    monkeypatch.setattr(states, "StateExtractor", None)
    assert compute_states(pooled_job(job), states_of(job)) == []


def test_a_break_costs_one_part_only(made, monkeypatch):
    shop, job = made
    monkeypatch.setattr(states, "_WINDOW_ROWS", 4)
    monkeypatch.setattr(states, "_PART_WINDOWS", 1)
    whole = shop.folder / "parts"
    compute_states(pooled_job(job), whole)
    broken, count = shop.folder / "broken", 0
    extract = StateExtractor.states

    def break_down(self, batch):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return extract(self, batch)

    monkeypatch.setattr(StateExtractor, "states", break_down)
    with pytest.raises(KeyboardInterrupt):
        compute_states(pooled_job(job), broken)
    with pytest.raises(DataError, match="holds only a part"):
        StateStore.open(pooled_job(job), broken)
    done = sorted(broken.glob("part-*.parquet"))
    times = [path.stat().st_mtime_ns for path in done]
    told: list[int] = []
    compute_states(pooled_job(job), broken, told.append)
    assert len(done) == 2 and times == [path.stat().st_mtime_ns for path in done] and sum(told) == 15 - 8
    one, other = (stored(pooled_job(job), folder, "toy_tone") for folder in (whole, broken))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda shop: shop.job({"atlas": {"media": {"audio_seconds": 2, "video_frames": 2, "video_pixels": 3136}}}), "media was"),
        (lambda shop: shop.job(raw_media=False), "modalities was"),
        (lambda shop: shop.job(cache_precision="bf16"), "stored was"),
        (lambda shop: shop.job({"model": {"train": "lora", "precision": "bf16", "lora": {"rank": 4}}}), "precision was"),
        (lambda shop: replace(shop.job(), model=str(make_shop(shop.index, shop.backbone, shop.folder, seed=2).model)), "checkpoint was"),
        (lambda shop: replace(shop.job(), index=without(shop.index, "toy_nod")), "rows was"),
    ],
    ids=["media budget", "modalities", "stored precision", "precision", "checkpoint", "rows"],
)
def test_states_of_something_else_are_refused_with_what_differs(made, change, named):
    shop, job = made
    other = pooled_job(change(shop))
    for use in (StateStore.open, compute_states):
        with pytest.raises(DataError, match=named) as refused:
            use(other, states_of(job))
        assert refused.value.reason == "stale states"


def test_each_row_s_states_are_those_of_its_own_transcript(made):
    _, job = made
    spoken = replace(job, index=replace(job.index, transcripts={line: f"words of {line}" for line in range(len(job.index.table))}))
    said = {row.sample_id: row.problem for row in read_rows(spoken.index, range(len(job.index.table)))}
    for kind in (False, True):
        rows = spoken.states_job("validation", open_answers=kind).rows
        assert all(row.problem == said[row.sample_id] for row in read_rows(rows, range(len(rows.table))))
    with pytest.raises(DataError, match="rows was"):
        StateStore.open(pooled_job(spoken), states_of(job))


def test_a_changed_prompt_is_noticed(made, tmp_path, monkeypatch):
    shop, job = made
    changed = tmp_path / "backbone"
    shutil.copytree(shop.backbone, changed)
    template = changed / "chat_template.jinja"
    template.write_text(template.read_text().replace("helpful", "kind"))
    with pytest.raises(DataError, match=r"checkpoint was .*prompt was"):
        StateStore.open(pooled_job(replace(job, backbone=str(changed))), states_of(job))
    states._prompt_of.cache_clear()
    monkeypatch.setattr(states, "chat_message", lambda row, wording: [{"role": "user", "content": row.problem}])
    with pytest.raises(DataError, match="something else: prompt was"):
        StateStore.open(pooled_job(job), states_of(job))
    states._prompt_of.cache_clear()


def test_damaged_states_are_refused(made, tmp_path):
    _, job = made
    with pytest.raises(DataError, match="is missing or damaged"):
        StateStore.open(pooled_job(job), tmp_path)
    (tmp_path / "states.json").write_text(json.dumps([1]))
    with pytest.raises(DataError, match="is missing or damaged"):
        compute_states(pooled_job(job), tmp_path)


def test_a_split_without_such_rows_has_an_empty_store(made, tmp_path):
    _, job = made
    empty = replace(job, index=replace(job.index, table=job.index.table.slice(0, 0)))
    assert compute_states(pooled_job(empty), tmp_path / "none") == []
    assert StateStore.open(pooled_job(empty), tmp_path / "none").parts == 0


def test_a_bad_clip_is_left_out_and_noted_where_the_spec_says_so(made, toy, tmp_path):
    from hba_ray.data.atlas import build_index
    from hba_ray.specs import AtlasSpec

    shop, _ = made
    atlas = tmp_path / "atlas"
    atlas.mkdir()
    source = next(toy.parquet.glob("train-*.parquet"))
    data = bytearray(source.read_bytes())
    place = data.find(b"RIFF")
    data[place : place + 4] = b"RAFF"
    (atlas / source.name).write_bytes(data)
    index = build_index(AtlasSpec(root=str(atlas)), atlas)
    job = replace(shop.job({"atlas": {"on_bad_row": "drop"}}), index=index)
    drops = compute_states(pooled_job(job), tmp_path / "store")
    assert len(drops) == 1 and drops[0].split == "train"
    assert compute_states(pooled_job(job), tmp_path / "store") == drops
    kept = sum(len(stored(pooled_job(job), tmp_path / "store", name)) for name in ("toy_tone", "toy_nod", "toy_words"))
    assert kept == pooled_job(job).rows.table.num_rows - 1
    with pytest.raises(DataError):
        compute_states(pooled_job(replace(shop.job(), index=index)), tmp_path / "strict")


@pytest.mark.ray
@pytest.mark.slow
def test_model_actors_on_ray_data_give_the_same_states_and_live_until_the_last_part(made, tmp_path, monkeypatch):
    shop, job = made
    on_ray = shop.with_folder(shop.folder / "ray").job({"compute": {"workers": 1}})
    with ray_session(on_ray.spec.compute, tmp_path / "logs"):
        shop.with_states(on_ray, "train", open_answers=True)
        actors = len(state.list_actors())
        monkeypatch.setattr(states, "_WINDOW_ROWS", 4)
        monkeypatch.setattr(states, "_PART_WINDOWS", 1)
        shop.with_states(on_ray, "train")
        loaded = [actor.class_name for actor in state.list_actors(limit=1000) if "MapWorker" in actor.class_name]
    assert len(list(states_of(on_ray).glob("part-*.parquet"))) == 4
    assert actors and len(loaded) == 2, "one for the answers, and one for all parts of the classes"
    for dataset in ("toy_tone", "toy_nod", "toy_words"):
        one, other = (stored(pooled_job(made_by), states_of(made_by), dataset) for made_by in (job, on_ray))
        assert one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)
    tables = [pq.read_table(path.states_folder("train", open_answers=True) / "part-00000.parquet") for path in (job, on_ray)]
    assert tables[0].column("positions").to_pylist() == tables[1].column("positions").to_pylist()
