"""What the recovery study's rows say: tables, paired differences with their intervals, figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

from scipy.stats import ttest_rel

from benchmarks.recovery_plan import Grid, Row, best_rate, swept
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

_COLOURS = (BLUE, SKY, GREEN, PINK, ORANGE, YELLOW, GREY, "#000000")
# Rows of one arm at one place of a grid, at the rate its sweep chose, by seed.
Seeds = Mapping[int, Row]


def chosen(rows: Sequence[Row], grid: Grid, removed: float, arm: str, epochs: int) -> Seeds:
    """Pick an arm's rows at the learning rate that its sweep chose.

    Args:
        rows: Those of the CSV.
        grid: Whose arm it is.
        removed: Share of weights removed.
        arm: The arm.
        epochs: Length of fine-tuning.

    Returns:
        Rows by seed; none where the sweep is not finished.
    """
    validation = {row.cell: row.validation for row in rows}
    first = grid.first(removed, arm, epochs)
    rates = swept(first, validation)
    if any(cell not in validation for cell in first.at(rates)):
        return {}
    same = replace(first, lr=best_rate(first, validation))
    return {row.seed: row for row in rows if replace(row.cell, seed=same.seed) == same}


def accuracies(rows: Sequence[Row], grid: Grid, epochs: int, *, best: bool = False) -> str:
    """Lay out test accuracies: arms down, shares of weights removed across.

    Args:
        rows: Those of the CSV.
        grid: What to show.
        epochs: Length of fine-tuning.
        best: After the epoch that was best on validation images, not after the last one.

    Returns:
        Markdown; mean and standard deviation over seeds, and how many where some are missing.
    """

    def cell(seeds: Seeds) -> str:
        values = [row.best_test if best else row.test for row in seeds.values()]
        if not values:
            return ""
        spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
        short = f" ({len(values)})" if len(values) < grid.seeds else ""
        return f"{fmean(values):.1f}{spread}{short}"

    def before(what: str) -> list[str]:
        found = (_networks(rows, grid, removed) for removed in sorted(grid.removed))
        return [f"{fmean(v):.1f}" if (v := [getattr(r, what) for r in f]) else "" for f in found]

    lines = _laid_out(rows, grid, epochs, cell, grid.arms)
    lines[2:2] = [
        f"| {told} | {' | '.join(before(what))} |"
        for told, what in (("dense", "dense"), ("pruned, not trained", "pruned"))
    ]
    return "\n".join(lines)


def rates(rows: Sequence[Row], grid: Grid, epochs: int) -> str:
    """Lay out the learning rates that validation images chose."""

    def cell(seeds: Seeds) -> str:
        return f"{next(iter(seeds.values())).lr:g}" if seeds else ""

    return "\n".join(_laid_out(rows, grid, epochs, cell, grid.arms))


def differences(rows: Sequence[Row], grid: Grid, epochs: int, against: str) -> str:
    """Lay out paired differences to an arm, with 95 % t intervals over the seeds that both have.

    Args:
        rows: Those of the CSV.
        grid: What to show.
        epochs: Length of fine-tuning.
        against: The arm that is subtracted.
    """
    lines = [_head(grid, f"minus {against}"), _rule(grid)]
    for arm in (arm for arm in grid.arms if arm != against):
        cells = []
        for removed in sorted(grid.removed):
            found = difference(rows, grid, removed, epochs, arm, against)
            cells.append("" if found is None else _interval(found))
        if any(cells):
            lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def difference(
    rows: Sequence[Row], grid: Grid, removed: float, epochs: int, arm: str, against: str
) -> tuple[float, float, float] | None:
    """Compare two arms seed by seed, by a paired t test.

    Args:
        rows: Those of the CSV.
        grid: Whose arms they are.
        removed: Share of weights removed.
        epochs: Length of fine-tuning.
        arm: The one.
        against: The other, which is subtracted.

    Returns:
        Mean difference of test accuracies in points, and its 95 % interval; None below two seeds.
    """
    own, other = (chosen(rows, grid, removed, each, epochs) for each in (arm, against))
    seeds = sorted(own.keys() & other.keys())
    if len(seeds) < 2:
        return None
    pairs = [own[seed].test for seed in seeds], [other[seed].test for seed in seeds]
    interval = ttest_rel(*pairs).confidence_interval(0.95)
    return fmean(pairs[0]) - fmean(pairs[1]), float(interval.low), float(interval.high)


def _interval(found: tuple[float, float, float]) -> str:
    mean, low, high = found
    clear = "**" if low > 0 or high < 0 else ""
    return f"{clear}{mean:+.2f}{clear} [{low:+.2f}, {high:+.2f}]"


def _networks(rows: Sequence[Row], grid: Grid, removed: float) -> list[Row]:
    """One row a seed: all rows of a slim network tell of the same ones before fine-tuning."""
    same = [r for r in rows if (r.study, r.model, r.removed) == (grid.study, grid.model, removed)]
    return list({row.seed: row for row in same}.values())


def _laid_out(
    rows: Sequence[Row],
    grid: Grid,
    epochs: int,
    cell: Callable[[Seeds], str],
    arms: Sequence[str],
) -> list[str]:
    lines = [_head(grid, "arm"), _rule(grid)]
    for arm in arms:
        found = (chosen(rows, grid, removed, arm, epochs) for removed in sorted(grid.removed))
        lines.append(f"| {arm} | {' | '.join(map(cell, found))} |")
    return lines


def _head(grid: Grid, first: str) -> str:
    shares = (f"{100 * removed:g} %" for removed in sorted(grid.removed))
    return f"| {first} | {' | '.join(shares)} |"


def _rule(grid: Grid) -> str:
    return "|---" * (len(grid.removed) + 1) + "|"


def figure(rows: Sequence[Row], grid: Grid, epochs: int, against: str, path: Path) -> None:
    """Draw accuracies against weights removed, and below the paired differences to an arm.

    Args:
        rows: Those of the CSV.
        grid: What to draw.
        epochs: Length of fine-tuning.
        against: The arm that is subtracted.
        path: Where the PNG goes.
    """
    drawn = new_figure(6.4, 7.2)
    above, below = (new_axes(drawn, "y", 1, place, 2) for place in (1, 2))
    below.axhline(0, color=GREY, linewidth=0.8)
    places = sorted(grid.removed)
    for nth, arm in enumerate(grid.arms):
        colour = _COLOURS[nth % len(_COLOURS)]
        found = [chosen(rows, grid, removed, arm, epochs) for removed in places]
        values = [fmean(r.test for r in f.values()) if f else math.nan for f in found]
        above.plot([100 * p for p in places], values, "o-", color=colour, markersize=3, label=arm)
        spans = [difference(rows, grid, p, epochs, arm, against) for p in places]
        known = [(p, s) for p, s in zip(places, spans, strict=True) if s is not None]
        if known and arm != against:
            shifted = [100 * p + 0.15 * (nth - len(grid.arms) / 2) for p, _ in known]
            means = [mean for _, (mean, _, _) in known]
            errors = [[m - low for _, (m, low, _) in known], [h - m for _, (m, _, h) in known]]
            below.errorbar(shifted, means, errors, fmt="o", color=colour, markersize=3, capsize=2)
    above.set(ylabel="test accuracy (%)")
    below.set(xlabel="weights removed (%)", ylabel=f"minus {against} (points)")
    drawn.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    save(drawn, path)
