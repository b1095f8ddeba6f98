"""How a pruning method got to its slim net: what it watched while training, or its scores."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from timm_linop.errors import DataError
from timm_linop.plots.canvas import BLUE, ORANGE, new_axes, new_figure, save


def convergence(convergence_csv: Path, out: Path) -> Path:
    r"""Draw what a method that trains watched, against its steps, a panel for each column.

    Args:
        convergence_csv: A run's ``convergence.csv``: a column ``step`` and any others of numbers.
            What is above zero all along and spans a factor of 30 and more has a logarithmic scale.
        out: Where the PNG goes.

    Returns:
        ``out``.

    Raises:
        DataError: The file is missing, or holds nothing to draw.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "c.csv").write_text("step,residual\n10,0.5\n20,0.01\n")
        >>> convergence(folder / "c.csv", folder / "convergence.png").name
        'convergence.png'
    """
    try:
        with convergence_csv.open(newline="", encoding="utf-8") as file:
            rows = [{key: float(cell) for key, cell in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{convergence_csv} cannot be read: {error}; prune.py writes it."
        ) from error
    names = [name for name in (rows[0] if rows else {}) if name != "step"]
    if not names:
        raise DataError(f"{convergence_csv} holds nothing to draw; prune.py writes it.")
    lines, columns = (len(names) + 1) // 2, min(len(names), 2)
    figure = new_figure(3.9 * columns, 2.6 * lines)
    steps = [row["step"] for row in rows]
    for place, name in enumerate(names, start=1):
        axes = new_axes(figure, "y", columns, place, lines)
        values = [row[name] for row in rows]
        axes.plot(steps, values, color=BLUE, marker="o" if len(rows) <= 30 else "", markersize=3.5)
        axes.set(xlabel="step", ylabel=name.replace("_", " "))
        if min(values) > 0 and max(values) > 30 * min(values):
            axes.set_yscale("log")
    return save(figure, out)


def scores(
    by_group: Mapping[str, Sequence[float]], removed: Mapping[str, Sequence[int]], out: Path
) -> Path:
    """Draw all scores in ascending order, and which of them went.

    Args:
        by_group: The score of each unit, by group.
        removed: Units that went, by group.
        out: Where the PNG goes.

    Returns:
        ``out``.

    Raises:
        DataError: There are no scores.

    Example:
        >>> import tempfile
        >>> out = Path(tempfile.mkdtemp()) / "scores.png"
        >>> scores({"conv1": [0.1, 0.4, 0.2]}, {"conv1": [0]}, out).name
        'scores.png'
    """
    told = [
        (score, unit in set(removed.get(group, ())))
        for group, own in by_group.items()
        for unit, score in enumerate(own)
    ]
    if not told:
        raise DataError("there are no scores to draw; give those of a group at least.")
    told.sort()
    values, went = np.array([score for score, _ in told]), np.array([gone for _, gone in told])
    figure = new_figure(6.5, 3.2)
    axes = new_axes(figure, "y")
    places = np.arange(len(told))
    axes.scatter(places[~went], values[~went], s=3, color=BLUE, label=f"{(~went).sum():,} stay")
    axes.scatter(places[went], values[went], s=3, color=ORANGE, label=f"{went.sum():,} go")
    axes.set(xlabel="channels, in the order of their scores", ylabel="score")
    if values[0] > 0 and values[-1] > 30 * values[0]:
        axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=9, markerscale=3)
    return save(figure, out)
