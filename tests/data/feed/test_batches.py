"""Micro-batches hold what the rows say, in buckets of like length, and never a stand-in for a broken clip."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from hba_ray.data.atlas import build_index
from hba_ray.data.feed.batches import IGNORED, BatchMaker, BatchSettings, MicroBatch, padding_ratio
from hba_ray.data.feed.order import Order, Share, Window, plan_epoch
from hba_ray.data.feed.stream import TASK_ROWS, tasks_of
from hba_ray.data.media import SHORTEST_AUDIO
from hba_ray.data.rows import Row
from hba_ray.data.tasks import CLASSES, DATASETS
from hba_ray.data.writers import write_jsonl
from hba_ray.errors import BadMedia, SpecError
from hba_ray.specs import AtlasSpec, MediaSpec
from hba_ray.specs.wording import Wording
from tests.helpers.experiments import small_experiment

MEDIA = MediaSpec(audio_seconds=2, video_frames=4, video_pixels=56 * 56)
SETTINGS = BatchSettings(media=MEDIA, modalities=("text", "audio", "video", "image"), micro_batch=4)


@pytest.fixture(scope="module")
def processor(tiny_backbone):
    from hba_ray.models.backbone import load_processor

    return load_processor(str(tiny_backbone))


@pytest.fixture(scope="module")
def index(toy):
    return build_index(AtlasSpec(root=str(toy.parquet)), toy.parquet)


@pytest.mark.parametrize(
    ("purpose", "appends_answers", "shuffle", "longest_prompt"),
    [
        ("train", True, True, 100),
        ("validation", True, False, 100),
        ("states", True, False, 100),
        ("predict", False, False, 100),
        ("generate", False, False, 99),  # a response has at least one token
    ],
)
def test_purposes_differ_in_their_answers_their_order_and_the_room_for_a_response(purpose, appends_answers, shuffle, longest_prompt):
    spec = small_experiment(Path("unused"), sft__answer_case="lower", atlas__on_bad_row="drop", compute__micro_batch=2)
    settings = BatchSettings.of(spec, purpose, context=100, withheld=("audio",))
    assert (settings.appends_answers, settings.shuffle, settings.longest_prompt) == (appends_answers, shuffle, longest_prompt)
    assert (settings.micro_batch, settings.answer_case, settings.on_bad_row) == (2, "lower", "drop")
    assert settings.media == spec.atlas.media
    assert set(settings.modalities) == set(spec.atlas.modalities) - {"audio"}


def batches_of(index, processor, settings=SETTINGS, split="train", **order) -> list[MicroBatch]:
    order = {"window": 24, "micro_batch": settings.micro_batch, "shuffle": settings.shuffle} | order
    maker = BatchMaker(index, settings, processor, split)
    return [batch for window in plan_epoch(index, Order(split, **order)) for batch in maker.window(window)]


def test_every_row_comes_once_with_its_target(index, processor):
    batches = batches_of(index, processor)
    rows = [row for batch in batches for row in batch.rows]
    assert sorted({row["sample_id"] for row in rows}) == sorted(row["sample_id"] for row in rows)
    assert len(rows) == len(index.rows_of("train"))
    for batch in batches:
        for row, index_, slot in zip(batch.rows, batch.class_index.tolist(), batch.task_slot.tolist(), strict=True):
            if row["task"] == "NVC":
                assert (index_, slot) == (IGNORED, -1)
            else:
                assert CLASSES[index_] == (row["task"], row["true"])


def test_answers_are_learnt_token_by_token_with_their_end_mark(index, processor):
    tokenizer = processor.tokenizer
    for batch in batches_of(index, processor):
        for i, row in enumerate(batch.rows):
            labels = batch.answer_labels[i]
            learnt = labels[labels != IGNORED]
            if row["task"] == "NVC":
                assert tokenizer.decode(learnt) == row["true"] + "<|im_end|>"
                assert torch.equal(batch.inputs["input_ids"][i][labels != IGNORED], learnt)
                assert int(batch.inputs["attention_mask"][i].sum()) == int((labels != IGNORED).nonzero().max()) + 1
            else:
                assert len(learnt) == 0


def test_buckets_keep_padding_small(index, processor):
    settings = replace(SETTINGS, micro_batch=4)
    assert padding_ratio(batches_of(index, processor, settings, window=48)) < padding_ratio(
        batches_of(index, processor, settings, window=4)
    )


def test_order_is_reproducible_and_differs_by_seed(index, processor):
    names = [[[row["sample_id"] for row in batch.rows] for batch in batches_of(index, processor, seed=seed)] for seed in (0, 0, 1)]
    assert names[0] == names[1]
    assert names[0] != names[2]


def test_audio_is_as_long_as_the_longest_clip_not_as_the_model_could_take(index, processor):
    batches = [batch for batch in batches_of(index, processor) if "input_features" in batch.inputs]
    assert batches
    for batch in batches:
        mask = batch.inputs["feature_attention_mask"]
        assert batch.inputs["input_features"].shape[-1] == mask.shape[-1] == int(mask.sum(-1).max())


def test_each_video_has_its_own_rate(index, processor):
    batch = next(batch for batch in batches_of(index, processor) if "video_grid_thw" in batch.inputs)
    grids, seconds = batch.inputs["video_grid_thw"], batch.inputs["video_second_per_grid"]
    assert grids[:, 0].tolist() == [MEDIA.video_frames // 2] * len(grids)
    assert (grids[:, 1:] == 4).all()
    assert len(seconds) == len(grids)
    assert bool((seconds > 0).all())


def test_withheld_modalities_leave_no_trace(index, processor):
    for batch in batches_of(index, processor, replace(SETTINGS, modalities=("text",))):
        assert set(batch.inputs) == {"input_ids", "attention_mask"}
        text = processor.tokenizer.batch_decode(batch.inputs["input_ids"])
        assert not any(mark in part for part in text for mark in ("<video>", "<audio>", "<|VIDEO|>", "<|AUDIO|>"))


def test_prediction_stops_at_the_prompt_and_pads_open_answers_on_the_left(index, processor):
    settings = replace(SETTINGS, purpose="predict", shuffle=False)
    batches = batches_of(index, processor, settings)
    assert {row["task"] for batch in batches for row in batch.rows} == {"NVC", "EMO", "SEN", "SAR"}
    for batch in batches:
        assert len({row["task"] == "NVC" for row in batch.rows}) == 1
        assert bool((batch.answer_labels == IGNORED).all())
        if batch.rows[0]["task"] == "NVC":
            assert bool(batch.inputs["attention_mask"][:, -1].all())
        else:
            assert bool(batch.inputs["attention_mask"][:, 0].all())


def test_a_row_says_what_it_asks_and_names_its_prompt(index, processor):
    whole = batches_of(index, processor, replace(SETTINGS, purpose="predict", shuffle=False))
    rows = {row["sample_id"]: row for batch in whole for row in batch.rows}
    assert all(row["question"] and "<" not in row["question"] for row in rows.values())
    assert all(len(row["prompt_hash"] or "") == 16 for row in rows.values())
    for batch in batches_of(index, processor, replace(SETTINGS, modalities=("text",), purpose="predict", shuffle=False)):
        for row in batch.rows:
            other = rows[row["sample_id"] or ""]
            has_no_clip = "the words above." in (row["question"] or "") and "and the words above" not in (row["question"] or "")
            assert row["question"] == other["question"]
            assert (row["prompt_hash"] == other["prompt_hash"]) == has_no_clip


def test_missing_micro_batches_are_fillers_of_no_weight(index, processor):
    maker = BatchMaker(index, SETTINGS, processor, "train")
    made = list(maker.window(Window((Share(tuple(index.rows_of("train")[:2].tolist()), micro_batches=3),), seed=1)))
    assert sorted(float(batch.weight.sum()) for batch in made) == [0, 0, 2]
    empty = next(batch for batch in made if not batch.rows)
    assert bool((empty.answer_labels == IGNORED).all()) and empty.class_index.tolist() == [IGNORED]


def test_every_tower_can_be_kept_busy_by_a_row_of_no_weight(index, processor):
    settings = replace(SETTINGS, every_batch_has=("audio", "video"))
    for batch in batches_of(index, processor, settings):
        assert {"input_features", "pixel_values_videos"} <= set(batch.inputs)
        assert int(batch.weight.sum()) == len(batch.rows)


@pytest.fixture
def broken(tmp_path, toy):
    """An atlas of two good rows and one whose audio is cut off."""
    source = build_index(AtlasSpec(root=str(toy.jsonl), datasets=("toy_tone",), limit=3), toy.jsonl)
    from hba_ray.data.atlas import read_rows

    rows = [row for row in read_rows(source, source.rows_of("train")) if isinstance(row, Row)]
    damaged = tmp_path / "broken.wav"
    clip = rows[1].media["audio"][0]
    damaged.write_bytes((clip.read_bytes() if isinstance(clip, Path) else clip)[:30])
    rows[1] = replace(rows[1], media={**rows[1].media, "audio": (damaged,)})
    write_jsonl(rows, tmp_path / "atlas", "train")
    return build_index(AtlasSpec(root=str(tmp_path / "atlas")), tmp_path / "atlas"), rows[1]


def test_a_broken_clip_stops_with_its_row(broken, processor):
    index, row = broken
    with pytest.raises(BadMedia, match=row.sample_id):
        batches_of(index, processor)


def test_a_broken_clip_can_be_dropped_and_is_counted(broken, processor):
    index, row = broken
    batches = batches_of(index, processor, replace(SETTINGS, on_bad_row="drop"))
    drops = [drop for batch in batches for drop in batch.drops]
    assert [(drop.dataset, drop.reason) for drop in drops] == [("toy_tone", "truncated audio")]
    assert row.sample_id in drops[0].row
    assert sum(float(batch.weight.sum()) for batch in batches) == 2


@pytest.mark.parametrize(("samples", "good"), [(399, False), (400, True)])
def test_a_sound_too_short_for_the_audio_tower_is_a_bad_row(tmp_path, processor, samples, good):
    """400 samples are a window of the processor's spectrogram, and enough for a token."""
    assert processor.feature_extractor.n_fft == SHORTEST_AUDIO == 400
    soundfile.write(tmp_path / "clip.wav", np.full(samples, 0.1), 16_000)
    row = {"problem": "<audio>\nHow does it sound?", "answer": "sad", "dataset": "cremad", "audios": ["clip.wav"]}
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    index = build_index(AtlasSpec(root=str(tmp_path)), tmp_path)
    settings = replace(SETTINGS, purpose="predict", on_bad_row="drop")
    (batch,) = batches_of(index, processor, settings, split="test")
    assert [drop.reason for drop in batch.drops] == ([] if good else ["audio too short"])
    audio = processor.tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    assert int((batch.inputs["input_ids"] == audio).sum()) == good


