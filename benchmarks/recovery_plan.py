"""What the recovery study runs: networks, arms as flags of train.py, and the cells of its grids.

Every arm has its own sweep of learning rates on one seed: the grid's rates, and as long as the best
one on validation images is the lowest or the highest, the next one of `LADDER` beyond it. Then the
chosen rate runs on the other seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

LADDER = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
RATES = LADDER[2:6]
SWEEP_SEED = 0
NETWORKS: dict[str, dict[str, Any]] = {
    # At output stride 16 the last map of a 28 px image is 2 x 2.
    "test_resnet": {"output_stride": 16},
    "mobilenetv2_050": {"output_stride": 16},
}
_PAPER = "--gamma 3000 --pairs all --reduction sum"
# From the pruned weights: each with and without expansion, which is the question.
_TWICE = {
    "fine-tuning": "--rate 0 --gamma 0",
    "expanded": "--rate 3 --gamma 0",
    "fine-tuning + KD": "--rate 0 --gamma 0 --kd-weight 1",
    "expanded + KD": "--rate 3 --gamma 0 --kd-weight 1",
}
_MUON = {f"{arm}, Muon": f"{flags} --opt muon" for arm, flags in _TWICE.items()}
_SIMILARITY = {
    "fine-tuning + SP": f"--rate 0 {_PAPER}",
    "LinOP (paper)": f"--rate 3 --init normal {_PAPER}",
}
# From new weights in the pruned shape.
_STRUCTURE = {
    "from scratch": "--reinit --rate 0 --gamma 0",
    "ExpandNets": "--reinit --rate 3 --init normal --gamma 0",
    "vanilla distillation": f"--reinit --rate 0 {_PAPER}",
}
# Arms of the ablations.
_KD, _SP = "--kd-weight 1", "--pairs blocks --reduction mean"
_INITS = {
    f"expanded, {init}": f"--rate 3 --init {init} --gamma 0" for init in ("normal", "balanced")
}
_WIDTHS = {f"expanded, normal, rate {r}": f"--rate {r} --init normal --gamma 0" for r in (1, 5)}
_GAMMAS = {
    f"{kind} + mean SP, gamma {gamma}": f"--rate {rate} --gamma {gamma} {_SP}"
    for gamma in (100, 1000)
    for kind, rate in (("fine-tuning", 0), ("expanded", 3))
}
_OTHERS = {
    "expanded, not the classifier": "--rate 3 --gamma 0 --exclude fc",
    "expanded, no decay of factors": "--rate 3 --gamma 0 --chain-decay none",
    "fine-tuning + KD + mean SP": f"--rate 0 {_KD} --gamma 100 {_SP}",
    "expanded + KD + mean SP": f"--rate 3 {_KD} --gamma 100 {_SP}",
    "fine-tuning + KD 3": "--rate 0 --gamma 0 --kd-weight 3",
}
_ABLATIONS = {**_INITS, **_WIDTHS, **_GAMMAS, **_OTHERS}
ARMS = {**_TWICE, **_MUON, **_SIMILARITY, **_STRUCTURE, **_ABLATIONS}


@dataclass(frozen=True)
class Cell:
    """One fine-tuning.

    Attributes:
        data: Images, one of `fashion.SOURCES`.
        model: timm architecture.
        removed: Share of its weights that pruning took.
        arm: One of `ARMS`.
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
        data: Images, one of `fashion.SOURCES`.
        model: timm architecture.
        removed: Shares of weights removed, the most telling first.
        arms: Those of `ARMS`.
        epochs: Lengths of fine-tuning.
        seeds: How many, `SWEEP_SEED` among them.
        rates: Learning rates that every sweep has.
    """

    data: str
    model: str
    removed: tuple[float, ...]
    arms: tuple[str, ...]
    epochs: tuple[int, ...]
    seeds: int
    rates: tuple[float, ...] = RATES

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
        return Cell(self.data, self.model, removed, arm, epochs, 0.0, SWEEP_SEED)

    def _next(self, first: Cell, validation: Mapping[Cell, float]) -> Iterator[Cell]:
        """The sweep; once it is done, the seeds at the rate it chose."""
        sweep = first.at(swept(first, self.rates, validation))
        yield from sweep
        if all(cell in validation for cell in sweep):
            best = best_rate(first, self.rates, validation)
            for seed in range(self.seeds):
                yield replace(first, lr=best, seed=seed)


def swept(
    first: Cell, rates: tuple[float, ...], validation: Mapping[Cell, float]
) -> tuple[float, ...]:
    """Tell which learning rates a sweep has, as far as is known yet.

    Args:
        first: Whose sweep it is.
        rates: Those it begins with, neighbours on the `LADDER`.
        validation: Accuracies of the cells that are done.

    Returns:
        Rates in order, more than at the beginning while the best one is an edge.
    """
    if any(cell not in validation for cell in first.at(rates)):
        return rates
    best = max(rates, key=lambda lr: validation[first.at([lr])[0]])
    low, high = LADDER.index(rates[0]), LADDER.index(rates[-1])
    if best == rates[0] and low > 0:
        return swept(first, LADDER[low - 1 : high + 1], validation)
    if best == rates[-1] and high < len(LADDER) - 1:
        return swept(first, LADDER[low : high + 2], validation)
    return rates


def best_rate(first: Cell, rates: tuple[float, ...], validation: Mapping[Cell, float]) -> float:
    """Tell the rate of a finished sweep that is best on validation images, after the last epoch."""
    sweep = first.at(swept(first, rates, validation))
    return max(sweep, key=lambda cell: validation[cell]).lr


_REMOVED = (0.92, 0.985, 0.70, 0.95, 0.85)
_FASHION = ("fashion-mnist", "test_resnet")
# A cell that stands in several of them is run once.
GRIDS = {
    "main": Grid(*_FASHION, _REMOVED, tuple(_TWICE), (8,), 5),
    "paper": Grid(*_FASHION, _REMOVED, tuple(_SIMILARITY), (8,), 5),
    "length": Grid(*_FASHION, (0.92, 0.985), tuple(_TWICE), (3, 30), 3, (0.03, 0.1)),
    "structure": Grid(*_FASHION, _REMOVED, tuple(_STRUCTURE), (8,), 5),
    "ablation": Grid(
        *_FASHION, (0.985, 0.92), (*_TWICE, *_MUON, *_ABLATIONS), (8,), 3, (0.03, 0.1)
    ),
    "mobilenet": Grid("fashion-mnist", "mobilenetv2_050", (0.92, 0.70), tuple(_TWICE), (8,), 5),
    "digits": Grid("digits", "mobilenetv2_050", (0.92, 0.70), tuple(_TWICE), (8,), 3),
}
