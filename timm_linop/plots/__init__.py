"""The figures of a run and of several: plain data in, a PNG out."""

from timm_linop.plots.canvas import BLUE, DPI, GREEN, GREY, ORANGE
from timm_linop.plots.curves import training_curves
from timm_linop.plots.dots import arms
from timm_linop.plots.widths import channel_widths

__all__ = [
    "BLUE",
    "DPI",
    "GREEN",
    "GREY",
    "ORANGE",
    "arms",
    "channel_widths",
    "training_curves",
]
