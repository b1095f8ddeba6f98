"""What the recovery study's rows say: tables, paired differences with their intervals, figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev

from scipy.stats import ttest_rel

from benchmarks.recovery_arms import EXPANDED, PLAIN, TAUGHT
from benchmarks.recovery_plan import Grid, Row, Rows, validation_of

# Where a column comes from: share of weights removed, and epochs of fine-tuning.
Place = tuple[float, int]
Columns = Mapping[str, Place]


def report(rows: Rows, name: str, grid: Grid) -> str:
    """Lay out all tables of a grid.

    Args:
        rows: Those of the CSV.
        name: What the grid is called.
        grid: What to show.

    Returns:
        Markdown, a part a length of fine-tuning.
    """
    parts = []
    for title, columns in views(rows, grid).items():
        parts += [
            f"### `{name}`: {grid.data}, {grid.model}, {title}",
            f"Test accuracy after the last epoch:\n\n{accuracies(rows, grid, columns)}",
            f"After the best epoch:\n\n{accuracies(rows, grid, columns, best=True)}",
        ]
        for named, pairs in pairings(grid).items():
            told = differences(rows, grid, columns, pairs)
            parts.append(f"Paired differences {named}, points:\n\n{told}")
        for column, (removed, epochs) in columns.items():
            told = sweep(rows, grid, removed, epochs)
            seeds = "seed 0" if grid.swept == 1 else f"{grid.swept} seeds"
            where = f"{title}, {column}: validation accuracy of {seeds} by learning rate"
            parts.append(f"{where}:\n\n{told}")
    return "\n\n".join(parts)


def pairings(grid: Grid) -> Mapping[str, Mapping[str, str]]:
    """Tell which differences a grid shows.

    Args:
        grid: The grid.

    Returns:
        By what they are to: arms, each with the one that is subtracted.
    """
    found = {
        f"to {each}": {arm: each for arm in grid.arms if arm != each}
        for each in (PLAIN, TAUGHT)
        if each in grid.arms
    }
    twice = {arm: plain for arm, plain in EXPANDED.items() if {arm, plain} <= set(grid.arms)}
    return found | ({"of expanded arms to the same without expansion": twice} if twice else {})


def views(rows: Rows, grid: Grid) -> Mapping[str, Columns]:
    """Tell what tables a grid has: one of all shares, or one a share over several lengths.

    Args:
        rows: Those of the CSV.
        grid: The grid.

    Returns:
        By title, the columns: those that are whole, with all arms on all seeds.
    """
    shares = [(percent(share), share) for share in sorted(grid.removed)]
    if len(grid.epochs) == 1:
        (epochs,) = grid.epochs
        found = {f"{epochs} epochs": {name: (share, epochs) for name, share in shares}}
    else:
        lengths = [(f"{epochs} epochs", epochs) for epochs in sorted(grid.epochs)]
        found = {
            f"{name} removed": {each: (share, epochs) for each, epochs in lengths}
            for name, share in shares
        }
    whole = {
        title: {name: place for name, place in columns.items() if is_whole(rows, grid, *place)}
        for title, columns in found.items()
    }
    return {title: columns for title, columns in whole.items() if columns}


def is_whole(rows: Rows, grid: Grid, removed: float, epochs: int) -> bool:
    """Tell whether all arms of a grid are done on all seeds."""
    found = (chosen(rows, grid, removed, arm, epochs) for arm in grid.arms)
    return all(len(seeds) == grid.seeds for seeds in found)


def chosen(rows: Rows, grid: Grid, removed: float, arm: str, epochs: int) -> Mapping[int, Row]:
    """Pick an arm's rows at the learning rate that its sweep chose.

    Args:
        rows: Those of the CSV.
        grid: Whose arm it is.
        removed: Share of weights removed.
        arm: The arm.
        epochs: Length of fine-tuning.

    Returns:
        Rows by seed, of the grid's seeds; none where the sweep is not finished.
    """
    found = grid.sweep(removed, arm, epochs)
    best = found.best(validation_of(rows))
    if best is None:
        return {}
    at_best = (replace(found.cell, lr=best, seed=seed) for seed in range(grid.seeds))
    return {cell.seed: rows[cell] for cell in at_best if cell in rows}


def accuracies(rows: Rows, grid: Grid, columns: Columns, *, best: bool = False) -> str:
    """Lay out test accuracies, arms down.

    Args:
        rows: Those of the CSV.
        grid: What to show.
        columns: What stands across, of `views`.
        best: After the epoch that was best on validation images, not after the last one.

    Returns:
        Markdown; mean and standard deviation over seeds.
    """
    column = "best_test" if best else "test"
    lines = head("arm", columns)
    for name, before in (("dense", "dense"), ("pruned, not trained", "pruned")):
        networks = (chosen(rows, grid, share, PLAIN, epochs) for share, epochs in columns.values())
        lines.append(line(name, (spread(seeds, before) for seeds in networks)))
    for arm in grid.arms:
        found = (chosen(rows, grid, share, arm, epochs) for share, epochs in columns.values())
        lines.append(line(arm, (spread(seeds, column) for seeds in found)))
    return "\n".join(lines)


def sweep(rows: Rows, grid: Grid, removed: float, epochs: int) -> str:
    """Lay out the sweeps of all arms: mean validation accuracy by learning rate, the chosen bold.

    Args:
        rows: Those of the CSV.
        grid: What to show.
        removed: Share of weights removed.
        epochs: Length of fine-tuning.
    """
    validation = validation_of(rows)
    found = {arm: grid.sweep(removed, arm, epochs) for arm in grid.arms}
    tried = sorted({lr for each in found.values() for lr in each.tried(validation)})
    lines = head("arm", (f"{lr:g}" for lr in tried))
    for arm, each in found.items():
        cells = {lr: each.cells([lr]) for lr in each.tried(validation)}
        means = {lr: fmean(validation[cell] for cell in own) for lr, own in cells.items()}
        told = {lr: f"{mean:.1f}" for lr, mean in means.items()}
        told |= {lr: f"**{told[lr]}**" for lr in [each.best(validation)] if lr is not None}
        lines.append(line(arm, (told.get(lr, "") for lr in tried)))
    return "\n".join(lines)


def differences(rows: Rows, grid: Grid, columns: Columns, pairs: Mapping[str, str]) -> str:
    """Lay out paired differences of arms; those whose interval is clear of zero are bold.

    Args:
        rows: Those of the CSV.
        grid: What to show.
        columns: What stands across, of `views`; several shares have their mean beside them.
        pairs: Arms, and those that are subtracted.
    """
    places = {name: [place] for name, place in columns.items()}
    if len(places) > 1 and len(grid.epochs) == 1:
        places["mean"] = list(columns.values())
    lines = head("arm", places)
    for arm, against in pairs.items():
        found = (difference(rows, grid, each, arm, against) for each in places.values())
        lines.append(line(arm, (interval(*each) for each in found)))
    return "\n".join(lines)


def difference(
    rows: Rows, grid: Grid, places: Sequence[Place], arm: str, against: str
) -> tuple[float, float, float]:
    """Compare two arms seed by seed, by a paired t test.

    Args:
        rows: Those of the CSV.
        grid: Whose arms they are.
        places: Shares and lengths; a seed counts with its mean over them.
        arm: The one.
        against: The other, which is subtracted.

    Returns:
        Mean difference of test accuracies after the last epoch in points, and its 95 % interval.
    """
    return paired(*(_tests(rows, grid, places, each) for each in (arm, against)))


def paired(own: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Tell the mean difference of accuracies of the same seeds, and its 95 % interval.

    Args:
        own: Of the one.
        other: Those that are subtracted.
    """
    found = ttest_rel(own, other).confidence_interval(0.95)
    return fmean(own) - fmean(other), float(found.low), float(found.high)


