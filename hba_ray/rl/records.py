"""What rollout workers and the trainer write down for the driver: rows that failed, and means of rewards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from hba_ray.data.atlas import Drop
from hba_ray.errors import DataError, HbaError
from hba_ray.store.folders import append_line, read_lines

CUT = "cut"
"""Among the parts of a reward: 1 where the response ended at the limit of tokens, else 0; it earns and costs nothing."""

EQUAL_GROUPS = "reward/equal_groups"
"""Metric of a step: see `equal_groups`."""


def note_failure(file: Path, error: HbaError, *, split: str = "", dataset: str = "") -> None:
    """Adds a line that the driver reads, whatever becomes of this process.

    Args:
        split, dataset: of the row, where the error is about one.
    """
    facts = {"kind": type(error).__name__, "where": error.where, "what": error.what, "way_out": error.way_out}
    if isinstance(error, DataError):
        facts |= {"reason": error.reason, "split": split, "dataset": dataset}
    append_line(file, facts)


def read_failures(file: Path) -> list[dict[str, Any]]:
    """What `note_failure` wrote, oldest first; those of rows have a `reason`."""
    return read_lines(file)


def dropped_rows(file: Path) -> list[Drop]:
    """The rows that `note_failure` noted, each once, however many of its rollouts failed."""
    notes = [note for note in read_failures(file) if "reason" in note]
    return sorted({Drop(note["split"], note["dataset"], note["where"], note["reason"]) for note in notes}, key=astuple)


def reward_means(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Means of all parts of the reward: over all responses, and over those of each task and dataset.

    >>> reward_means([{"parts": {"score": 1.0}, "extra_info": {"task": "EMO", "dataset": "meld"}}])
    {'reward/score': 1.0, 'reward/task/EMO/score': 1.0, 'reward/dataset/meld/score': 1.0}
    """
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in row["parts"].items():
            for place in ("", f"task/{row['extra_info']['task']}/", f"dataset/{row['extra_info']['dataset']}/"):
                values[f"reward/{place}{name}"].append(value)
    return {name: float(np.mean(found)) for name, found in values.items()}


def equal_groups(rows: Iterable[Mapping[str, Any]]) -> float:
    """The share of prompts whose responses all earn the same reward, so that none of them has an advantage.

    >>> equal_groups([{"uid": "a", "parts": {"score": 1.0}}, {"uid": "a", "parts": {"score": 0.0}}, {"uid": "b", "parts": {"score": 0.0}}])
    0.5
    """
    rewards: dict[str, set[float]] = defaultdict(set)
    for row in rows:
        rewards[str(row["uid"])].add(row["parts"]["score"])
    return float(np.mean([len(earned) == 1 for earned in rewards.values()]))
