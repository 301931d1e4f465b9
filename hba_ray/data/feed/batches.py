"""From rows to micro-batches: rows of like length together, clips decoded, prompts tokenised, padding, targets.

A `BatchMaker` runs in the last operator of a Ray Data pipeline or in this process (`stream`).

Letters: B rows of a micro-batch, S tokens of the longest row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from hba_ray.data.atlas import AtlasIndex, Drop, read_rows
from hba_ray.data.clips import Clips, PixelScale, decode_clips, length_of, pixel_scales, process
from hba_ray.data.feed.order import Window
from hba_ray.data.predictions import Columns, asked_columns
from hba_ray.data.prompts import chat_message, withhold
from hba_ray.data.rows import Row
from hba_ray.data.tasks import WITH_SPLIT_SURPRISE, Heads
from hba_ray.errors import DataError
from hba_ray.specs import ExperimentSpec, MediaSpec
from hba_ray.specs.wording import AS_BEFORE, Wording

IGNORED = -100
"""Stands in targets where nothing is to be learnt; cross-entropy leaves it out."""
AUDIO_TOKENS_PER_SECOND = 25
PIXELS_PER_TOKEN = 28 * 28
"""Pixels that become one token of the vision tower, which joins two frames in it."""


Purpose = Literal["train", "validation", "states", "predict", "generate"]


@dataclass(frozen=True)
class BatchSettings:
    """How rows become micro-batches. Jobs take theirs from `of`.

    Attributes:
        purpose: `train`, `validation` and `states` append the open answer and its end mark, and pad on the
            right. `predict` stops at the prompt, puts class rows and open questions into micro-batches of
            their own, and pads those of open questions on the left, as generation needs. `generate` stops
            at the prompt and pads all rows on the left.
        every_batch_has: modalities that a filler of weight 0 adds to a micro-batch without them.
        reword: makes of a row the one whose prompt is shown; picklable.
        wording: layout of a row's chat turn, and the system turn.
        longest_prompt: tokens; a row with more is a bad row.
        heads: of the model, whose classes targets count.
        attach: makes of a micro-batch and its epoch the tensors that are `MicroBatch.attached`; picklable.
    """

    media: MediaSpec
    modalities: tuple[str, ...]
    micro_batch: int
    purpose: Purpose = "train"
    shuffle: bool = True
    answer_case: Literal["keep", "lower"] = "keep"
    on_bad_row: Literal["fail", "drop"] = "fail"
    every_batch_has: tuple[str, ...] = ()
    reword: Callable[[Row], Row] | None = None
    wording: Wording = AS_BEFORE
    longest_prompt: int | None = None
    heads: Heads = WITH_SPLIT_SURPRISE
    attach: Callable[[MicroBatch, int], dict[str, torch.Tensor]] | None = None

    @classmethod
    def of(
        cls,
        spec: ExperimentSpec,
        purpose: Purpose,
        *,
        context: int,
        withheld: Collection[str] = (),
        every_batch_has: tuple[str, ...] = (),
        reword: Callable[[Row], Row] | None = None,
        wording: Wording | None = None,
    ) -> BatchSettings:
        """What a spec says for one purpose: the only place where jobs of training and prediction differ in it.

        Args:
            context: tokens that the model reads at most; `generate` keeps one of them for the response.
            withheld: modalities that the model is not shown, besides those that the spec leaves out.
            wording: that of the spec's own model by default.
        """
        atlas = spec.atlas
        return cls(
            media=atlas.media,
            modalities=tuple(name for name in atlas.modalities if name not in withheld),
            micro_batch=spec.compute.micro_batch,
            purpose=purpose,
            shuffle=purpose == "train",
            answer_case=spec.sft.answer_case,
            on_bad_row=atlas.on_bad_row,
            every_batch_has=every_batch_has,
            reword=reword,
            wording=Wording.of(spec.model) if wording is None else wording,
            longest_prompt=context - 1 if purpose == "generate" else context,
            heads=Heads.of(atlas),
        )

    @property
    def appends_answers(self) -> bool:
        return self.purpose in ("train", "validation", "states")


@dataclass
class MicroBatch:
    """The rows that a worker puts through the model together.

    Attributes:
        inputs: the thinker's arguments: input_ids [B, S], attention_mask [B, S], and where there are
            clips input_features, feature_attention_mask, pixel_values(_videos), ..._grid_thw, video_second_per_grid.
            Pixels are bytes while they travel; `inputs_on` makes floats of them.
        class_index: [B] global class, IGNORED for open answers.
        task_slot: [B] place of the task's head, -1 for open answers.
        answer_labels: [B, S] token ids at answer positions, IGNORED elsewhere.
        weight: [B] 1 for a row, 0 for a filler.
        rows: of each real row, the columns of a predictions table that do not come from the model (`data.predictions`).
        drops: rows that this batch should have held but could not.
        real_tokens, padded_tokens: of input_ids.
        attached: what `BatchSettings.attach` adds, [B, ...] each.
        scales: what makes floats of the pixels, by the name of the input.
    """

    inputs: dict[str, torch.Tensor]
    class_index: torch.Tensor
    task_slot: torch.Tensor
    answer_labels: torch.Tensor
    weight: torch.Tensor
    rows: list[Columns] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    real_tokens: int = 0
    padded_tokens: int = 0
    attached: dict[str, torch.Tensor] = field(default_factory=dict)
    scales: Mapping[str, PixelScale] = field(default_factory=dict)

    def inputs_on(self, device: torch.device | str) -> dict[str, torch.Tensor]:
        """The thinker's arguments on a device, where the bytes of pixels become floats."""
        moved = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return {name: self.scales[name].floats(tensor) if tensor.dtype == torch.uint8 else tensor for name, tensor in moved.items()}

    def targets(self, device: torch.device | str) -> dict[str, Any]:
        """Classes, labels and weights as the arguments of `OmniSapiens.forward`, on the device, and where there is more, `attached`."""
        attached = {"attached": {name: tensor.to(device) for name, tensor in self.attached.items()}} if self.attached else {}
        return {
            **attached,
            "class_index_B": self.class_index.to(device),
            "task_slot_B": self.task_slot.to(device),
            "answer_labels_BS": self.answer_labels.to(device),
            "weight_B": self.weight.to(device),
        }

    @property
    def row_tokens(self) -> list[int]:
        """Tokens of each row, fillers last."""
        return self.inputs["attention_mask"].sum(1).tolist()


