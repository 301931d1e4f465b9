"""What an extraction of descriptors has done, stream by stream."""

from __future__ import annotations

from dataclasses import dataclass

SILENCE = 1e-3
"""Peaks below this share of full scale, -60 dB, count as silence."""


@dataclass(frozen=True)
class StreamSummary:
    """The state of one stream after an extraction.

    Attributes:
        rows: rows of the splits.
        described: rows with a vector or a transcript.
        absent: rows without a clip for the stream, or with a video without sound.
        bad: reason -> rows whose clip cannot be described; they count as without the stream.
        clips: different clips of all rows.
        extracted: clips that this extraction described; the others were in the table.
        seconds: wall time.
        silent: rows whose sound stays below SILENCE; they are described all the same.
    """

    rows: int
    described: int
    absent: int
    bad: dict[str, int]
    clips: int
    extracted: int
    seconds: float
    silent: int = 0


@dataclass(frozen=True)
class Summary:
    """The result of an extraction.

    Attributes:
        streams: stream -> its state.
        unreadable: reason -> rows that could not be read.
    """

    streams: dict[str, StreamSummary]
    unreadable: dict[str, int]
