"""What the recovery study runs: networks, arms as flags of train.py, and the cells of its grids.

Every arm has its own sweep of learning rates, on one seed, chosen by validation images; then the
chosen rate runs on the other seeds. Where the best rate is the lowest or the highest, the next one
beyond is tried too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

RATES, BEYOND = (0.003, 0.01, 0.03, 0.1), (0.001, 0.3)
SWEEP_SEED = 0
NETWORKS: dict[str, dict[str, Any]] = {
    # At output stride 16 the last map of a 28 px image is 2 x 2.
    "test_resnet": {"output_stride": 16},
    "mobilenetv2_050": {"output_stride": 16},
}
_PAPER = "--gamma 3000 --pairs all --reduction sum"
ARMS = {
    "fine-tuning": "--rate 0 --gamma 0",
    "fine-tuning + KD": "--rate 0 --gamma 0 --kd-weight 1",
    "expanded": "--rate 3 --gamma 0",
    "fine-tuning + SP": f"--rate 0 {_PAPER}",
    "LinOP (paper)": f"--rate 3 --init normal {_PAPER}",
    "vanilla distillation": f"--reinit --rate 0 {_PAPER}",
    "ExpandNets": "--reinit --rate 3 --init normal --gamma 0",
    "from scratch": "--reinit --rate 0 --gamma 0",
}


@dataclass(frozen=True)
class Cell:
    """One fine-tuning.

    Attributes:
        study: Which grid it belongs to.
        data: Images, one of `fashion.SOURCES`.
        model: timm architecture.
        removed: Share of its weights that pruning took.
        arm: One of `ARMS`.
        epochs: How long.
        lr: Learning rate.
        seed: Of the dense network, of pruning, of new weights and factors, of the batches.
    """

    study: str
    data: str
    model: str
    removed: float
    arm: str
    epochs: int
    lr: float
    seed: int

    def at(self, rates: Sequence[float]) -> list[Cell]:
        """Give the cells of a sweep."""
        return [replace(self, lr=lr, seed=SWEEP_SEED) for lr in rates]


@dataclass(frozen=True)
class Row(Cell):
    """One fine-tuning, and what it came to; accuracies in percent.

    Attributes:
        parameters: Of the slim network.
        macs: Multiply-adds of one image.
        dense: Test accuracy of the dense network.
        pruned: Test accuracy of the slim one before fine-tuning.
        validation: After the last epoch.
        test: Likewise.
        seconds: Of training.
        best_epoch: The first one of those that are best on validation images.
        best_validation: After that epoch.
        best_test: Likewise.
    """

    parameters: int
    macs: int
    dense: float
    pruned: float
    validation: float
    test: float
    seconds: float
    best_epoch: int
    best_validation: float
    best_test: float

    @property
    def cell(self) -> Cell:
        """What it is a row of."""
        return Cell(**{each.name: getattr(self, each.name) for each in fields(Cell)})


@dataclass(frozen=True)
class Grid:
    """Arms at shares of weights removed, over lengths and seeds.

    Attributes:
        study: Its name.
        data: Images, one of `fashion.SOURCES`.
        model: timm architecture.
        removed: Shares of weights removed, the most telling first.
        arms: Those of `ARMS`.
        epochs: Lengths of fine-tuning.
        seeds: How many, `SWEEP_SEED` among them.
    """

    study: str
    data: str
    model: str
    removed: tuple[float, ...]
    arms: tuple[str, ...]
    epochs: tuple[int, ...]
    seeds: int

    def missing(self, validation: Mapping[Cell, float]) -> Iterator[Cell]:
        """Give the cells that can be run now, in the order in which they should be.

        Args:
            validation: Of the cells that are done, the accuracy in percent.
        """
        for epochs in self.epochs:
            for removed in self.removed:
                for arm in self.arms:
                    cells = self._next(self.first(removed, arm, epochs), validation)
                    yield from (cell for cell in cells if cell not in validation)

    def first(self, removed: float, arm: str, epochs: int) -> Cell:
        """The cell of one sweep, its rate still open."""
        return Cell(self.study, self.data, self.model, removed, arm, epochs, 0.0, SWEEP_SEED)

    def _next(self, first: Cell, validation: Mapping[Cell, float]) -> Iterator[Cell]:
        """The sweep; once it is done, the seeds at the rate it chose."""
        sweep = first.at(swept(first, validation))
        yield from sweep
        if all(cell in validation for cell in sweep):
            best = best_rate(first, validation)
            for seed in range(self.seeds):
                yield replace(first, lr=best, seed=seed)


def swept(cell: Cell, validation: Mapping[Cell, float]) -> tuple[float, ...]:
    """Tell which rates a cell's sweep has: those of the grid, and one beyond it if that is best."""
    known = {lr: validation.get(replace(cell, lr=lr, seed=SWEEP_SEED)) for lr in RATES}
    if any(value is None for value in known.values()):
        return RATES
    best = max(RATES, key=lambda lr: known[lr] or 0.0)
    below, above = BEYOND
    return (
        *((below,) if best == RATES[0] else ()),
        *RATES,
        *((above,) if best == RATES[-1] else ()),
    )


def best_rate(cell: Cell, validation: Mapping[Cell, float]) -> float:
    """Tell the rate of a finished sweep that is best on validation images, after the last epoch."""
    rates = swept(cell, validation)
    return max(rates, key=lambda lr: validation[replace(cell, lr=lr, seed=SWEEP_SEED)])


_REMOVED = (0.92, 0.985, 0.70, 0.95, 0.85)
GRIDS = {
    "main": Grid("main", "fashion-mnist", "test_resnet", _REMOVED, tuple(ARMS), (8,), 5),
    "mobilenet": Grid(
        "mobilenet", "fashion-mnist", "mobilenetv2_050", _REMOVED, tuple(ARMS), (8,), 5
    ),
    "digits": Grid("digits", "digits", "test_resnet", (0.92, 0.70), tuple(ARMS), (8,), 3),
}
