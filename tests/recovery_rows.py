"""Rows of a recovery study that was never run, with accuracies that formulas give."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from benchmarks.fashion import Score
from benchmarks.recovery_plan import Cell, Grid, Row


def carried_out(grid: Grid, reached: Callable[[Cell], float]) -> list[Cell]:
    """Run a grid to its end, two cells at a time, with accuracies that a formula gives."""
    done: dict[Cell, float] = {}
    while batch := list(grid.missing(done))[:2]:
        done |= {cell: reached(cell) for cell in batch}
    return list(done)


def peak_at(lr: float) -> Callable[[Cell], float]:
    return lambda cell: 90 - abs(math.log(cell.lr / lr))


def row(cell: Cell, test: float) -> Row:
    score = Score(test, test, 1.0, 1, test, test - 1)
    values = (*vars(cell).values(), 100, 1000, 95.0, 10.0, *vars(score).values())
    return Row(*values)


def rows_of(grid: Grid, lr: float, test: Callable[[Cell], float]) -> dict[Cell, Row]:
    """Rows of a whole grid whose best rate is known."""
    cells = carried_out(grid, peak_at(lr))
    reached = peak_at(lr)
    return {c: replace(row(c, test(c)), validation=reached(c)) for c in cells}
