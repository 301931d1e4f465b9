"""`hba judge`: grade a finished run again, and see how far graders agree."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hba_ray.cli.base import check_run, console, say, show

app = typer.Typer()


@app.command()
def judge(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, as `hba run` prints it.")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Of the judge, e.g. prompts=paraphrased.")] = None,
    labels: Annotated[Path | None, typer.Option(help="CSV of a person's labels: sample_id, label, and dataset where ids repeat.")] = None,
    arm: Annotated[str | None, typer.Option(help="The arm to grade; all by default.")] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Instead of grading, write a CSV of so many answers for a person to label.")
    ] = None,
) -> None:
    """Grade a run's open answers with another judge or other prompts, without generating them again."""
    check_run(run, "resolved.yaml")
    from hba_ray.report.formats import terminal
    from hba_ray.sweeps.judging import TITLE, judge_run, write_label_sheet

    if sample is not None:
        show("labels", write_label_sheet(run, arm, sample))
        return
    judged = judge_run(run, settings or [], say, labels=labels, only=arm)
    console.print(terminal(TITLE, judged.sheets))
    show("graders", judged.folder / "graders.md")
