"""Figures of a report, as image files."""

from __future__ import annotations

from pathlib import Path

from hba_ray.report.model import Report

INCHES = 8.0
ROW_INCHES = 0.28


def save_score_figure(report: Report, file: Path) -> None:
    """Every dataset's scores, an arm below the other, with their intervals and the majority baseline."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    datasets = list(dict.fromkeys(score.dataset for scores in report.scores.values() for score in scores.datasets))
    arms = list(report.scores)
    height = max(2.0, 1.2 + ROW_INCHES * len(arms)) * max(1, len(datasets))
    figure = Figure(figsize=(INCHES, height), layout="constrained")
    FigureCanvasAgg(figure)
    plots = figure.subplots(len(datasets), 1, sharex=True, squeeze=False)[:, 0] if datasets else []
    for plot, dataset in zip(plots, datasets, strict=True):
        metric = ""
        for place, arm in enumerate(arms):
            for score in report.scores[arm].datasets:
                if score.dataset != dataset or score.value is None:
                    continue
                low, high = score.interval or (score.value, score.value)
                plot.errorbar(
                    score.value, place, xerr=[[max(0.0, score.value - low)], [max(0.0, high - score.value)]], fmt="o", color="C0", capsize=3
                )
                metric = score.metric
                if score.majority is not None:
                    plot.axvline(score.majority, color="0.7", linewidth=1, zorder=0)
        plot.set_yticks(range(len(arms)), arms, fontsize=8)
        plot.set_ylim(len(arms) - 0.5, -0.5)
        plot.set_xlim(-0.02, 1.02)
        plot.set_title(f"{dataset}, {metric}; the line is the majority baseline", loc="left", fontsize=9)
    figure.suptitle(report.title, fontsize=9, wrap=True)
    figure.savefig(file, dpi=120)
