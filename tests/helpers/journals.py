"""A run's journal in a folder of its own, read back: what a test looks at in place of MLflow."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hba_ray.store.folders import read_lines
from hba_ray.store.journal import FILE, JournalTracker


class ReadableJournal(JournalTracker):
    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="journal-")  # removed when nobody holds this journal any more
        super().__init__(Path(self._folder.name) / FILE)

    @property
    def metrics(self) -> dict[str, dict[int, float]]:
        """Name -> optimiser step -> value."""
        found: dict[str, dict[int, float]] = {}
        for line in self._lines("metrics"):
            for name, value in line["metrics"].items():
                found.setdefault(name, {})[line["step"]] = value
        return found

    @property
    def status(self) -> str | None:
        """How the run ended; None where it did not say so."""
        return next((line["status"] for line in self._lines("end")), None)

    def _lines(self, do: str) -> list[dict[str, Any]]:
        return [line for line in read_lines(self.file) if line["do"] == do]
