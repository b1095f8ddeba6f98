"""What all figures share: colours, a white figure, quiet axes, the PNG.

Drawn on figures of their own, never through pyplot: no global state, no window, safe in threads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from timm_linop.errors import DataError

# Okabe and Ito's colours, told apart by colour-blind eyes too.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7F7F7F"
PINK, SKY, YELLOW = "#CC79A7", "#56B4E9", "#E69F00"
DPI = 150


def shortened(name: str, longest: int = 40) -> str:
    """Cut the middle out of a long name: its two ends tell most.

    Args:
        name: Any text.
        longest: How many characters to leave at most.

    Returns:
        The name, or its two ends around an ellipsis.

    Example:
        >>> shortened("features.0.conv", longest=9)
        'feat…conv'
    """
    half = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[-half:]}"


def new_figure(width: float, height: float) -> Figure:
    """Start a white figure.

    Args:
        width: In inches.
        height: In inches.

    Returns:
        An empty figure that keeps its parts apart by itself.

    Example:
        >>> new_figure(4, 3).get_size_inches().tolist()
        [4.0, 3.0]
    """
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def new_axes(
    figure: Figure,
    grid: Literal["x", "y", "both"],
    columns: int = 1,
    place: int | tuple[int, int] = 1,
    rows: int = 1,
) -> Axes:
    """Add a pair of axes with no more ink than needed, and faint lines behind.

    Args:
        figure: Where to.
        grid: Along which axes there are lines.
        columns: How many pairs stand side by side in the figure.
        place: Which of them this one is, from 1, row by row; two numbers are its first and last.
        rows: How many rows of them there are.

    Returns:
        The axes.

    Example:
        >>> new_axes(new_figure(4, 3), "y").get_axisbelow()
        True
    """
    axes = figure.add_subplot(rows, columns, place)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def save(figure: Figure, out: Path) -> Path:
    """Write the PNG, and the folder it goes to if there is none.

    Args:
        figure: What to write.
        out: Where the PNG goes.

    Returns:
        ``out``.

    Raises:
        DataError: It cannot be written there.

    Example:
        >>> import tempfile
        >>> save(new_figure(4, 3), Path(tempfile.mkdtemp()) / "figures" / "empty.png").name
        'empty.png'
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, format="png", dpi=DPI)
    except OSError as error:
        raise DataError(
            f"{out} cannot be written: {error.strerror}; choose a folder with room that is yours."
        ) from error
    return out
