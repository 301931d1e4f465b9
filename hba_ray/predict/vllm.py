"""Prediction by generation with vLLM: any multimodal model that it serves, asked as `LLM.chat` asks.

Clips are decoded as for every other model (`data.clips`) and handed over by `vllm_clips`. vLLM says which
modalities a model takes; clips of the others are withheld and counted, and a model that takes images but
no video is shown a video's frames as images.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from hba_ray.cluster.environment import require_vllm, vllm_environ
from hba_ray.data.atlas import Drop, read_rows
from hba_ray.data.clips import decode_clips
from hba_ray.data.feed.order import Order, Window, plan_epoch
from hba_ray.data.feed.spread import item_dataset
from hba_ray.data.feed.stream import loaders_here, map_with_model_actors
from hba_ray.data.predictions import asked_columns
from hba_ray.data.prompts import chat_message, system_turn, withhold
from hba_ray.data.rows import Row
from hba_ray.errors import CheckpointError, DataError, EnvironmentMissing
from hba_ray.predict.jobs import GenerateJob, Predictions
from hba_ray.predict.vllm_clips import CONNECTOR, Clip, as_clips, content_of, handed_over, register_connector
from hba_ray.specs import ComputeSpec
from hba_ray.specs.sections.model import model_folder

if TYPE_CHECKING:
    from vllm.config import ModelConfig

WINDOW_ROWS = 128
"""Rows that are in an engine at a time."""
_RUN_WINDOWS = 8
"""Windows that an actor is sent at a time, at most: it decodes each while the model answers the one before."""
_OUT_OF_CONTEXT = ("longer than the maximum", "exceeds the maximum", "maximum context length")
"""How vLLM says that a prompt does not fit."""


@dataclass(frozen=True)
class Question:
    """A row in the form in which a model is asked.

    Attributes:
        row: as the atlas has it, without the instructions around its prompt.
        content: of the one turn of the chat; `{"type": "audio"}` stands for the next audio of `clips`.
        rate: frames per second of its video.
        withheld: modalities of the row that the model does not take.
        as_images: whether a video is shown as images.
    """

    row: Row
    content: list[dict[str, Any]]
    clips: list[Clip]
    rate: float | None
    withheld: tuple[str, ...]
    as_images: bool


@dataclass(frozen=True)
class _Decoding:
    """A window whose clips threads are decoding.

    Attributes:
        rows: in their order, each with the question that will come of it.
        bad: errors of rows that could not be read, each with the row's dataset.
    """

    rows: list[tuple[Row, Future[Question]]]
    bad: list[tuple[DataError, str]]


def generate_with_vllm(job: GenerateJob) -> Iterator[Predictions]:
    """Predictions of each window.

    An engine of this process makes them where the spec has no workers, else `compute.workers` actors with an engine each.

    Raises:
        EnvironmentMissing: vLLM is not installed for this device, or an engine died.
        CheckpointError: the model is not there, or vLLM cannot serve it.
        DataError: a bad row, where the spec says to fail.
    """
    compute = job.spec.compute
    require_vllm(
        "evaluate.generation.engine=vllm", gpu=compute.gpus_per_worker > 0, otherwise="give evaluate.generation.engine=transformers"
    )
    windows = plan_epoch(job.index, Order(job.split, WINDOW_ROWS, WINDOW_ROWS, shuffle=False))
    return _here(job, windows) if compute.workers == 0 else _on_ray(job, windows)


def _here(job: GenerateJob, windows: list[Window]) -> Iterator[Predictions]:
    with VllmEngine(job) as engine:
        for window, following in zip_longest(windows, windows[1:]):
            yield engine.window(window, following)


def _on_ray(job: GenerateJob, windows: list[Window]) -> Iterator[Predictions]:
    compute = job.spec.compute
    gpu = compute.gpus_per_worker > 0
    # The actor's process is the engine's own, so on a CPU the engine need not start another.
    alone = {} if gpu else {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    length = min(_RUN_WINDOWS, ceil(len(windows) / compute.workers))
    runs = item_dataset([windows[start : start + length] for start in range(0, len(windows), length or 1)])
    yield from map_with_model_actors(runs, partial(_load, job), compute, vllm_environ(gpu=gpu) | alone)


def _load(job: GenerateJob) -> Callable[[list[Window]], Predictions]:
    return VllmEngine(job).__enter__().run  # for as long as its process lives


def engine_settings(compute: ComputeSpec, context: int | None) -> dict[str, Any]:
    """The arguments of vLLM's engine.

    Args:
        context: tokens of prompt and response together at most; None is what model and memory allow.
    """
    gpu = compute.gpus_per_worker > 0
    shared = {
        "max_model_len": context or -1,  # -1 leaves it to model and memory
        "tensor_parallel_size": max(1, int(compute.gpus_per_worker)),
        "distributed_executor_backend": "mp" if compute.gpus_per_worker > 1 else None,
        "disable_log_stats": True,
        "seed": 0,
    }
    return shared | (
        {"dtype": "auto"} if gpu else {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 32, "skip_mm_profiling": True}
    )


class VllmEngine:
    """vLLM with one model in it, from entering the block to leaving it."""

    def __init__(self, job: GenerateJob):
        self.job, self._stack = job, ExitStack()
        self._ahead: dict[Window, _Decoding] = {}

    def __enter__(self) -> VllmEngine:
        with ExitStack() as stack:
            stack.callback(_restore, dict(os.environ))
            for name, value in vllm_environ(gpu=self.job.spec.compute.gpus_per_worker > 0).items():
                os.environ.setdefault(name, value)
            compute = self.job.spec.compute
            threads = max(compute.cpus_per_worker, (loaders_here(compute) if compute.workers else 1) * compute.cpus_per_loader)
            self._pool = stack.enter_context(ThreadPoolExecutor(max(1, int(threads))))
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hba-vllm-")))
            self._start(_servable(self.job.model, folder))
            stack.callback(self.llm.llm_engine.engine_core.shutdown)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def _start(self, model: str) -> None:
        from vllm import LLM, EngineArgs, SamplingParams
        from vllm.multimodal import MULTIMODAL_REGISTRY

        register_connector()
        os.environ["VLLM_MEDIA_CONNECTOR"] = CONNECTOR
        generation = self.job.spec.evaluate.generation
        settings = {"model": model, **engine_settings(self.job.spec.compute, generation.context)}
        try:
            self._check(EngineArgs(**settings).create_model_config())  # before the weights are read
            self.llm = LLM(**settings)
        except (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError) as cause:
            what = f"vLLM cannot serve it: {_first_line(cause)}"
            raise CheckpointError(self.job.model, what, "check the id, the network and the memory, or leave this model out") from cause
        self.sampling = SamplingParams(
            temperature=generation.temperature, top_p=generation.top_p, max_tokens=generation.max_new_tokens, seed=generation.seed
        )
        self.tokenizer: Any = self.llm.get_tokenizer()
        config = self.llm.model_config
        self.is_omni = "qwen2_5_omni" in str(config.hf_config.model_type)
        self.takes: dict[str, int | None] = {}
        self.takes_rate = False
        if MULTIMODAL_REGISTRY.supports_multimodal_inputs(config):
            info = MULTIMODAL_REGISTRY.get_processing_info(config)
            self.takes = dict(info.get_supported_mm_limits())
            # Models that read the rate of a video from what comes with the frames are not told again.
            reads_metadata = info.get_data_parser().video_needs_metadata
            self.takes_rate = not reads_metadata and hasattr(info.get_hf_processor(), "video_processor")

    def _check(self, config: ModelConfig) -> None:
        from vllm.renderers.hf import resolve_chat_template
        from vllm.tokenizers import cached_tokenizer_from_config

        tokenizer: Any = cached_tokenizer_from_config(config)
        if hasattr(tokenizer, "get_chat_template") and resolve_chat_template(tokenizer, None, None, model_config=config) is None:
            raise CheckpointError(self.job.model, "has no chat template, so it cannot be asked", "give an instruction-tuned model")

    def run(self, windows: Sequence[Window]) -> Predictions:
        """Predictions of the rows of several windows; see `window`."""
        parts = [self.window(window, following) for window, following in zip_longest(windows, windows[1:])]
        return Predictions([record for part in parts for record in part.records], [drop for part in parts for drop in part.drops])

    def window(self, window: Window, following: Window | None = None) -> Predictions:
        """Predictions of a window's rows. In a record, `withheld` and `as_images` say what the model was not shown as it is.

        Args:
            following: the window that will be asked for next; its clips are decoded while the model writes.

        Raises:
            DataError: a bad row, where the spec says to fail.
            EnvironmentMissing: the engine died.
        """
        decoding = self._ahead.pop(window, None) or self._decode(window)
        drops = [self._drop(bad, dataset) for bad, dataset in decoding.bad]
        asked: list[Question] = []
        under_way: list[str] = []
        try:
            for question in self._questions(decoding, drops):
                try:
                    under_way += self._enqueue(question)
                    asked.append(question)
                except DataError as bad:
                    drops.append(self._drop(bad, question.row.dataset.id))
        except DataError:  # the spec says to fail; the next window must not get these answers
            self.llm.llm_engine.abort_request(under_way, internal=True)
            raise
        if following is not None:
            self._ahead[following] = self._decode(following)
        records = []
        for question, output in zip(asked, self._answers(), strict=True):
            asked_row = asked_columns(question.row, output.prompt or "")
            # Decoded here, since vLLM's own text ends before a character that is not finished.
            response = self.tokenizer.decode(output.outputs[0].token_ids, skip_special_tokens=True).strip()
            record = self.job.record(asked_row, response, cut=output.outputs[0].finish_reason == "length")
            records.append({**record, "withheld": question.withheld, "as_images": question.as_images})
        return Predictions(records, drops)

    def _decode(self, window: Window) -> _Decoding:
        """Reads the rows of a window, and has threads decode their clips."""
        decoding = _Decoding([], [])
        for line, row in zip(sorted(window.lines), read_rows(self.job.index, window.lines), strict=True):
            if isinstance(row, DataError):
                decoding.bad.append((row, self.job.index.dataset_of(line)))
            else:
                shown = withhold(row, self.job.spec.atlas.modalities, self.job.wording.layout)
                decoding.rows.append((row, self._pool.submit(self._question, shown)))
        return decoding

    def _questions(self, decoding: _Decoding, drops: list[Drop]) -> Iterator[Question]:
        """The rows of a window in their order, once their clips are decoded; bad rows are added to `drops`."""
        for row, future in decoding.rows:
            try:
                question = future.result()
            except DataError as bad:
                drops.append(self._drop(bad, row.dataset.id))
            else:
                yield question

    def _question(self, row: Row) -> Question:
        shown = withhold(row, self._shown(row), self.job.wording.layout)
        as_images = "video" in shown.media and not self._takes("video")
        decoded = decode_clips(shown, self.job.spec.atlas.media, where=self._place(row))
        clips = [clip for name, arrays in decoded.items() for array in arrays for clip in as_clips(name, array, as_images=as_images)]
        rates = [rate for _, rate in decoded["video"]]
        withheld = tuple(name for name in row.media if name not in shown.media)
        content = chat_message(self.job.reword(shown), self.job.wording)[-1]["content"]
        if as_images:
            frames = [{"type": "frame"}] * self.job.spec.atlas.media.video_frames
            content = [part for kept in content for part in (frames if kept["type"] == "video" else [kept])]
        return Question(row, content, clips, rates[0] if rates else None, withheld, as_images)

    def _shown(self, row: Row) -> set[str]:
        return {name for name in row.media if self._takes(name) or (name == "video" and self._takes("image"))}

    def _takes(self, modality: str) -> bool:
        return modality in self.takes and self.takes[modality] != 0

    def _enqueue(self, question: Question) -> list[str]:
        """Asks a question and returns vLLM's ids of the request.

        Raises:
            DataError: vLLM refuses the prompt, most often because it is too long.
        """
        from vllm.exceptions import VLLMValidationError

        options: dict[str, Any] = {}
        if question.rate and self.takes_rate and not question.as_images:
            options["fps"] = question.rate
        if self.is_omni:
            options["do_resize"] = False  # frames have the size that they have for our own models
        with handed_over(question.clips) as urls:
            messages: list[Any] = [{"role": "user", "content": content_of(question.content, urls)}]
            if self.job.wording.system is not None:
                messages.insert(0, system_turn(self.job.wording.system))
            try:
                return self.llm.enqueue_chat(messages, self.sampling, use_tqdm=False, mm_processor_kwargs=options or None)
            except (VLLMValidationError, ValueError, TypeError) as cause:
                is_long = any(words in str(cause) for words in _OUT_OF_CONTEXT)
                what = f"vLLM does not take the prompt: {_first_line(cause)}"
                way_out = "raise evaluate.generation.context or show less of the clips" if is_long else ""
                raise DataError(
                    self._place(question.row), what, way_out, reason="prompt too long" if is_long else "prompt refused"
                ) from None  # the rest of what vLLM says may quote the prompt

    def _answers(self) -> list[Any]:
        """vLLM's outputs, in the order of the questions.

        Raises:
            EnvironmentMissing: the engine died.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return self.llm.wait_for_completion(use_tqdm=False)
        except EngineDeadError as cause:
            way_out = "its own message is above, or in the logs of Ray; less memory is needed with a smaller evaluate.generation.context"
            raise EnvironmentMissing(self.job.model, "vLLM's engine died", way_out) from cause

    def _drop(self, bad: DataError, dataset: str) -> Drop:
        if self.job.spec.atlas.on_bad_row == "fail":
            raise bad.of_a_row()
        return Drop(self.job.split, dataset, bad.where, bad.reason)

    def _place(self, row: Row) -> str:
        return f"{self.job.split} row {row.sample_id} ({row.dataset.id})"


def _servable(model: str, scratch: Path) -> str:
    """A folder or hub id that vLLM can load. For a folder that holds only a Qwen2.5-Omni thinker, a copy in the full layout is made.

    Args:
        scratch: folder for that copy.

    Raises:
        CheckpointError: the folder is not there or holds no readable config.
    """
    folder = model_folder(model, "the model")
    if folder is None:
        return model
    try:
        config = json.loads((folder / "config.json").read_bytes())
        kind = config.get("model_type")
    except (OSError, ValueError, AttributeError) as cause:
        raise CheckpointError(model, f"holds no readable config.json: {_first_line(cause)}", "give the folder of a model") from cause
    if kind != "qwen2_5_omni_thinker":
        return str(folder)
    import torch

    from hba_ray.models.backbone import load_backbone, load_processor
    from hba_ray.models.export import export_thinker

    dtype = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "float32"))
    export_thinker(load_backbone(str(folder), dtype=dtype), load_processor(str(folder)), scratch / "model")
    return str(scratch / "model")


def _first_line(cause: BaseException) -> str:
    return (str(cause) or type(cause).__name__).strip().splitlines()[0]


def _restore(before: dict[str, str]) -> None:
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