def test_more_sound_than_the_processor_takes_is_refused_before_any_row_is_read(index, processor):
    seconds = processor.feature_extractor.chunk_length
    asked = replace(SETTINGS, media=MediaSpec(audio_seconds=seconds + 1))
    with pytest.raises(SpecError, match=rf"audio_seconds: {seconds + 1} s .* takes {seconds} s"):
        BatchMaker(index, asked, processor, "train")
    BatchMaker(index, replace(asked, modalities=("text", "video")), processor, "train")


def test_drops_are_told_even_where_no_row_of_a_window_is_left(tmp_path, processor):
    (tmp_path / "clip.wav").write_bytes(b"RIFF")
    row = {"problem": "<audio>\nHow does it sound?", "answer": "sad", "dataset": "cremad", "audios": ["clip.wav"]}
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    index = build_index(AtlasSpec(root=str(tmp_path)), tmp_path)
    (tmp_path / "clip.wav").unlink()
    settings = replace(SETTINGS, purpose="predict", shuffle=False, on_bad_row="drop")
    (batch,) = batches_of(index, processor, settings, split="test")
    assert batch.rows == []
    assert [(drop.dataset, drop.reason) for drop in batch.drops] == [(index.dataset_of(0), "missing file")]


def test_a_batch_of_mixed_rows_gives_each_the_logits_it_has_alone(index, processor, tiny_backbone):
    from hba_ray.models.backbone import load_backbone
    from hba_ray.models.omni import OmniSapiens

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = OmniSapiens(load_backbone(str(tiny_backbone), dtype=torch.float32), 64).eval()
    together = logits_of(model, batches_of(index, processor, replace(SETTINGS, micro_batch=8, purpose="predict", shuffle=False)))
    alone = logits_of(model, batches_of(index, processor, replace(SETTINGS, micro_batch=1, purpose="predict", shuffle=False)))
    assert together.keys() == alone.keys()
    for name, logits in together.items():
        np.testing.assert_allclose(logits, alone[name], atol=1e-4)


