"""What the recovery study's rows say: tables, paired differences with their intervals, figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
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

_COLOURS = (BLUE, SKY, GREEN, PINK, ORANGE, YELLOW, GREY, "#000000", "#A0522D")
PLAIN, TAUGHT = "fine-tuning", "fine-tuning + KD"


def report(rows: Sequence[Row], grid: Grid) -> str:
    """Lay out all tables of a grid.

    Args:
        rows: Those of the CSV.
        grid: What to show.

    Returns:
        Markdown, a part a length of fine-tuning.
    """
    parts = []
    for epochs in grid.epochs:
        parts += [
            f"### {grid.data}, {grid.model}, {epochs} epochs",
            f"Test accuracy after the last epoch:\n\n{accuracies(rows, grid, epochs)}",
            f"After the best epoch:\n\n{accuracies(rows, grid, epochs, best=True)}",
        ]
        for against in (each for each in (PLAIN, TAUGHT) if each in grid.arms):
            told = differences(rows, grid, epochs, against)
            parts.append(f"Paired differences to {against}, points:\n\n{told}")
        for removed in (each for each in sorted(grid.removed) if _networks(rows, grid, each)):
            told = sweep(rows, grid, removed, epochs)
            parts.append(
                f"{100 * removed:g} % removed, validation accuracy of seed 0 by learning rate:\n\n"
                f"{told}"
            )
    return "\n\n".join(parts)


def finished(rows: Sequence[Row], grid: Grid) -> bool:
    """Tell whether there is a column to show: one share of weights at which all arms are done."""
    return any(
        all(len(chosen(rows, grid, removed, arm, epochs)) == grid.seeds for arm in grid.arms)
        for removed, epochs in product(grid.removed, grid.epochs)
    )


def chosen(
    rows: Sequence[Row], grid: Grid, removed: float, arm: str, epochs: int
) -> Mapping[int, Row]:
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
    rates = swept(first, grid.rates, validation)
    if any(cell not in validation for cell in first.at(rates)):
        return {}
    best = replace(first, lr=best_rate(first, grid.rates, validation))
    return {row.seed: row for row in rows if replace(row.cell, seed=best.seed) == best}


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
    shares, column = sorted(grid.removed), "best_test" if best else "test"
    lines = _head("arm", (f"{100 * share:g} %" for share in shares))
    for name, before in (("dense", "dense"), ("pruned, not trained", "pruned")):
        networks = [_networks(rows, grid, share) for share in shares]
        lines.append(_line(name, (_spread(found, before, grid.seeds) for found in networks)))
    for arm in grid.arms:
        found = [list(chosen(rows, grid, share, arm, epochs).values()) for share in shares]
        if any(found):
            lines.append(_line(arm, (_spread(each, column, grid.seeds) for each in found)))
    return "\n".join(lines)


def sweep(rows: Sequence[Row], grid: Grid, removed: float, epochs: int) -> str:
    """Lay out the sweeps of all arms: validation accuracy by learning rate, the best one bold.

    Args:
        rows: Those of the CSV.
        grid: What to show.
        removed: Share of weights removed.
        epochs: Length of fine-tuning.
    """
    found: dict[str, dict[float, float]] = {}
    for arm in grid.arms:
        first = grid.first(removed, arm, epochs)
        own = (row for row in rows if replace(row.cell, lr=first.lr) == first)
        found[arm] = {row.lr: row.validation for row in own}
    tried = sorted({lr for values in found.values() for lr in values})
    lines = _head("arm", (f"{lr:g}" for lr in tried))
    for arm, values in found.items():
        best = max(values.values(), default=0.0)
        told = {lr: f"**{v:.1f}**" if v == best else f"{v:.1f}" for lr, v in values.items()}
        lines.append(_line(arm, (told.get(lr, "") for lr in tried)))
    return "\n".join(lines)


def differences(rows: Sequence[Row], grid: Grid, epochs: int, against: str) -> str:
    """Lay out paired differences to an arm; those whose interval is clear of zero are bold.

    Args:
        rows: Those of the CSV.
        grid: What to show.
        epochs: Length of fine-tuning.
        against: The arm that is subtracted.
    """
    shares = sorted(grid.removed)
    lines = _head("arm", (f"{100 * share:g} %" for share in shares))
    for arm in (arm for arm in grid.arms if arm != against):
        found = [difference(rows, grid, share, epochs, arm, against) for share in shares]
        if any(found):
            lines.append(_line(arm, map(_interval, found)))
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
        Mean difference of test accuracies after the last epoch in points, and its 95 % interval;
        None below two seeds that both have.
    """
    own, other = (chosen(rows, grid, removed, each, epochs) for each in (arm, against))
    seeds = sorted(own.keys() & other.keys())
    if len(seeds) < 2:
        return None
    pairs = [own[seed].test for seed in seeds], [other[seed].test for seed in seeds]
    interval = ttest_rel(*pairs).confidence_interval(0.95)
    return fmean(pairs[0]) - fmean(pairs[1]), float(interval.low), float(interval.high)


