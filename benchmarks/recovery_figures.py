"""What the recovery study's rows say, drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes

from benchmarks.recovery_arms import PLAIN
from benchmarks.recovery_plan import Grid, Rows
from benchmarks.recovery_summary import Columns, chosen, difference
from timm_linop.plots.canvas import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    YELLOW,
    new_axes,
    new_figure,
    save,
)

COLOURS = (BLUE, SKY, GREEN, PINK, ORANGE, YELLOW, GREY, "#000000", "#A0522D")
_DOTS: dict[str, Any] = {"markersize": 3, "capsize": 2}


def draw(rows: Rows, grid: Grid, columns: Columns, path: Path) -> None:
    """Draw curves where that can be read, else the differences alone.

    Args:
        rows: Those of the CSV.
        grid: What to draw.
        columns: What stands across, of `recovery_summary.views`.
        path: Where the PNG goes.
    """
    if len(grid.arms) > len(COLOURS) or len(columns) == 1:
        differences(rows, grid, columns, path)
    else:
        curves(rows, grid, columns, path)


def curves(rows: Rows, grid: Grid, columns: Columns, path: Path) -> None:
    """Draw accuracies by weights removed or by length, below the differences to fine-tuning.

    Args:
        rows: Those of the CSV.
        grid: What to draw.
        columns: What stands across.
        path: Where the PNG goes.
    """
    drawn = new_figure(6.4, 7.2)
    above, below = (new_axes(drawn, "y", 1, place, 2) for place in (1, 2))
    below.axhline(0, color=GREY, linewidth=0.8)
    for nth, (arm, colour) in enumerate(zip(grid.arms, COLOURS, strict=False)):
        found = [chosen(rows, grid, share, arm, epochs) for share, epochs in columns.values()]
        means = [fmean(row.test for row in seeds.values()) for seeds in found]
        above.plot(range(len(columns)), means, "o-", color=colour, markersize=3, label=arm)
        if arm != PLAIN:
            shift = 0.06 * (nth - len(grid.arms) / 2)
            spans = [difference(rows, grid, [place], arm, PLAIN) for place in columns.values()]
            intervals(below, {x + shift: span for x, span in enumerate(spans)}, colour)
    for axes in (above, below):
        axes.set_xticks(range(len(columns)), list(columns))
        axes.set_xlim(-0.5, len(columns) - 0.5)
    above.set(ylabel="test accuracy (%)")
    below.set(ylabel=f"minus {PLAIN} (points)")
    drawn.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    save(drawn, path)


def differences(rows: Rows, grid: Grid, columns: Columns, path: Path) -> None:
    """Draw paired differences to fine-tuning with their intervals, an arm a line.

    Args:
        rows: Those of the CSV.
        grid: What to draw.
        columns: What stands side by side.
        path: Where the PNG goes.
    """
    arms = [arm for arm in reversed(grid.arms) if arm != PLAIN]
    drawn = new_figure(2.4 + 2.4 * len(columns), 1 + 0.25 * len(arms))
    for nth, (name, place) in enumerate(columns.items()):
        axes = new_axes(drawn, "x", len(columns), nth + 1)
        axes.axvline(0, color=GREY, linewidth=0.8)
        spans = [difference(rows, grid, [place], arm, PLAIN) for arm in arms]
        intervals(axes, dict(enumerate(spans)), BLUE, lying=True)
        axes.set_yticks(range(len(arms)), arms if nth == 0 else [""] * len(arms), fontsize=8)
        axes.set_title(name, fontsize=9)
        axes.set(xlabel=f"minus {PLAIN} (points)")
    save(drawn, path)


def intervals(
    axes: Axes,
    spans: Mapping[float, tuple[float, float, float]],
    colour: str,
    *,
    lying: bool = False,
) -> None:
    """Draw intervals at their places; lying ones have their places on y."""
    for place, (mean, low, high) in spans.items():
        reach = [[mean - low], [high - mean]]
        where = {"x": mean, "y": place} if lying else {"x": place, "y": mean}
        axes.errorbar(
            **where, **{"xerr" if lying else "yerr": reach}, fmt="o", color=colour, **_DOTS
        )
