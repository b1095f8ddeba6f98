"""Channel widths, dense against slim."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from timm_linop.errors import StructureError
from timm_linop.plots.canvas import BLUE, new_axes, new_figure, save, shortened


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
    figure = new_figure(7.5, 1.0 + height * len(layers) / every)
    axes = new_axes(figure, "x")
    rows = range(len(layers))
    axes.barh(rows, [before[name] for name in layers], 0.8, color="#D9D9D9", label="dense")
    axes.barh(rows, [after[name] for name in layers], 0.8, color=BLUE, label="slim")
    widest = max(*before.values(), *after.values())
    size = 8 if height > 0.2 else 6.5
    for row in rows if every == 1 else ():
        dense, slim = before[layers[row]], after[layers[row]]
        kept = f"{slim} of {dense}" if slim != dense else f"all {dense}"
        axes.text(max(dense, slim) + widest / 100, row, kept, va="center", fontsize=size - 0.5)
    labels = [shortened(layers[row]) for row in rows[::every]]
    axes.set_yticks(rows[::every], labels, fontsize=size, parse_math=False)
    axes.set(xlabel="output channels", xlim=(0, widest * 1.17), ylim=(len(layers) - 0.4, -0.6))
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    return save(figure, out)


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
