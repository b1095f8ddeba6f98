"""What the recovery study's rows say: tables, paired differences with their intervals, figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from statistics import fmean, stdev

from scipy.stats import ttest_rel

from benchmarks.recovery_plan import Grid, Row

# Where a table's columns come from: share of weights removed, and epochs of fine-tuning.
Columns = Mapping[str, tuple[float, int]]
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
    for title, columns in views(rows, grid).items():
        parts += [
            f"### {grid.data}, {grid.model}, {title}",
            f"Test accuracy after the last epoch:\n\n{accuracies(rows, grid, columns)}",
            f"After the best epoch:\n\n{accuracies(rows, grid, columns, best=True)}",
        ]
        for against in (each for each in (PLAIN, TAUGHT) if each in grid.arms):
            told = differences(rows, grid, columns, against)
            parts.append(f"Paired differences to {against}, points:\n\n{told}")
        for name, (removed, epochs) in columns.items():
            told = sweep(rows, grid, removed, epochs)
            seeds = "seed 0" if grid.swept == 1 else f"{grid.swept} seeds"
            where = f"{title}, {name}: validation accuracy of {seeds} by learning rate"
            parts.append(f"{where}:\n\n{told}")
    return "\n\n".join(parts)


def views(rows: Sequence[Row], grid: Grid) -> Mapping[str, Columns]:
    """Tell what tables a grid has: one of all shares, or one a share over several lengths.

    Args:
        rows: Those of the CSV; a share or length of which there are none is left out.
        grid: The grid.

    Returns:
        By title, the columns.
    """
    shares = [(f"{100 * share:g} %", share) for share in sorted(grid.removed)]
    if len(grid.epochs) == 1:
        (epochs,) = grid.epochs
        found = {f"{epochs} epochs": {name: (share, epochs) for name, share in shares}}
    else:
        lengths = [(f"{epochs} epochs", epochs) for epochs in sorted(grid.epochs)]
        found = {
            f"{name} removed": {each: (share, epochs) for each, epochs in lengths}
            for name, share in shares
        }
    begun = {
        title: {name: place for name, place in columns.items() if _begun(rows, grid, place)}
        for title, columns in found.items()
    }
    return {title: columns for title, columns in begun.items() if columns}


def _begun(rows: Sequence[Row], grid: Grid, place: tuple[float, int]) -> bool:
    return any(chosen(rows, grid, place[0], arm, place[1]) for arm in grid.arms)


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
    found = grid.sweep(removed, arm, epochs)
    best = found.best({row.cell: row.validation for row in rows})
    if best is None:
        return {}
    at_best = replace(found.cell, lr=best)
    return {row.seed: row for row in rows if replace(row.cell, seed=at_best.seed) == at_best}


def accuracies(rows: Sequence[Row], grid: Grid, columns: Columns, *, best: bool = False) -> str:
    """Lay out test accuracies, arms down.

    Args:
        rows: Those of the CSV.
        grid: What to show.
        columns: What stands across, of `views`.
        best: After the epoch that was best on validation images, not after the last one.

    Returns:
        Markdown; mean and standard deviation over seeds, and how many where some are missing.
    """
    column = "best_test" if best else "test"
    lines = _head("arm", columns)
    for name, before in (("dense", "dense"), ("pruned, not trained", "pruned")):
        networks = [_networks(rows, grid, share) for share, _ in columns.values()]
        lines.append(_line(name, (_spread(found, before, grid.seeds) for found in networks)))
    for arm in grid.arms:
        found = [
            list(chosen(rows, grid, share, arm, epochs).values())
            for share, epochs in columns.values()
        ]
        if any(found):
            lines.append(_line(arm, (_spread(each, column, grid.seeds) for each in found)))
    return "\n".join(lines)


def sweep(rows: Sequence[Row], grid: Grid, removed: float, epochs: int) -> str:
    """Lay out the sweeps of all arms: mean validation accuracy by learning rate, the chosen bold.

    Args:
        rows: Those of the CSV.
        grid: What to show.
        removed: Share of weights removed.
        epochs: Length of fine-tuning.
    """
    validation = {row.cell: row.validation for row in rows}
    sweeps = {arm: grid.sweep(removed, arm, epochs) for arm in grid.arms}
    found = {arm: each for arm, each in sweeps.items() if each.best(validation) is not None}
    tried = sorted({lr for each in found.values() for lr in each.tried(validation)})
    lines = _head("arm", (f"{lr:g}" for lr in tried))
    for arm, each in found.items():
        cells = {lr: each.cells([lr]) for lr in each.tried(validation)}
        means = {lr: fmean(validation[cell] for cell in own) for lr, own in cells.items()}
        told = {lr: f"{mean:.1f}" for lr, mean in means.items()}
        told |= {lr: f"**{told[lr]}**" for lr in [each.best(validation)] if lr is not None}
        lines.append(_line(arm, (told.get(lr, "") for lr in tried)))
    return "\n".join(lines)


def differences(rows: Sequence[Row], grid: Grid, columns: Columns, against: str) -> str:
    """Lay out paired differences to an arm; those whose interval is clear of zero are bold.

    Args:
        rows: Those of the CSV.
        grid: What to show.
        columns: What stands across, of `views`.
        against: The arm that is subtracted.
    """
    lines = _head("arm", columns)
    for arm in (arm for arm in grid.arms if arm != against):
        found = [difference(rows, grid, *place, arm, against) for place in columns.values()]
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
