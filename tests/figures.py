"""Figures, read back as pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from timm_linop.plots import DPI


def pixels(png: Path) -> np.ndarray:
    """Read a figure as height x width x RGB, and see that it is a figure at all."""
    with Image.open(png) as image:
        assert image.format == "PNG"
        assert round(image.info["dpi"][0]) == DPI
        array = np.asarray(image.convert("RGB"))
    assert 150 < array.shape[0] < 4000
    assert 400 < array.shape[1] < 2000
    assert 0.01 < (array.min(axis=2) < 250).mean() < 0.9  # neither blank nor flooded
    return array


def ink(png: Path, colour: str) -> int:
    """Count the pixels of one colour."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return int((pixels(png) == np.array([red, green, blue], np.uint8)).all(axis=2).sum())
