"""What the trainability study's CSV says: a table a learning rate, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, geometric_mean, stdev

from matplotlib.axes import Axes

from timm_linop.plots.canvas import BLUE, GREEN, GREY, ORANGE, new_axes, new_figure, save

Row = dict[str, str]
_COLOURS = {"L1": BLUE, "L1+OrthP": GREEN, "TPP": ORANGE}
_PAIRS = ("L1", "L1 held", "TPP without Gram", "TPP")  # controls beside what they are of


def summary(rows: Sequence[Row]) -> str:
    """Lay out the mean JSV after pruning and retraining, and the accuracy after retraining.

    Args:
        rows: Those of the CSV.

    Returns:
        Markdown; means over seeds (of the mean JSV geometric ones), with standard deviations of
        accuracies.
    """
    parts = []
    for lr in dict.fromkeys(row["lr"] for row in rows):
        some = [row for row in rows if row["lr"] == lr]
        parts += [f"### Learning rate {lr}", _table(some, tuple(_COLOURS), _ratios(some))]
        if dense := _of(some, "dense", "0.0"):
            told = _cell(dense).replace(" | ", ", ")
            parts.insert(-1, f"Not pruned: mean JSV and accuracy {told}.")
        if controlled := [ratio for ratio in _ratios(some) if _of(some, "L1 held", ratio)]:
            parts += ["Controls:", _table(some, _PAIRS, controlled)]
    return "\n\n".join(parts)


def _table(rows: Sequence[Row], methods: Sequence[str], ratios: Sequence[str]) -> str:
    head = [f"{method}: {what}" for method in methods for what in ("mean JSV", "accuracy")]
    lines = [f"| pruning ratio | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for ratio in ratios:
        cells = [_cell(_of(rows, method, ratio)) for method in methods]
        lines.append(f"| {ratio} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratios(rows: Sequence[Row]) -> list[str]:
    return sorted({row["ratio"] for row in rows if row["method"] != "dense"}, key=float)


def _of(rows: Sequence[Row], method: str, ratio: str) -> list[Row]:
    return [row for row in rows if row["method"] == method and row["ratio"] == ratio]


def _cell(rows: Sequence[Row]) -> str:
    """Two cells: the JSV before and after, and the accuracy after."""
    if not rows:
        return " | "
    before, after = (_mean_jsv(rows, stage) for stage in ("pruned", "retrained"))
    accuracies = _accuracies(rows)
    spread = f" ± {stdev(accuracies):.1f}" if len(rows) > 1 else ""
    return f"{before:.2g} → {after:.2g} | {fmean(accuracies):.1f}{spread}"


def _accuracies(rows: Sequence[Row]) -> list[float]:
    return [float(row["accuracy_retrained"]) for row in rows]


def _mean_jsv(rows: Sequence[Row], stage: str) -> float:
    return geometric_mean(float(row[f"jsv_{stage}"]) for row in rows)


def figure(rows: Sequence[Row], path: Path) -> None:
    """Draw both against the pruning ratio, a column for each learning rate.

    Args:
        rows: Those of the CSV.
        path: Where the PNG goes.
    """
    rates = list(dict.fromkeys(row["lr"] for row in rows))
    known = [float(row[f"jsv_{stage}"]) for row in rows for stage in ("pruned", "retrained")]
    limits = min(known) / 2, max(known) * 2
    drawn = new_figure(4.2 * len(rates), 6.4)
    for place, lr in enumerate(rates, start=1):
        some = [row for row in rows if row["lr"] == lr]
        jsv = new_axes(drawn, "y", len(rates), place, 2)
        accuracy = new_axes(drawn, "y", len(rates), len(rates) + place, 2)
        _draw_jsv(jsv, some)
        _draw_accuracy(accuracy, some)
        jsv.set(yscale="log", ylim=limits, title=f"learning rate {lr}", ylabel="mean JSV")
        accuracy.set(xlabel="pruning ratio", ylabel="test accuracy after retraining (%)")
        accuracy.set_ylim(0, 100)
        if place == 1:
            drawn.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    save(drawn, path)


def _draw_jsv(axes: Axes, rows: Sequence[Row]) -> None:
    dense = _of(rows, "dense", "0.0")
    if dense:
        axes.axhline(_mean_jsv(dense, "pruned"), color=GREY, linewidth=0.8, label="not pruned")
    for stage, dashes in (("pruned", "--"), ("retrained", "-")):
        for method, colour in _COLOURS.items():
            across, groups = _by_ratio(rows, method)
            values = [_mean_jsv(group, stage) for group in groups]
            axes.plot(across, values, dashes, color=colour, label=f"{method}, {stage}")


def _draw_accuracy(axes: Axes, rows: Sequence[Row]) -> None:
    """Lines are means over seeds; bands reach from the lowest to the highest."""
    if dense := _of(rows, "dense", "0.0"):
        axes.axhline(fmean(_accuracies(dense)), color=GREY, linewidth=0.8)
    for method, colour in _COLOURS.items():
        across, groups = _by_ratio(rows, method)
        values = [_accuracies(group) for group in groups]
        axes.plot(across, list(map(fmean, values)), "o-", color=colour, markersize=3)
        low, high = list(map(min, values)), list(map(max, values))
        axes.fill_between(across, low, high, color=colour, alpha=0.2, linewidth=0)


def _by_ratio(rows: Sequence[Row], method: str) -> tuple[list[float], list[list[Row]]]:
    groups = [group for ratio in _ratios(rows) if (group := _of(rows, method, ratio))]
    return [float(group[0]["ratio"]) for group in groups], groups
