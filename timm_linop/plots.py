"""The figures of a run: training curves, channel widths, accuracy of the arms.

Drawn on figures of their own, never through pyplot: no global state, no window, safe in threads.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from timm_linop.errors import DataError, StructureError

# Okabe and Ito's colours, told apart by colour-blind eyes too.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7F7F7F"
DPI = 150

# The panels of training_curves: what each shows, and by column its lines' names and colours.
_CURVES = (
    ("loss", {"train_loss": ("total", BLUE), "task_loss": ("task", ORANGE)}),
    ("similarity loss", {"sp_loss": ("similarity", GREEN)}),
    ("validation accuracy (%)", {"validation_accuracy": ("accuracy", BLUE)}),
)
# How arms writes a mean above its dots.
_ABOVE: dict[str, Any] = {
    "textcoords": "offset points",
    "ha": "center",
    "fontsize": 9,
    "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.6},
}


def training_curves(metrics_csv: Path, out: Path) -> Path:
    r"""Draw the losses and the validation accuracy of a run against its epochs.

    Args:
        metrics_csv: A run's ``metrics.csv``: a column ``epoch`` and any of ``train_loss``,
            ``task_loss``, ``sp_loss`` and ``validation_accuracy`` (in percent). A run without
            distillation has one loss: the total. Empty and non-finite cells are gaps; of an epoch
            written twice, as a resumed run does, the later row counts.
        out: Where the PNG goes.

    Returns:
        ``out``.

    Raises:
        DataError: The file is missing, or holds nothing to draw.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> rows = "epoch,train_loss,validation_accuracy\n1,0.9,60\n2,0.5,75\n"
        >>> _ = (folder / "metrics.csv").write_text(rows)
        >>> training_curves(folder / "metrics.csv", folder / "curves.png").name
        'curves.png'
    """
    epochs, columns = _read(metrics_csv)
    if not any(columns.get("sp_loss", [])):  # no distillation: the total is the task's loss
        columns.pop("sp_loss", None)
        columns.pop("task_loss" if "train_loss" in columns else "", None)
    panels = {
        what: {c: line for c, line in lines.items() if c in columns} for what, lines in _CURVES
    }
    panels = {what: lines for what, lines in panels.items() if lines}
    if not panels:
        raise DataError(
            f"{metrics_csv.name} holds no loss and no accuracy to draw; it needs a column epoch "
            "and one of train_loss, task_loss, sp_loss, validation_accuracy with numbers in it."
        )
    figure = _figure(3.9 * len(panels), 3.1)
    for place, (what, lines) in enumerate(panels.items(), start=1):
        axes = _axes(figure, "y", len(panels), place)
        for column, (label, colour) in lines.items():
            _curve(axes, epochs, columns[column], colour, label)
        axes.set_ylabel(what)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=9)
        if "validation_accuracy" in lines:
            _mark_best(axes, epochs, columns["validation_accuracy"])
    return _save(figure, out)


def channel_widths(before: Mapping[str, int], after: Mapping[str, int], out: Path) -> Path:
    """Draw the output channels of each layer, dense against slim.

    Args:
        before: Output channels by layer in the dense model, in the model's order.
        after: The same layers in the slim model.
        out: Where the PNG goes.

    Returns:
        ``out``.

    Raises:
        StructureError: The two name different layers, or none, or a width below 1.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> channel_widths({"conv1": 64, "fc": 10}, {"conv1": 23, "fc": 10}, folder / "w.png").name
        'w.png'
    """
    _check_widths(before, after)
    layers = list(before)
    height = min(max(0.17, 3.2 / len(layers)), 0.42)  # of a row, in inches
    every = math.ceil(len(layers) / 100)  # beyond a hundred layers not every one is labelled
    figure = _figure(7.5, 1.0 + height * len(layers) / every)
    axes = _axes(figure, "x")
    rows = range(len(layers))
    axes.barh(rows, [before[name] for name in layers], 0.8, color="#D9D9D9", label="dense")
    axes.barh(rows, [after[name] for name in layers], 0.8, color=BLUE, label="slim")
    widest = max(*before.values(), *after.values())
    size = 8 if height > 0.2 else 6.5
    for row in rows if every == 1 else ():
        dense, slim = before[layers[row]], after[layers[row]]
        kept = f"{slim} of {dense}" if slim != dense else f"all {dense}"
        axes.text(max(dense, slim) + widest / 100, row, kept, va="center", fontsize=size - 0.5)
    labels = [_shortened(layers[row]) for row in rows[::every]]
    axes.set_yticks(rows[::every], labels, fontsize=size, parse_math=False)
    axes.set(xlabel="output channels", xlim=(0, widest * 1.17), ylim=(len(layers) - 0.4, -0.6))
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    return _save(figure, out)


def arms(rows: Sequence[tuple[str, float]], out: Path) -> Path:
    """Draw the accuracy that each arm of an experiment reached, one dot per run.

    Args:
        rows: Arm and accuracy in percent. An arm may come several times, once per seed: its dots
            share a line and a bar marks their mean. The arm ``dense`` is drawn through as the
            reference, and ``linop`` stands out.
        out: Where the PNG goes.

    Returns:
        ``out``.

    Raises:
        DataError: There is no arm, or an accuracy is no percentage.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> arms([("dense", 94.2), ("vanilla", 91.1), ("linop", 92.0)], folder / "arms.png").name
        'arms.png'
    """
    if not rows or not all(0 <= accuracy <= 100 for _, accuracy in rows):
        raise DataError(
            f"arms({list(rows)}) cannot be drawn: give arms with accuracies in percent."
        )
    runs: dict[str, list[float]] = {}
    for arm, accuracy in rows:
        runs.setdefault(arm, []).append(accuracy)
    figure = _figure(6.5, 1.0 + 0.42 * len(runs))
    axes = _axes(figure, "x")
    for row, (arm, accuracies) in enumerate(runs.items()):
        mean, colour = fmean(accuracies), {"linop": ORANGE, "dense": GREY}.get(arm.lower(), BLUE)
        axes.axhline(row, color="#E5E5E5", linewidth=0.8, zorder=0)
        dots = axes.plot(accuracies, [row] * len(accuracies), "o", markersize=8, color=colour)
        dots[0].set(markeredgecolor="white", zorder=4)
        axes.annotate(f"{mean:.1f}", (mean, row), (0, 9), **_ABOVE, color=colour)
        if len(accuracies) > 1:
            axes.plot([mean, mean], [row - 0.22, row + 0.22], color=colour, linewidth=2, zorder=3)
        if arm.lower() == "dense":
            axes.axvline(mean, color=GREY, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    axes.set_yticks(range(len(runs)), [_shortened(arm) for arm in runs], parse_math=False)
    axes.set(xlabel="validation accuracy (%)", ylim=(len(runs) - 0.5, -0.7))
    axes.margins(x=0.08)
    axes.tick_params(axis="y", length=0)
    return _save(figure, out)


def _read(metrics_csv: Path) -> tuple[list[int], dict[str, list[float]]]:
    """Read the epochs and, of every column with a number in it, the values (NaN where none)."""
    if not metrics_csv.is_file():
        raise DataError(f"{metrics_csv} is no file; give the metrics.csv of a run's folder.")
    with metrics_csv.open(newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if _number(row.get("epoch")) % 1 == 0]
    by_epoch = {int(_number(row["epoch"])): row for row in rows}
    epochs = sorted(by_epoch)
    names = [name for name in (rows[0] if rows else []) if name and name != "epoch"]
    columns = {name: [_number(by_epoch[epoch].get(name)) for epoch in epochs] for name in names}
    return epochs, {
        name: values for name, values in columns.items() if not all(map(math.isnan, values))
    }


def _number(cell: str | None) -> float:
    """Read a cell; what is no finite number is NaN, a gap in the curve."""
    try:
        value = float(cell or "nan")
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _curve(
    axes: Axes, epochs: Sequence[int], values: Sequence[float], colour: str, label: str
) -> None:
    """Draw one line against whole epochs; few have points, so that even one shows."""
    marker, margin = "o" if len(epochs) <= 30 else "", max((epochs[-1] - epochs[0]) / 25, 0.2)
    axes.plot(epochs, values, color=colour, marker=marker, markersize=3.5, label=label)
    axes.set(xlabel="epoch", xlim=(epochs[0] - margin, epochs[-1] + margin))
    whole = MaxNLocator(integer=True, nbins=7, steps=[1, 2, 5, 10], min_n_ticks=1)
    axes.xaxis.set_major_locator(whole)
    axes.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=True)


def _mark_best(axes: Axes, epochs: Sequence[int], accuracies: Sequence[float]) -> None:
    """Ring the best epoch and say how good the best and the last one are."""
    points = zip(accuracies, epochs, strict=True)
    known = [(value, epoch) for value, epoch in points if not math.isnan(value)]
    best, at = max(known, key=lambda point: (point[0], -point[1]))
    axes.plot([at], [best], "o", markersize=9, markerfacecolor="none", color=ORANGE)
    told = f"best {best:.1f} at epoch {at}, last {known[-1][0]:.1f}"
    axes.set_title(told, fontsize=9, loc="right", color="#444444")


def _check_widths(before: Mapping[str, int], after: Mapping[str, int]) -> None:
    """Refuse two models that do not have the same layers."""
    odd = sorted(set(before) ^ set(after))
    if odd or not before:
        raise StructureError(
            f"channel_widths needs the same layers before and after, got {len(before)} and "
            f"{len(after)}{f', not both with {odd[0]!r}' if odd else ''}; "
            "give both models' output channels by layer."
        )
    if min(*before.values(), *after.values()) < 1:
        raise StructureError("channel_widths got a layer without channels; give widths above 0.")


def _shortened(name: str, longest: int = 40) -> str:
    """Cut the middle out of a long name: its two ends tell most."""
    half = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[-half:]}"


def _figure(width: float, height: float) -> Figure:
    """Start a white figure of so many inches."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def _axes(figure: Figure, grid: Literal["x", "y"], columns: int = 1, place: int = 1) -> Axes:
    """Add a pair of axes with no more ink than needed, and lines across one of them."""
    axes = figure.add_subplot(1, columns, place)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def _save(figure: Figure, out: Path) -> Path:
    """Write the PNG, and the folder it goes to if there is none."""
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, format="png", dpi=DPI)
    return out
