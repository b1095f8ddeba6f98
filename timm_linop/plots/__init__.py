"""The figures of a run and of several: plain data in, a PNG out."""

from timm_linop.plots.canvas import BLUE, DPI, GREEN, GREY, ORANGE
from timm_linop.plots.convergence import convergence, scores
from timm_linop.plots.curves import compare_curves, training_curves
from timm_linop.plots.dots import arms
from timm_linop.plots.matrix import confusion
from timm_linop.plots.scatter import accuracy_against_parameters
from timm_linop.plots.widths import channel_widths

__all__ = [
    "BLUE",
    "DPI",
    "GREEN",
    "GREY",
    "ORANGE",
    "accuracy_against_parameters",
    "arms",
    "channel_widths",
    "compare_curves",
    "confusion",
    "convergence",
    "scores",
    "training_curves",
]
