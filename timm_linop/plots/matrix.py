"""Which classes a model takes for which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm

from timm_linop.errors import DataError
from timm_linop.plots.canvas import new_axes, new_figure, save, shortened

# Up to so many classes there is room for numbers in the cells, and on an axis for so many names.
_NUMBERED, _NAMED = 20, 50
# More cells than so many on a side would be too small to see.
_SEEN = 250
# A confusion of one percent is a finding: a linear scale would leave it white.
_SCALE = PowerNorm(0.5, vmin=0, vmax=100)


def confusion(matrix: Sequence[Sequence[float]], class_names: Sequence[str], out: Path) -> Path:
    """Draw how often a model takes each class for each other, in percent of the true class.

    Args:
        matrix: Numbers of images, classes x classes: a row is a true class, a column a predicted
            one. The row of a class without images stays grey. Beyond 250 classes a cell shows
            the largest share among several neighbours, so that no confusion gets too small to see.
        class_names: The classes in the matrix's order. Where they are many, not every one is
            written.
        out: Where the PNG goes.

    Returns:
        ``out``.

    Raises:
        DataError: The matrix is empty, not square, not of these classes, or does not hold counts.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> confusion([[9, 1], [2, 8]], ["cat", "dog"], folder / "confusion.png").name
        'confusion.png'
    """
    counts = _counts(matrix, class_names)
    classes, images = len(counts), counts.sum(axis=1, keepdims=True)
    shares = np.divide(100 * counts, images, out=np.full_like(counts, np.nan), where=images > 0)
    names = [shortened(name, 20) for name in class_names]
    side = min(max(0.42 * classes, 2.8), 7)  # of the matrix, in inches
    beside = 0.065 * max(map(len, names))  # room for the names
    figure = new_figure(side + beside + 1.5, side + beside + 0.8)
    axes = new_axes(figure, "y")
    axes.grid(visible=False)
    colours = colormaps["Blues"].with_extremes(bad="#E5E5E5")
    merged, block = _merged(shares)
    ends = (-0.5, block * len(merged) - 0.5)
    drawn = axes.imshow(
        merged, colours, norm=_SCALE, interpolation="nearest", extent=(*ends, *ends[::-1])
    )
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, ticks=[0, 1, 5, 10, 25, 50, 75, 100])
    largest = f"largest of {block} x {block}: " if block > 1 else ""
    bar.set_label(f"{largest}share of the true class (%)")
    bar.outline.set_visible(False)
    if classes <= _NUMBERED:
        _write_shares(axes, shares)
    _write_names(axes, names, side)
    last = classes - 0.5
    axes.set(xlabel="predicted class", ylabel="true class", xlim=(-0.5, last), ylim=(last, -0.5))
    accuracy, total = 100 * np.trace(counts) / counts.sum(), counts.sum()
    axes.set_title(f"accuracy {accuracy:.1f} % of {total:,.0f} images", fontsize=10)
    return save(figure, out)


def _counts(matrix: Sequence[Sequence[float]], class_names: Sequence[str]) -> np.ndarray:
    """Read the matrix as classes x classes floats, or refuse it."""
    rows, classes = [list(row) for row in matrix], len(class_names)
    widths = {len(row) for row in rows}
    if rows and widths != {len(rows)}:
        raise DataError(
            f"confusion needs a square matrix, true x predicted classes, got {len(rows)} rows of "
            f"{' or '.join(map(str, sorted(widths)))} counts."
        )
    if len(rows) != classes:
        raise DataError(
            f"confusion got a matrix of {len(rows)} classes and {classes} class names; give one "
            "name a class, in the matrix's order."
        )
    counts = np.array(rows, dtype=float)
    wrong = np.argwhere(~(np.isfinite(counts) & (counts >= 0)))
    if len(wrong):
        true, predicted = wrong[0]
        raise DataError(
            f"confusion got {counts[true, predicted]:g} for {class_names[true]!r} taken for "
            f"{class_names[predicted]!r}; give numbers of images, 0 or more."
        )
    if not counts.any():
        raise DataError("confusion got a matrix without images; give counts of a measured split.")
    return counts


def _merged(shares: np.ndarray) -> tuple[np.ndarray, int]:
    """Take the largest of each block of cells, so that few enough are left; tell a block's side."""
    classes = len(shares)
    block = math.ceil(classes / _SEEN)
    left = math.ceil(classes / block)
    whole = np.pad(shares, (0, left * block - classes), constant_values=np.nan)
    return np.fmax.reduce(whole.reshape(left, block, left, block), axis=(1, 3)), block


def _write_shares(axes: Axes, shares: np.ndarray) -> None:
    """Write each cell's percentage into it; none is rounded to a 0 or 100 that it is not."""
    for (row, column), share in np.ndenumerate(shares):
        if not share > 0:  # never taken for it, or no images at all
            continue
        told = "<1" if share < 0.5 else ">99" if 99.5 <= share < 100 else f"{share:.0f}"
        colour = "white" if _SCALE(share) > 0.55 else "#222222"
        axes.text(column, row, told, ha="center", va="center", fontsize=8, color=colour)


def _write_names(axes: Axes, names: Sequence[str], side: float) -> None:
    """Write every k-th name along both axes of so many inches, upright where it does not fit."""
    every = math.ceil(len(names) / _NAMED)
    places, told = range(0, len(names), every), names[::every]
    size = 9 if len(names) <= _NUMBERED else 7
    across = 0.075 * max(map(len, told)) < side / len(told)
    axes.set_xticks(places, told, fontsize=size, rotation=0 if across else 90, parse_math=False)
    axes.set_yticks(places, told, fontsize=size, parse_math=False)
    axes.tick_params(length=0 if every == 1 else 2)
    axes.spines[:].set_visible(False)
