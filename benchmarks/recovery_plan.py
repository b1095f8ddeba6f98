"""What the recovery study runs: images, networks, and the cells of its grids.

Every arm has its own sweep of learning rates, on one seed or several: the grid's rates, and as long
as the best one on validation images is the lowest or the highest, the next one of `LADDER` beyond
it. Then the chosen rate runs on the other seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean

from benchmarks.recovery_arms import (
    ALONE,
    CONTROLLED,
    DEFAULT,
    DISTILLED,
    EXPANDED_MIXED,
    EXPANSION,
    GENTLE,
    KD_MUON,
    MIXED,
    MUON_ALONE,
    NORMALISED,
    PLAIN,
    SIMILARITY,
    STRUCTURE,
    TAUGHT_MIXED,
    TEACHER,
    TRAINING,
    TWICE,
)

LADDER = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
RATES = LADDER[2:6]


@dataclass(frozen=True)
class Data:
    """Images, and the lengths that go with so many of them.

    Attributes:
        name: One of `fashion.SOURCES`.
        train: Images to train on.
        validation: Others to choose by.
        dense_epochs: Of training the dense network.
        pruning_epochs: Of pruning it.
        warmup_epochs: Of fine-tuning.
        varied: Whether all training is on images that are shifted and flipped.
        dense_train: Images that the dense network is trained on, if those are more; `train` of
            them are what it is pruned and fine-tuned on.
    """

    name: str
    train: int
    validation: int
    dense_epochs: int
    pruning_epochs: int
    warmup_epochs: int
    varied: bool = False
    dense_train: int = 0


DATA = {
    "fashion-mnist": Data("fashion-mnist", 5000, 5000, 12, 8, 1),
    "fashion-mnist-varied": Data("fashion-mnist", 5000, 5000, 40, 8, 1, varied=True),
    "fashion-mnist-49k": Data("fashion-mnist", 49000, 5000, 4, 2, 0),
    # As from the Hub: trained on many more images than its user has.
    "fashion-mnist-dense-49k": Data("fashion-mnist", 5000, 5000, 8, 8, 1, dense_train=49000),
    # Likewise, in half as many epochs, for a MobileNetV2, whose steps take longer.
    "fashion-mnist-dense-49k-4": Data("fashion-mnist", 5000, 5000, 4, 8, 1, dense_train=49000),
    # Likewise, in a quarter, for timm's ResNet-10, which has 13 times the parameters.
    "fashion-mnist-dense-49k-2": Data("fashion-mnist", 5000, 5000, 2, 8, 1, dense_train=49000),
    # A MobileNetV2 learns more slowly from new weights.
    "fashion-mnist-dense-30": Data("fashion-mnist", 5000, 5000, 30, 8, 1),
    "digits": Data("digits", 700, 300, 12, 8, 1),
}


@dataclass(frozen=True)
class Cell:
    """One fine-tuning.

    Attributes:
        data: Images, one of `DATA`.
        model: timm architecture.
        removed: Share of its weights that pruning took.
        arm: One of `recovery_arms.ARMS`.
        epochs: How long.
        lr: Learning rate.
        seed: Of the dense network, of pruning, of new weights and factors, of the batches.
    """

    data: str
    model: str
    removed: float
    arm: str
    epochs: int
    lr: float
    seed: int

    @property
    def cell(self) -> Cell:
        """What it is a row of, where it is one: itself without what was measured."""
        return Cell(**{each.name: getattr(self, each.name) for each in fields(Cell)})


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


Rows = Mapping[Cell, Row]


def by_cell(rows: Iterable[Row]) -> dict[Cell, Row]:
    """Put the rows of the CSV in order by their cells."""
    return {row.cell: row for row in rows}


def validation_of(rows: Rows) -> dict[Cell, float]:
    """Tell by cell what has been reached on validation images, by which rates are chosen."""
    return {cell: row.validation for cell, row in rows.items()}


@dataclass(frozen=True)
class Sweep:
    """The learning rates of an arm.

    Attributes:
        cell: The arm's, its rate and seed open.
        rates: Those it begins with, neighbours on the `LADDER`.
        seeds: On how many seeds each of them runs.
    """

    cell: Cell
    rates: tuple[float, ...]
    seeds: int

    def cells(self, rates: Sequence[float]) -> list[Cell]:
        """Give the cells of some of its rates."""
        return [replace(self.cell, lr=lr, seed=s) for lr in rates for s in range(self.seeds)]

    def tried(self, validation: Mapping[Cell, float]) -> tuple[float, ...]:
        """Tell which rates it has, as far as is known yet.

        Args:
            validation: Accuracies of the cells that are done.

        Returns:
            Rates in order, more than at the beginning while the best one is an edge.
        """
        low, high = LADDER.index(self.rates[0]), LADDER.index(self.rates[-1])
        while (best := self._best(rates := LADDER[low : high + 1], validation)) is not None:
            if best == rates[0] and low > 0:
                low -= 1
            elif best == rates[-1] and high < len(LADDER) - 1:
                high += 1
            else:
                break
        return rates

    def best(self, validation: Mapping[Cell, float]) -> float | None:
        """Tell the rate that is best on validation images after the last epoch.

        Args:
            validation: Accuracies of the cells that are done.

        Returns:
            By the mean over the sweep's seeds; None while the sweep is not finished.
        """
        return self._best(self.tried(validation), validation)

    def _best(self, rates: Sequence[float], validation: Mapping[Cell, float]) -> float | None:
        if any(cell not in validation for cell in self.cells(rates)):
            return None
        return max(rates, key=lambda lr: fmean(validation[cell] for cell in self.cells([lr])))


@dataclass(frozen=True)
class Grid:
    """Arms at shares of weights removed, over lengths and seeds.

    Attributes:
        data: Images, one of `DATA`.
        model: timm architecture.
        removed: Shares of weights removed, the most telling first.
        arms: Those of `recovery_arms.ARMS`.
        epochs: Lengths of fine-tuning.
        seeds: How many.
        rates: Learning rates that every sweep has.
        swept: How many of the seeds a sweep has.
    """

    data: str
    model: str
    removed: tuple[float, ...]
    arms: tuple[str, ...]
    epochs: tuple[int, ...]
    seeds: int
    rates: tuple[float, ...] = RATES
    swept: int = 1

    def missing(self, validation: Mapping[Cell, float]) -> Iterator[Cell]:
        """Give the cells that can be run now, in the order in which they should be.

        Args:
            validation: Of the cells that are done, the accuracy in percent.
        """
        for epochs in self.epochs:
            for removed in self.removed:
                for arm in self.arms:
                    cells = self._next(self.sweep(removed, arm, epochs), validation)
                    yield from (cell for cell in cells if cell not in validation)

    def sweep(self, removed: float, arm: str, epochs: int) -> Sweep:
        """The sweep of an arm."""
        cell = Cell(self.data, self.model, removed, arm, epochs, 0.0, 0)
        return Sweep(cell, self.rates, self.swept)

    def _next(self, sweep: Sweep, validation: Mapping[Cell, float]) -> Iterator[Cell]:
        """The sweep; once it is done, the seeds at the rate it chose."""
        yield from sweep.cells(sweep.tried(validation))
        best = sweep.best(validation)
        if best is not None:
            for seed in range(self.seeds):
                yield replace(sweep.cell, lr=best, seed=seed)


_REMOVED = (0.92, 0.985, 0.70, 0.95, 0.85)
_FASHION = ("fashion-mnist", "test_resnet")
_TAUGHT = ("fashion-mnist-dense-49k", "test_resnet")
_MOBILENET = ("fashion-mnist-dense-49k-4", "mobilenetv2_035")
_RESNET10T = ("fashion-mnist-dense-49k-2", "resnet10t")
# Expansion beside KD and mixup, which SGD trains.
_EXPANDED = (PLAIN, TAUGHT_MIXED, EXPANDED_MIXED, DEFAULT)
# A cell that stands in several of them is run once.
GRIDS = {
    "main": Grid(
        *_FASHION,
        _REMOVED,
        (*TWICE, KD_MUON),
        (8,),
        seeds=5,
        swept=3,
    ),
    "kd-muon": Grid(*_FASHION, (0.92, 0.985, 0.95, 0.70), (PLAIN, KD_MUON), (30,), 5, swept=3),
    "varied": Grid(
        "fashion-mnist-varied", "test_resnet", (0.92, 0.95), (*ALONE, KD_MUON), (30,), 5
    ),
    "mixup": Grid(
        *_FASHION,
        (0.92, 0.985, 0.95, 0.70),
        (PLAIN, KD_MUON, *MIXED),
        (30,),
        5,
        swept=3,
    ),
    "patient": Grid(*_FASHION, (0.985, 0.95), CONTROLLED, (100,), 5, LADDER[2:]),
    "taught": Grid(*_TAUGHT, (0.95, 0.985, 0.92), CONTROLLED, (30,), 5, swept=3),
    "taught-long": Grid(*_TAUGHT, (0.985,), CONTROLLED, (100,), 5, swept=3),
    "taught-longer": Grid(*_TAUGHT, (0.985,), CONTROLLED, (200,), 5, LADDER[2:], swept=3),
    "taught-mobilenet": Grid(*_MOBILENET, (0.92, 0.95), DISTILLED, (30,), 5, swept=3),
    # A test of what recovery_gap guesses: longer fine-tuning overfits more.
    "taught-mobilenet-long": Grid(*_MOBILENET, (0.95,), CONTROLLED, (100,), 5),
    # Where 98.5 % removed leaves 72,663 parameters, not 5,031.
    "taught-resnet10t": Grid(*_RESNET10T, (0.985,), DISTILLED, (30,), 10, swept=3),
    "taught-expanded": Grid(*_TAUGHT, (0.92,), _EXPANDED, (30,), 5),
    "taught-expanded-mobilenet": Grid(*_MOBILENET, (0.92,), _EXPANDED, (30,), 5),
    "taught-expanded-resnet10t": Grid(*_RESNET10T, (0.985,), _EXPANDED, (30,), 5),
    "full": Grid(
        "fashion-mnist-49k",
        "test_resnet",
        (0.985, 0.92),
        (*TWICE, KD_MUON, "normalised branches", *NORMALISED),
        (2,),
        seeds=5,
        swept=3,
    ),
    "length": Grid(*_FASHION, (0.92, 0.985), (*ALONE, KD_MUON), (30, 8, 3), 5, swept=3),
    "paper": Grid(*_FASHION, _REMOVED, (*TWICE, *SIMILARITY, *STRUCTURE), (8,), 5),
    "expansion": Grid(*_FASHION, (0.985, 0.92), (*ALONE, *EXPANSION), (8,), 5),
    "gentle": Grid(*_FASHION, (0.92, 0.985), (*TWICE, *GENTLE), (8,), 5, swept=3),
    "teacher": Grid(*_FASHION, (0.985, 0.92), (*TWICE, *TEACHER), (8,), 5),
    "training": Grid(*_FASHION, (0.985, 0.92), (*ALONE, *TRAINING), (8,), 5),
    "muon": Grid(
        *_FASHION,
        (0.92, 0.985, 0.95),
        (*TWICE, MUON_ALONE, KD_MUON, "expanded + KD, Muon"),
        (8,),
        seeds=5,
        swept=3,
    ),
    "mobilenet": Grid(
        "fashion-mnist-dense-30", "mobilenetv2_050", (0.92, 0.70), (*TWICE, KD_MUON), (8,), 5
    ),
    "long": Grid(*_FASHION, (0.985, 0.92), (*ALONE, KD_MUON), (100,), 5, LADDER[2:]),
    "digits": Grid(
        "digits",
        "mobilenetv2_050",
        (0.92, 0.70),
        (*TWICE, MUON_ALONE, KD_MUON),
        (8,),
        seeds=5,
        swept=3,
    ),
}
