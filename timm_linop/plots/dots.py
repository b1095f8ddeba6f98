"""The accuracy of each arm, one dot per run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from timm_linop.errors import DataError
from timm_linop.plots.canvas import BLUE, GREY, ORANGE, new_axes, new_figure, save, shortened

# How arms writes a mean above its dots.
_ABOVE: dict[str, Any] = {
    "textcoords": "offset points",
    "ha": "center",
    "fontsize": 9,
    "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.6},
}


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
    figure = new_figure(6.5, 1.0 + 0.42 * len(runs))
    axes = new_axes(figure, "x")
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
    axes.set_yticks(range(len(runs)), [shortened(arm) for arm in runs], parse_math=False)
    axes.set(xlabel="validation accuracy (%)", ylim=(len(runs) - 0.5, -0.7))
    axes.margins(x=0.08)
    axes.tick_params(axis="y", length=0)
    return save(figure, out)