@dataclass(frozen=True)
class Recipe:
    """What a micro-batch will be made of; picklable.

    Attributes:
        rows: with their clips as they are stored.
        drops: rows before them that could not be read.
        epoch: that they are of.
    """

    rows: Sequence[Row]
    drops: Sequence[Drop] = ()
    epoch: int = 0


class BatchMaker:
    """Cuts windows of an atlas into micro-batches.

    Args:
        processor: the backbone's Qwen2.5-Omni processor.

    Raises:
        SpecError: more seconds of sound are asked for than the processor takes.
    """

    def __init__(self, index: AtlasIndex, settings: BatchSettings, processor: Any, split: str):
        self.index, self.settings, self.processor, self.split = index, settings, processor, split
        if "audio" in settings.modalities:
            extractor = processor.feature_extractor
            settings.media.check_window(extractor.n_samples / extractor.sampling_rate, "the backbone")
        tokenizer = processor.tokenizer
        self.pad_id = int(tokenizer.pad_token_id)
        self.end_id = int(tokenizer.convert_tokens_to_ids("<|im_end|>"))
        self.scales = pixel_scales(processor)

    def window(self, window: Window) -> Iterator[MicroBatch]:
        """The micro-batches of each share in turn; when training exactly `window.micro_batches`, fillers of weight 0 among them.

        Raises:
            DataError: a bad row, where the settings say to fail.
        """
        return map(self.make, self.recipes(window))

    def recipes(self, window: Window) -> Iterator[Recipe]:
        """What these micro-batches are made of, in their order: rows are read, and no clip is decoded.

        Raises:
            DataError: see `window`.
        """
        generator = np.random.default_rng(window.seed)
        rows, drops = self._read(window)
        for share in window.shares:
            own = [rows.pop(line) for line in share.lines if line in rows]
            for bucket in self._buckets(own, share.micro_batches, generator):
                yield Recipe(bucket, drops, window.epoch)
                drops = []
        if drops:  # every row of the window was bad, and prediction makes no fillers
            yield Recipe((), drops, window.epoch)

    def make(self, recipe: Recipe) -> MicroBatch:
        """The micro-batch of a recipe: its clips are decoded.

        Raises:
            DataError: see `window`.
        """
        drops = list(recipe.drops)
        batch = self.batch(recipe.rows, drops)
        batch.drops += drops
        if self.settings.attach is not None:
            batch.attached = self.settings.attach(batch, recipe.epoch)
        return batch

    def _read(self, window: Window) -> tuple[dict[int, Row], list[Drop]]:
        """Line of the index -> row, of the good rows."""
        rows: dict[int, Row] = {}
        drops: list[Drop] = []
        for line, row in zip(sorted(window.lines), read_rows(self.index, window.lines), strict=True):
            if isinstance(row, DataError):
                drops.append(self._drop(row, self.index.dataset_of(line)))
            else:
                rows[line] = withhold(row, self.settings.modalities, self.settings.wording.layout)
        return rows, drops

    def _drop(self, bad: DataError, dataset: str) -> Drop:
        if self.settings.on_bad_row == "fail":
            raise bad.of_a_row()
        return Drop(self.split, dataset, bad.where, bad.reason)

    def _buckets(self, rows: list[Row], count: int, generator: np.random.Generator) -> list[list[Row]]:
        """`count` groups of rows of like length; groups come in random order when training."""
        order = generator.permutation(len(rows)) if self.settings.shuffle else np.arange(len(rows))
        predicting, generating = not self.settings.appends_answers, self.settings.purpose == "generate"
        lengths = {int(i): (predicting and rows[i].dataset.task.is_open, self._length(rows[i])) for i in order}
        by_length = sorted(lengths, key=lambda i: lengths[i])  # stable: equal lengths keep the shuffled order
        size = self.settings.micro_batch
        buckets: list[list[Row]] = []
        for i in by_length:
            mixes = predicting and not generating and buckets and buckets[-1][0].dataset.task.is_open != rows[i].dataset.task.is_open
            if not buckets or len(buckets[-1]) == size or mixes:
                buckets.append([])
            buckets[-1].append(rows[i])
        if not predicting:
            buckets += [[] for _ in range(count - len(buckets))]
        if self.settings.shuffle:
            buckets = [buckets[i] for i in generator.permutation(len(buckets))]
        return buckets

    def _length(self, row: Row) -> int:
        """Tokens, about: text exactly, clips from their headers. A clip with a damaged header counts as empty; decoding will report it."""
        text = row.problem + (row.answer if row.dataset.task.is_open else "")
        tokens = len(self.processor.tokenizer(text)["input_ids"])
        media = self.settings.media
        for name, clips in row.media.items():
            for clip in clips:
                try:
                    length = length_of(name, clip, where=row.sample_id)
                except DataError:
                    continue
                if name == "audio":
                    tokens += round(min(length, media.audio_seconds) * AUDIO_TOKENS_PER_SECOND)
                elif name == "video":
                    pixels = max(min(length, media.video_pixels), media.video_min_pixels)
                    tokens += max(1, round(pixels / PIXELS_PER_TOKEN)) * media.video_frames // 2
                else:
                    tokens += (media.image_pixels or media.video_pixels) // PIXELS_PER_TOKEN
        return tokens

    def batch(self, rows: Sequence[Row], drops: list[Drop]) -> MicroBatch:
        """The micro-batch of these rows; rows that cannot be decoded are added to `drops`."""
        clips: Clips = {"audio": [], "video": [], "image": []}
        kept: list[Row] = []
        for row in rows:
            try:
                decoded = decode_clips(row, self.settings.media, where=self._place(row))
            except DataError as bad:
                drops.append(self._drop(bad, row.dataset.id))
                continue
            kept.append(row)
            for name, arrays in decoded.items():
                clips[name] += arrays
        made = self._tensors(kept, clips)
        fitting = [row for row, tokens in zip(kept, made.row_tokens, strict=False) if self._fits(row, tokens, drops)]
        return made if len(fitting) == len(kept) else self.batch(fitting, drops)

    def _fits(self, row: Row, tokens: int, drops: list[Drop]) -> bool:
        longest = self.settings.longest_prompt
        if longest is None or tokens <= longest:
            return True
        what, way_out = f"the prompt has {tokens} tokens, and at most {longest} fit", "show less of the clips, or shorten the text"
        drops.append(self._drop(DataError(self._place(row), what, way_out, reason="prompt too long"), row.dataset.id))
        return False

    def _place(self, row: Row) -> str:
        return f"{self.split} row {row.sample_id} ({row.dataset.id})"

    def _tensors(self, rows: list[Row], clips: Clips) -> MicroBatch:
        reword = self.settings.reword or (lambda row: row)
        messages = [chat_message(reword(row), self.settings.wording) for row in rows]
        lacking = [name for name in self.settings.every_batch_has if not clips[name]]
        if lacking or not rows:
            messages.append(_filler(lacking, clips))
        prompts = [self.processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False) for message in messages]
        processed = process(self.processor, prompts, clips, as_bytes=True)
        tokens = [list(ids) for ids in processed.pop("input_ids")]
        training = self.settings.appends_answers
        answers = [self._answer_ids(row) if training and row.dataset.task.is_open else [] for row in rows]
        fillers = len(messages) - len(rows)
        answers += [[]] * fillers
        left = self.settings.purpose == "generate" or (not training and bool(rows) and rows[0].dataset.task.is_open)
        input_ids, attention_mask = _pad([t + a for t, a in zip(tokens, answers, strict=True)], self.pad_id, left)
        answer_labels = torch.full_like(input_ids, IGNORED)
        for i, (prompt, answer) in enumerate(zip(tokens, answers, strict=True)):
            answer_labels[i, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer, dtype=torch.long)
        return MicroBatch(
            inputs={"input_ids": input_ids, "attention_mask": attention_mask, **processed},
            class_index=torch.tensor([*(_class_index(row, self.settings.heads) for row in rows), *[IGNORED] * fillers]),
            task_slot=torch.tensor([*(self.settings.heads.slot(row.dataset.task.id) for row in rows), *[-1] * fillers]),
            answer_labels=answer_labels,
            weight=torch.tensor([1.0] * len(rows) + [0.0] * fillers),
            rows=[asked_columns(row, prompt) for row, prompt in zip(rows, prompts, strict=False)],  # fillers come last
            real_tokens=int(attention_mask[: len(rows)].sum()),
            padded_tokens=attention_mask[: len(rows)].numel(),
            scales=self.scales,
        )

    def _answer_ids(self, row: Row) -> list[int]:
        answer = row.answer.strip()
        if self.settings.answer_case == "lower":
            answer = answer.lower()
        return [*self.processor.tokenizer(answer)["input_ids"], self.end_id]


