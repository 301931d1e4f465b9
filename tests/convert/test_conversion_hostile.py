"""Whatever is done to the files of a corpus: its converter gives rows, or an error that says where."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hba_ray.convert.base import Converted
from tests.helpers.converted import converted
from tests.helpers.corpora import WRITERS, write_mosei
from tests.helpers.hostile import Outcome, hostile, outcome

READ = (".csv", ".json", ".txt", ".pkl", ".vtt")
JUNK = (
    b"",
    b"\x00",
    b"\xff",
    b"<video>",
    b"../..",
    b'"',
    b"\t",
    b",",
    b"\n",
    b"nan",
    b"-1",
    b"1e999",
    b"[" * 5_000,
    b"null",
    b"{}",
    b"\\ud800",
)
PLACES = {source: write for source, write in WRITERS.items() if source not in ("tess", "ptsd_in_the_wild")}
"""Corpora that are told by files; all of the other two is in the names of their clips."""


def damage(content: bytes, random: Random) -> bytes:
    """The content with one to three changes: a part replaced or cut out, lines lost, doubled or turned round, the end lost."""
    for _ in range(random.randint(1, 3)):
        lines = content.split(b"\n")
        at = random.randrange(len(content) + 1)
        kind = random.randrange(5)
        if kind == 0:
            content = content[:at] + random.choice(JUNK) + content[at + random.randint(0, 3) :]
        elif kind == 1:
            content = content[: at + 1]
        elif kind == 2:
            lines.insert(random.randrange(len(lines) + 1), random.choice(lines))
            content = b"\n".join(lines)
        elif kind == 3:
            random.shuffle(lines)
            content = b"\n".join(lines)
        else:
            cells = random.choice((b",", b"\t", b": ", b" "))
            parts = content.split(cells)
            parts[random.randrange(len(parts))] = random.choice(JUNK)
            content = cells.join(parts)
    return content


@pytest.mark.hostile("rows")
@pytest.mark.parametrize("source", sorted(PLACES))
def test_any_files_of_a_corpus_are_converted_or_refused(tmp_path: Path, source: str):
    chosen = {"datasets": ["mosei_senti"]} if source == "mosei" else {}
    folder = write_mosei(tmp_path, csd=False) if source == "mosei" else PLACES[source](tmp_path)
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in READ and path.stat().st_size]
    converted(source, folder, **chosen)
    outcomes = Counter[Outcome]()

    @hostile("rows", 30)
    @given(st.integers(0, 2**32 - 1), st.sampled_from(["fail", "drop"]))
    def check(seed: int, on_bad_row: str) -> None:
        random = Random(seed)
        path = random.choice(files)
        whole = path.read_bytes()
        try:
            path.write_bytes(damage(whole, random))
            outcomes[outcome(lambda: drops(converted(source, folder, on_bad_row=on_bad_row, **chosen)))] += 1
        finally:
            path.write_bytes(whole)

    def drops(made: Converted) -> Counter[str]:
        return Counter(drop.reason for drop in made.drops)

    check()
    assert outcomes[Outcome.REFUSED]
