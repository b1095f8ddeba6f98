"""Curves against epochs, read from metrics.csv."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from timm_linop.errors import DataError
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
    shortened,
)

# The panels of training_curves: what each shows, and by column its lines' names and colours.
_CURVES = (
    ("loss", {"train_loss": ("total", BLUE), "task_loss": ("task", ORANGE)}),
    ("similarity loss", {"sp_loss": ("similarity", GREEN)}),
    ("distillation of logits", {"kd_loss": ("KD", PINK)}),
    ("validation accuracy (%)", {"validation_accuracy": ("accuracy", BLUE)}),
)
# The lines of compare_curves: beyond so many colours they come again, dashed.
_COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, YELLOW, GREY)
_DASHES = ("-", "--", ":", "-.")


def training_curves(metrics_csv: Path, out: Path) -> Path:
    r"""Draw the losses and the validation accuracy of a run against its epochs.

    Args:
        metrics_csv: A run's ``metrics.csv``: a column ``epoch`` and any of ``train_loss``,
            ``task_loss``, ``sp_loss``, ``kd_loss`` and ``validation_accuracy`` (in percent). A run
            without distillation has one loss: the total. Empty and non-finite cells are gaps; of
            an epoch written twice, as a resumed run does, the later row counts.
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
    for absent in [name for name in ("sp_loss", "kd_loss") if not any(columns.get(name, []))]:
        columns.pop(absent, None)
    if not {"sp_loss", "kd_loss"} & columns.keys():  # the total is the task's loss
        columns.pop("task_loss" if "train_loss" in columns else "", None)
    panels = {
        what: {c: line for c, line in lines.items() if c in columns} for what, lines in _CURVES
    }
    panels = {what: lines for what, lines in panels.items() if lines}
    if not panels:
        raise DataError(
            f"{metrics_csv} holds no loss and no accuracy to draw; it needs a column epoch "
            "and one of train_loss, task_loss, sp_loss, validation_accuracy with numbers in it."
        )
    # Two side by side at most, a third one below: a card is read on telephones, too.
    rows, count = (len(panels) + 1) // 2, len(panels)
    figure = new_figure(3.9 * min(count, 2), 3.1 * rows)
    for place, (what, lines) in enumerate(panels.items(), start=1):
        wide = (place, place + 1) if count > 2 and place == count and count % 2 else place
        axes = new_axes(figure, "y", min(count, 2), wide, rows)
        for column, (label, colour) in lines.items():
            _curve(axes, epochs, columns[column], colour, label)
        _scale(axes, epochs)
        axes.set_ylabel(what)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=9)
        if "validation_accuracy" in lines:
            _mark_best(axes, epochs, columns["validation_accuracy"])
    return save(figure, out)


def compare_curves(runs: Mapping[str, Path], out: Path) -> Path:
    r"""Draw the validation accuracy of several runs against their epochs.

    Args:
        runs: Each run's name and its ``metrics.csv``, with columns ``epoch`` and
            ``validation_accuracy`` (in percent), read as :func:`training_curves` does.
        out: Where the PNG goes.

    Returns:
        ``out``.

    Raises:
        DataError: There is no run, or a file is missing or has no accuracy in it.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "metrics.csv").write_text("epoch,validation_accuracy\n1,60\n2,75\n")
        >>> compare_curves({"vanilla": folder / "metrics.csv"}, folder / "curves.png").name
        'curves.png'
    """
    if not runs:
        raise DataError("compare_curves got no runs; give names and the metrics.csv of each.")
    figure = new_figure(7.5, max(3.6, 0.6 + 0.2 * len(runs)))
    axes = new_axes(figure, "y")
    drawn: set[int] = set()
    for index, (name, metrics_csv) in enumerate(runs.items()):
        epochs, columns = _read(metrics_csv)
        if "validation_accuracy" not in columns:
            raise DataError(
                f"{metrics_csv} holds no validation accuracy to draw; name runs of train.py that "
                "have ended an epoch."
            )
        dashes = _DASHES[index // len(_COLOURS) % len(_DASHES)]
        label, colour = shortened(name, 28), _COLOURS[index % len(_COLOURS)]
        _curve(axes, epochs, columns["validation_accuracy"], colour, label, dashes)
        drawn.update(epochs)
    _scale(axes, sorted(drawn))
    axes.set_ylabel("validation accuracy (%)")
    legend = figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return save(figure, out)


def _read(metrics_csv: Path) -> tuple[list[int], dict[str, list[float]]]:
    """Read the epochs and, of every column with a number in it, the values (NaN where none)."""
    if not metrics_csv.is_file():
        raise DataError(f"{metrics_csv} is no file; give the metrics.csv of a run's folder.")
    try:
        with metrics_csv.open(newline="", encoding="utf-8") as lines:
            rows = [row for row in csv.DictReader(lines) if _number(row.get("epoch")) % 1 == 0]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{metrics_csv} cannot be read: {error}; train.py writes it anew, or leave it out."
        ) from error
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
    axes: Axes,
    epochs: Sequence[int],
    values: Sequence[float],
    colour: str,
    label: str,
    dashes: str = "-",
) -> None:
    """Draw one line against whole epochs; few have points, so that even one shows."""
    marker = "o" if len(epochs) <= 30 else ""
    axes.plot(epochs, values, dashes, color=colour, marker=marker, markersize=3.5, label=label)


def _scale(axes: Axes, epochs: Sequence[int]) -> None:
    """Label the axis of these epochs with whole numbers, the other with short ones."""
    margin = max((epochs[-1] - epochs[0]) / 25, 0.2)
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