def _filler(modalities: Sequence[str], clips: Clips) -> list[dict[str, Any]]:
    """The message of a row of weight 0; the shortest clips of these modalities are added to `clips`.

    Such a row adds nothing to the loss. It lets every worker take the same steps and run the same towers.
    """
    shortest = {"audio": np.zeros(1600, dtype=np.float32), "video": (np.zeros((2, 3, 56, 56), dtype=np.uint8), 1.0)}
    for name in modalities:
        clips[name].append(shortest[name])
    return [{"role": "user", "content": [*({"type": name} for name in modalities), {"type": "text", "text": "-"}]}]


def _class_index(row: Row, heads: Heads) -> int:
    return IGNORED if row.label is None else heads.index(row.dataset.task.id, row.label)


def _pad(sequences: list[list[int]], pad_id: int, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences padded to the longest: input_ids and attention_mask, both [B, S]."""
    longest = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), longest), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, sequence in enumerate(sequences):
        place = slice(longest - len(sequence), longest) if left else slice(0, len(sequence))
        ids[i, place] = torch.tensor(sequence, dtype=torch.long)
        mask[i, place] = 1
    return ids, mask


def padding_ratio(batches: Sequence[MicroBatch]) -> float:
    """Padded tokens per real token."""
    real = sum(batch.real_tokens for batch in batches)
    return sum(batch.padded_tokens for batch in batches) / real if real else math.nan