def _interval(found: tuple[float, float, float] | None) -> str:
    if found is None:
        return ""
    mean, low, high = found
    told = f"**{mean:+.2f}**" if low > 0 or high < 0 else f"{mean:+.2f}"
    return f"{told} [{low:+.2f}, {high:+.2f}]"


def _spread(rows: Sequence[Row], column: str, seeds: int) -> str:
    values = [getattr(row, column) for row in rows]
    if not values:
        return ""
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{fmean(values):.1f}{spread}" + (f" ({len(values)})" if len(values) < seeds else "")


def _networks(rows: Sequence[Row], grid: Grid, removed: float) -> list[Row]:
    """One row a seed: all rows of a slim network tell the same of it before fine-tuning."""
    same = (grid.data, grid.model, removed)
    return list({r.seed: r for r in rows if (r.data, r.model, r.removed) == same}.values())


def _head(first: str, columns: Iterable[str]) -> list[str]:
    names = [first, *columns]
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def _line(first: str, cells: Iterable[str]) -> str:
    return f"| {' | '.join((first, *cells))} |"


def figure(rows: Sequence[Row], grid: Grid, epochs: int, path: Path) -> None:
    """Draw accuracies against weights removed, and below the paired differences to fine-tuning.

    Args:
        rows: Those of the CSV.
        grid: What to draw.
        epochs: Length of fine-tuning.
        path: Where the PNG goes.
    """
    drawn = new_figure(6.4, 7.2)
    above, below = (new_axes(drawn, "y", 1, place, 2) for place in (1, 2))
    below.axhline(0, color=GREY, linewidth=0.8)
    shares = sorted(grid.removed)
    for nth, (arm, colour) in enumerate(zip(grid.arms, _COLOURS, strict=False)):
        found = [chosen(rows, grid, share, arm, epochs) for share in shares]
        means = [fmean(r.test for r in seeds.values()) if seeds else math.nan for seeds in found]
        above.plot([100 * s for s in shares], means, "o-", color=colour, markersize=3, label=arm)
        spans = [difference(rows, grid, share, epochs, arm, PLAIN) for share in shares]
        known = [(s, span) for s, span in zip(shares, spans, strict=True) if span is not None]
        if known and arm != PLAIN:
            places = [100 * share + 0.15 * (nth - len(grid.arms) / 2) for share, _ in known]
            middle = [mean for _, (mean, _, _) in known]
            reach = [[m - low for _, (m, low, _) in known], [h - m for _, (m, _, h) in known]]
            below.errorbar(places, middle, reach, fmt="o", color=colour, markersize=3, capsize=2)
    above.set(ylabel="test accuracy (%)")
    below.set(xlabel="weights removed (%)", ylabel=f"minus {PLAIN} (points)")
    drawn.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    save(drawn, path)
