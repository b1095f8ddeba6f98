"""What a model's size buys: accuracy against parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from timm_linop.errors import DataError
from timm_linop.plots.canvas import (
    BLUE,
    DPI,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    YELLOW,
    new_axes,
    new_figure,
    save,
    shortened,
)

# The paper's arms look the same in every figure; others take what is left, in order.
_ARMS = {
    "dense": (GREY, "s"),
    "pruned": (SKY, "v"),
    "vanilla": (BLUE, "o"),
    "distilled": (GREEN, "^"),
    "expanded": (PINK, "P"),
    "linop": (ORANGE, "D"),
}
_OTHERS = ((YELLOW, "X"), ("#000000", "<"), (GREEN, ">"), (PINK, "h"), (SKY, "p"), (BLUE, "*"))


# Run, arm, parameters, accuracy; and where a label goes: offset in typographic points, alignment.
Row = tuple[str, str, int, float]
Place = tuple[float, float, str]
_LABEL: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 8, "zorder": 4}
_LEADER: dict[str, Any] = {
    "textcoords": "offset points",
    "arrowprops": {"arrowstyle": "-", "color": "#AAAAAA", "linewidth": 0.6},
    "zorder": 2,
}
# So many points off, a label needs no line to its point.
_NEAR = 12


def accuracy_against_parameters(rows: Sequence[Row], out: Path) -> Path:
    """Draw the accuracy of models against their numbers of parameters.

    Args:
        rows: Run, arm, parameters and accuracy in percent. Each is a point with its run's name;
            points of an arm share a colour and a marker. The mean of the arm ``dense`` is drawn
            through as the reference. A ``pruned`` model far below all others would flatten them:
            it stands on the lower edge, with its accuracy beside its name.
        out: Where the PNG goes.

    Returns:
        ``out``.

    Raises:
        DataError: There is no row, a model has no parameters, or an accuracy is no percentage.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> rows = [("big", "dense", 700_000, 95.4), ("small", "linop", 56_000, 95.0)]
        >>> accuracy_against_parameters(rows, folder / "scatter.png").name
        'scatter.png'
    """
    _check(rows)
    figure = new_figure(7.5, 4.8)
    axes = new_axes(figure, "both")
    _scale_parameters(axes, [parameters for _, _, parameters, _ in rows])
    shown = _raised(rows, _scale_accuracies(axes, rows))
    arms: dict[str, list[Row]] = {}
    for row in shown:
        arms.setdefault(row[1].lower(), []).append(row)
    others = cycle(_OTHERS)
    for arm, points in arms.items():
        x, y = [row[2] for row in points], [row[3] for row in points]
        colour, marker = _ARMS.get(arm) or next(others)
        drawn = axes.scatter(x, y, 50, color=colour, marker=marker, label=shortened(arm, 24))
        drawn.set(edgecolor="white", linewidth=0.6, zorder=3, clip_on=False)
    axes.set(xlabel="parameters", ylabel="accuracy (%)")
    legend = figure.legend(loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.draw_without_rendering()  # settles where the axes are, in pixels
    taken = _draw_reference(axes, [row[3] for row in arms.get("dense", ())])
    _name_points(axes, shown, taken)
    return save(figure, out)


def _check(rows: Sequence[Row]) -> None:
    """Refuse what has no place in the figure."""
    if not rows:
        raise DataError(
            "accuracy_against_parameters got no rows; give run, arm, parameters, accuracy of each."
        )
    for name, _, parameters, accuracy in rows:
        if not (0 < parameters < math.inf and 0 <= accuracy <= 100):
            raise DataError(
                f"{name} with {parameters} parameters and an accuracy of {accuracy} cannot be "
                "drawn; give parameters above 0 and an accuracy in percent."
            )


def _scale_parameters(axes: Axes, parameters: Sequence[int]) -> None:
    """Scale the parameters by logarithm, over a range wide enough to hold two round numbers."""
    low, high = min(parameters), max(parameters)
    margin = max((high / low) ** 0.12, math.sqrt(8 * low / high), 1.3)
    subs = (1,) if high / low > 500 else (1, 2, 5)
    axes.set(xscale="log", xlim=(low / margin, high * margin))
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _count(value)))
    axes.xaxis.set_minor_locator(NullLocator())


def _scale_accuracies(axes: Axes, rows: Sequence[Row]) -> float:
    """Scale the accuracies to all that are worth comparing, and return the lower edge."""
    trained = [row[3] for row in rows if row[1].lower() != "pruned"]
    worth = trained or [row[3] for row in rows]
    low, high = min(worth), max(worth)
    near = [row[3] for row in rows if low - (high - low) <= row[3] <= high]
    low = min(worth + near)
    margin = max(0.15 * (high - low), 0.5)
    axes.set_ylim(low - margin, high + margin)
    axes.yaxis.set_major_locator(FixedLocator(_to_hundred(low - margin, high + margin)))
    return low - margin


def _to_hundred(low: float, high: float) -> list[float]:
    """Choose ticks within an interval, and no percentage over 100."""
    ticks = MaxNLocator(nbins=8, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [tick for tick in ticks if low <= tick <= min(high, 100)]


def _raised(rows: Sequence[Row], edge: float) -> list[Row]:
    """Lift what lies below the lower edge onto it, and let its name say so."""
    return [
        row if row[3] >= edge else (f"{shortened(row[0], 24)} ({row[3]:.1f} %)", *row[1:3], edge)
        for row in rows
    ]


def _draw_reference(axes: Axes, accuracies: Sequence[float]) -> list[Bbox]:
    """Draw the dense models' mean across; return the box that it takes, in pixels, if any."""
    if not accuracies:
        return []
    mean = fmean(accuracies)
    axes.axhline(mean, color=GREY, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    height = axes.transData.transform((1, mean))[1]
    within = axes.get_window_extent()
    return [Bbox.from_extents(within.x0, height - 1, within.x1, height + 1)]


def _count(value: float) -> str:
    """Write a tick as 200, 20k, 2M or 2G."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _name_points(axes: Axes, rows: Sequence[Row], taken: Sequence[Bbox]) -> None:
    """Write each point's name where nothing else is, as near to it as there is room."""
    points = axes.transData.transform([row[2:] for row in rows])
    taken = [*taken, *(Bbox.from_bounds(x - 9, y - 9, 18, 18) for x, y in points)]
    for row, point in sorted(zip(rows, points, strict=True), key=lambda pair: -pair[1][1]):
        label = axes.annotate(shortened(row[0], 34), row[2:], (0, 0), **_LABEL)
        label.set(in_layout=False, parse_math=False)
        box = label.get_window_extent()
        x, y, side = min(
            _places(), key=lambda place: _cost(_moved(box, point, place), taken, axes.bbox, place)
        )
        label.set(position=(x, y), horizontalalignment=side)
        taken.append(_moved(box, point, (x, y, side)))
        if abs(x) + abs(y) > _NEAR:
            axes.annotate("", row[2:], (x, y), **_LEADER).set_in_layout(False)


def _places() -> Iterator[Place]:
    """Yield places around a point, nearest first."""
    for ring in range(14):
        for up in dict.fromkeys((0, 6 * ring, -6 * ring)):
            yield 7 + 3 * ring, up, "left"
            yield -7 - 3 * ring, up, "right"
        yield 0, 11 + 6 * ring, "center"
        yield 0, -11 - 6 * ring, "center"


def _moved(box: Bbox, point: Sequence[float], place: Place) -> Bbox:
    """Move a label's box to a place of a point, both in pixels."""
    x, y = (at + offset * DPI / 72 for at, offset in zip(point, place[:2], strict=True))
    left = x - box.width * {"left": 0, "center": 0.5, "right": 1}[place[2]]
    return Bbox.from_bounds(left, y - box.height / 2, box.width, box.height)


def _cost(box: Bbox, taken: Sequence[Bbox], within: Bbox, place: Place) -> float:
    """Weigh a label's place: pixels that it covers or leaves the axes by, then the distance."""
    outside = box.width * box.height - _common(box, [within])
    return _common(box, taken) + 3 * outside + 2 * (abs(place[0]) + abs(place[1]))


def _common(box: Bbox, others: Sequence[Bbox]) -> float:
    """Measure what a box shares with others."""
    x0, y0, x1, y1 = np.array([other.extents for other in others]).T
    width = np.minimum(x1, box.x1) - np.maximum(x0, box.x0)
    height = np.minimum(y1, box.y1) - np.maximum(y0, box.y0)
    return float((width.clip(0) * height.clip(0)).sum())