@torch.no_grad()
def logits_of(model, batches: list[MicroBatch]) -> dict[str, np.ndarray]:
    logits = {}
    for batch in batches:
        outputs = model(batch.inputs_on("cpu"), batch.class_index, batch.task_slot, batch.answer_labels, batch.weight)
        for row, values in zip(batch.rows, outputs.class_logits_B25, strict=True):
            if row["task"] != "NVC":
                logits[row["sample_id"]] = values.numpy()
    return logits


def test_the_toy_datasets_are_in_the_tables():
    assert {dataset.id for dataset in DATASETS.values() if dataset.is_toy} == {"toy_tone", "toy_nod", "toy_words", "toy_answers"}


def test_a_micro_batch_has_the_wording_of_the_spec(index, processor, tmp_path):
    (tmp_path / "turn.txt").write_text("Be brief.")
    model = {"backbone": "tiny", "system_prompt": str(tmp_path / "turn.txt"), "prompt_layout": "released"}
    settings = BatchSettings.of(small_experiment(tmp_path, model=model), "predict", context=10_000)
    assert settings.wording == Wording("released", "Be brief.")
    plain = replace(settings, wording=Wording())
    texts = [
        [processor.tokenizer.decode(ids) for batch in batches_of(index, processor, one, split="test") for ids in batch.inputs["input_ids"]]
        for one in (settings, plain)
    ]
    assert all("system\nBe brief." in text for text in texts[0]) and not any("Be brief." in text for text in texts[1])
    assert sum(text.count("\n") for text in texts[0]) > sum(text.count("\n") for text in texts[1]), "line breaks around clips are kept"


def test_recipes_that_are_sent_to_several_loaders_make_the_batches_of_one(index, processor):
    (window,) = plan_epoch(index, Order("train", 10_000, SETTINGS.micro_batch, seed=5))
    reader, loaders = BatchMaker(index, SETTINGS, processor, "train"), [BatchMaker(index, SETTINGS, processor, "train") for _ in range(2)]
    tasks = list(tasks_of(reader.recipes(window)))
    sizes = [sum(len(recipe.rows) for recipe in task) for task in tasks]
    assert len(tasks) > 2 and all(TASK_ROWS <= size < TASK_ROWS + SETTINGS.micro_batch for size in sizes[:-1])
    made = [loaders[number % 2].make(recipe) for number, task in enumerate(tasks) for recipe in pickle.loads(pickle.dumps(task))]
    for batch, other in zip(made, reader.window(window), strict=True):
        assert batch.rows == other.rows and batch.drops == other.drops
        for name, tensor in other.inputs.items():
            assert torch.equal(batch.inputs[name], tensor), name
