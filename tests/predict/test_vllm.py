"""vLLM answers as our own decoding does, and what it or a model cannot do is told, not hidden."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hba_ray.cluster import environment
from hba_ray.cluster.session import ray_session
from hba_ray.data.atlas import AtlasIndex, build_index, read_rows
from hba_ray.data.feed.order import Share, Window
from hba_ray.data.rows import Row
from hba_ray.data.writers import write_jsonl
from hba_ray.errors import CheckpointError, DataError, EnvironmentMissing
from hba_ray.predict.generate import generate_rows
from hba_ray.predict.jobs import GenerateJob
from hba_ray.predict.vllm import VllmEngine, engine_settings
from hba_ray.predict.vllm_clips import as_clips, content_of, handed_over
from hba_ray.specs import AtlasSpec, ComputeSpec
from tests.helpers.experiments import small_experiment

CONTEXT = 600


@pytest.fixture(scope="module")
def index(toy) -> AtlasIndex:
    return build_index(AtlasSpec(root=str(toy.parquet), limit=3), toy.parquet)


def job(index: AtlasIndex, model: Path | str, engine: str = "vllm", **changes: Any) -> GenerateJob:
    generation = {"engine": engine, "max_new_tokens": 8, "context": CONTEXT}
    return GenerateJob(small_experiment(Path("unused"), evaluate__generation=generation, **changes), str(model), index)


def run(job: GenerateJob) -> dict[str, dict[str, Any]]:
    return {record["sample_id"]: record for made, _ in generate_rows(job) for record in made}


def window_of(index: AtlasIndex, split: str = "test") -> Window:
    return Window((Share(tuple(int(line) for line in index.rows_of(split)), 1),))


@pytest.fixture(scope="module")
def engine(index, tiny_backbone) -> Iterator[VllmEngine]:
    """An engine in processes of its own, with the tiny model in it."""
    with VllmEngine(job(index, tiny_backbone)) as started:
        yield started


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_vllm_writes_what_transformers_writes_from_the_same_clips(engine, index, tiny_backbone):
    ours = run(job(index, tiny_backbone, "transformers"))
    made, drops = engine.window(window_of(index))
    assert not drops and {record["sample_id"] for record in made} == ours.keys()
    for record in made:
        other = ours[record["sample_id"]]
        for column in ("response", "prompt_hash", "question", "predicted", "answer", "true"):
            assert record[column] == other[column], record["dataset"]
        assert record["withheld"] == () and not record["as_images"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_the_model_does_not_take_is_withheld_and_counted(engine, index, monkeypatch):
    whole = {record["sample_id"]: record for record in engine.window(window_of(index))[0]}
    monkeypatch.setattr(engine, "takes", {"image": None})
    for record in engine.window(window_of(index))[0]:
        has_audio, has_video = ("audio" in record["withheld"]), record["as_images"]
        assert has_audio or has_video or record["prompt_hash"] == whole[record["sample_id"]]["prompt_hash"]
        assert record["question"] == whole[record["sample_id"]]["question"]
        assert has_video == (record["dataset"] in ("toy_nod", "toy_answers")) or record["dataset"] in ("toy_tone", "toy_words")
    monkeypatch.setattr(engine, "takes", {})
    assert {"video"} <= {name for record in engine.window(window_of(index))[0] for name in record["withheld"]}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_rows_that_cannot_be_asked_stop_the_run_or_are_dropped_and_counted(engine, index, tmp_path: Path, monkeypatch):
    rows = [row for row in read_rows(index, index.rows_of("test").tolist()) if isinstance(row, Row)]
    with_audio = next(row for row in rows if "audio" in row.media)
    long = replace(rows[0], sample_id="long", problem=rows[0].problem + " and on" * 2 * CONTEXT)
    damaged = replace(with_audio, sample_id="damaged", media={**with_audio.media, "audio": (b"RIFF", *with_audio.media["audio"][1:])})
    write_jsonl([rows[1], long, damaged], tmp_path, "test")
    bad = build_index(AtlasSpec(root=str(tmp_path)), tmp_path)
    monkeypatch.setattr(engine, "job", job(bad, engine.job.model, atlas__on_bad_row="drop"))
    made, drops = engine.window(window_of(bad))
    assert [record["sample_id"] for record in made] == [rows[1].sample_id]
    assert sorted(drop.reason for drop in drops) == ["prompt too long", "truncated audio"]
    monkeypatch.setattr(engine, "job", job(bad, engine.job.model))
    with pytest.raises(DataError, match=r"test row (long|damaged)"):
        engine.window(window_of(bad))
    monkeypatch.undo()
    assert len(engine.window(window_of(index))[0]) == len(rows)  # it goes on answering


class _Recorder(VllmEngine):
    """An engine without a model, which notes when it decodes a window and when it answers one."""

    def __init__(self, job: GenerateJob):
        super().__init__(job)
        self._pool, self.takes, self.tokenizer = ThreadPoolExecutor(2), dict.fromkeys(("audio", "video", "image")), self
        self.done: list[str] = []
        self.asked: list[str] = []

    def _decode(self, window: Window) -> Any:
        self.done.append(f"decode {window.number}")
        return super()._decode(window)

    def _enqueue(self, question: Any) -> list[str]:
        self.asked.append(question.row.sample_id)
        return [question.row.sample_id]

    def _answers(self) -> list[Any]:
        self.done.append("answer")
        outputs = [SimpleNamespace(token_ids=[], finish_reason="stop")]
        asked, self.asked = self.asked, []
        return [SimpleNamespace(prompt=name, outputs=outputs) for name in asked]

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return ""


def test_the_next_window_is_decoded_while_the_model_writes_and_rows_keep_their_order(index):
    rows = index.rows_of("test").tolist()
    windows = [Window((Share(tuple(rows[start : start + 2]), 1),), number=start // 2) for start in range(0, 6, 2)]
    engine, alone = _Recorder(job(index, "unused")), _Recorder(job(index, "unused"))
    records, drops = engine.run(windows)
    assert not drops and records == [record for window in windows for record in alone.window(window).records]
    assert len(records) == 6
    assert engine.done == ["decode 0", "decode 1", "answer", "decode 2", "answer", "answer"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_actor_of_ray_serves_the_tiny_model_as_a_baseline(index, tiny_backbone, tmp_path: Path):
    compute = {"compute__workers": 1, "compute__cpus": 4, "compute__object_store_mib": 200}
    served = job(index, tiny_backbone, **compute)
    with ray_session(served.spec.compute, tmp_path / "logs"):
        made = run(served)
        ours = run(job(index, tiny_backbone, "transformers", **compute))
        with pytest.raises(CheckpointError, match="no such folder"):
            run(job(index, tmp_path / "nowhere", **compute))
    assert ours == run(job(index, tiny_backbone, "transformers"))
    assert {name: record["response"] for name, record in made.items()} == {name: record["response"] for name, record in ours.items()}


@pytest.mark.slow
def test_a_model_that_vllm_cannot_serve_is_refused_before_its_weights_are_read(index, tiny_backbone, tmp_path: Path):
    from hba_ray.models.backbone import load_backbone, load_processor
    from hba_ray.models.export import export_thinker

    full = tmp_path / "full"
    thinker = load_backbone(str(tiny_backbone), dtype=torch.float32)
    export_thinker(thinker, load_processor(str(tiny_backbone)), full)
    (full / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="has no chat template"):
        run(job(index, full))
    nonsense = Path(shutil.copytree(full, tmp_path / "nonsense"))
    (nonsense / "config.json").write_text(json.dumps({"model_type": "nonsense", "architectures": ["Nonsense"]}))
    with pytest.raises(CheckpointError, match="vLLM cannot serve it"):
        run(job(index, nonsense))


@pytest.mark.parametrize(("content", "what"), [(None, "no such folder"), ("", "no readable config"), ("[]", "no readable config")])
def test_a_folder_without_a_model_is_refused_before_vllm_is_imported(index, tmp_path: Path, content: str | None, what: str):
    if content is not None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=what):
        run(job(index, tmp_path / "model"))


def test_without_vllm_or_with_the_build_for_another_device_the_way_out_is_named(index, tiny_backbone, monkeypatch):
    with pytest.raises(EnvironmentMissing, match=r"its CPU build, and this runs on a GPU"):
        run(job(index, tiny_backbone, compute__gpus_per_worker=1))
    monkeypatch.setattr(environment, "is_cpu_build", lambda: False)
    with pytest.raises(EnvironmentMissing, match=r"its GPU build, and this runs on a CPU\n.*rl-cpu.*engine=transformers"):
        run(job(index, tiny_backbone))
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentMissing, match=r"evaluate\.generation\.engine=vllm: vLLM is not installed"):
        run(job(index, tiny_backbone))


def test_settings_of_the_engine_follow_the_spec():
    cpu, gpus = engine_settings(ComputeSpec(), 512), engine_settings(ComputeSpec(gpus_per_worker=2), None)
    assert (cpu["max_model_len"], cpu["dtype"], cpu["enforce_eager"], cpu["tensor_parallel_size"]) == (512, "float32", True, 1)
    assert (gpus["max_model_len"], gpus["dtype"], gpus["tensor_parallel_size"]) == (-1, "auto", 2)
    assert "enforce_eager" not in gpus


def test_clips_reach_a_message_in_the_order_of_their_marks():
    frames = np.zeros((4, 3, 56, 84), dtype=np.uint8), 2.0
    sounds = [np.zeros(16, dtype=np.float32), np.ones(16, dtype=np.float32)]
    clips = [clip for sound in sounds for clip in as_clips("audio", sound)] + list(as_clips("video", frames))
    (kind, (pixels, facts)) = clips[-1]
    assert (kind, pixels.shape, facts["fps"], facts["duration"]) == ("video", (4, 56, 84, 3), 2.0, 2.0)
    parts = [{"type": "video"}, {"type": "text", "text": "then"}, {"type": "audio"}, {"type": "audio"}]
    with handed_over(clips) as urls:
        content = content_of(parts, urls)
    assert [part.get("audio_url", part.get("video_url")) for part in content if part["type"] != "text"] == [
        {"url": "hba_ray:2"},
        {"url": "hba_ray:0"},
        {"url": "hba_ray:1"},
    ]
    images = list(as_clips("video", frames, as_images=True))
    assert [(kind, image.size) for kind, image in images] == [("frame", (84, 56))] * 4