def _tests(rows: Rows, grid: Grid, places: Sequence[Place], arm: str) -> list[float]:
    found = [chosen(rows, grid, removed, arm, epochs) for removed, epochs in places]
    return [fmean(seeds[seed].test for seeds in found) for seed in range(grid.seeds)]


def signed(mean: float, low: float, high: float) -> str:
    """Write a difference, bold where its interval is clear of zero."""
    return f"**{mean:+.2f}**" if low > 0 or high < 0 else f"{mean:+.2f}"


def interval(mean: float, low: float, high: float) -> str:
    """Write a difference and its interval."""
    return f"{signed(mean, low, high)} [{low:+.2f}, {high:+.2f}]"


def spread(seeds: Mapping[int, Row], column: str) -> str:
    """Write a column's mean and standard deviation over seeds."""
    values = [getattr(row, column) for row in seeds.values()]
    return f"{fmean(values):.1f} ± {stdev(values):.1f}"


def percent(share: float) -> str:
    """Write a share of weights removed."""
    return f"{100 * share:g} %"


def head(first: str, columns: Iterable[str]) -> list[str]:
    """Begin a table of Markdown."""
    names = [first, *columns]
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def line(first: str, cells: Iterable[str]) -> str:
    """Write a line of it."""
    return f"| {' | '.join((first, *cells))} |"
