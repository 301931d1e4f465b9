"""The bar moves on a terminal and says a line now and then elsewhere."""

import io
import re

import pytest
from rich.console import Console

from hba_ray import progress as module
from hba_ray.progress import phases, progress


def test_a_file_gets_plain_lines_with_values_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PLAIN_SECONDS", 0.0)
    console = Console(file=io.StringIO(), width=200)
    with progress("sft", total=3, console=console) as bar:
        for step in range(3):
            bar.show(loss=1 / (step + 1), epoch=1)
            bar.advance()
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 3
    assert re.fullmatch(r"sft: 1/3 \(0 s(, \d+ s left)?\)  loss 1  epoch 1", lines[0])
    assert re.fullmatch(r"sft: 3/3 \(0 s, 0 s left\)  loss 0\.3333  epoch 1", lines[2])


def test_a_quick_step_says_nothing_in_a_file() -> None:
    console = Console(file=io.StringIO())
    with progress("quick", console=console) as bar:
        bar.advance(5)
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_a_terminal_gets_a_bar() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with progress("decode", total=2, console=console) as bar:
        bar.show(rows=7)
        bar.advance(2)
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert "decode" in drawn and "2/2" in drawn and "100%" in drawn and "rows 7" in drawn


def test_the_bar_goes_to_standard_error(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PLAIN_SECONDS", 0.0)
    with progress("step", total=1) as bar:
        bar.advance()
    captured = capsys.readouterr()
    assert captured.out == "" and "step: 1/1" in captured.err


def test_phases_have_a_bar_each_one_after_the_other() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with phases("describe", console=console) as tell:
        for phase, done in (("clips", 1), ("clips", 2), ("pose", 0), ("pose", 3)):
            tell(phase, done, 2 if phase == "clips" else 3)
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert drawn.index("describe clips") < drawn.rindex("2/2") < drawn.index("describe pose") < drawn.rindex("3/3")
