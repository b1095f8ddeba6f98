"""Four ways to prune, and two to fine-tune, on Fashion-MNIST: python -m benchmarks.pruning.

One row is a pruning method, a share of weights removed, a way to fine-tune and a seed. All slim
networks of a share have at most the same number of parameters. A run that is stopped goes on where
it was; ``--summary`` prints the table of docs/pruning.md. The learning rate of each way to
fine-tune is the best on validation images, of magnitude-pruned networks of a seed of their own.
Sized to about 40 minutes on two cores; ``--train 55000 --epochs 30`` for a GPU.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from benchmarks import fashion
from benchmarks.rows import append, read_rows
from timm_linop.bench import count_macs, count_parameters
from timm_linop.expand import expand
from timm_linop.optim import is_plain_sgd
from timm_linop.pruning import Training, pruned
from timm_linop.recipe import DistillConfig, ScheduleConfig

RESULTS = Path(__file__).with_name("results") / "pruning.csv"
ARCHITECTURE = "test_resnet"
METHODS = ("magnitude", "admm", "tpp", "curl")
REMOVED = (0.70, 0.90, 0.95)
ARMS: dict[str, dict[str, Any]] = {
    "vanilla": {},
    "linop": {"rate": 3, "gamma": 3000, "pairs": ("blocks",)},
}
RATES = (0.003, 0.01, 0.03, 0.1)
SEEDS = (0, 1, 2)
SWEEP_SEED = 100


@dataclass(frozen=True)
class Row:
    """One fine-tuning; accuracies in percent, ``pruned`` is the test accuracy before it."""

    kind: str
    method: str
    removed: float
    arm: str
    lr: float
    seed: int
    parameters: int
    macs: int
    dense: float
    pruned: float
    validation: float
    test: float
    prune_seconds: float
    seconds: float


class Comparison:
    """All runs, and what they share.

    Args:
        train: Training images.
        epochs: Epochs of fine-tuning, and of the methods that train; dense networks have twice.
        output: The CSV.
    """

    def __init__(self, train: int, epochs: int, output: Path) -> None:
        self.splits, self.epochs, self.output = fashion.read(train, 1000), epochs, output
        self.rows = read_rows(output, Row)
        self.about = f"python -m benchmarks.pruning; {train} training images, {epochs} epochs"
        self.dense = cache(self._dense)
        self.slim = cache(self._slim)

    def run(self) -> None:
        """Do what is not done yet."""
        for removed in REMOVED:
            for arm in ARMS:
                for lr in RATES:
                    self._row("sweep", "magnitude", removed, arm, lr, SWEEP_SEED)
        for seed in SEEDS:
            for removed in REMOVED:
                for method in METHODS:
                    for arm in ARMS:
                        lr = best_rate(self.rows, removed, arm)
                        self._row("result", method, removed, arm, lr, seed)

    def _row(self, kind: str, method: str, removed: float, arm: str, lr: float, seed: int) -> None:
        key = (kind, method, removed, arm, lr, seed)
        if any((r.kind, r.method, r.removed, r.arm, r.lr, r.seed) == key for r in self.rows):
            return
        dense, reached = self.dense(seed)
        slim, pruning_seconds = self.slim(method, removed, seed)
        before = fashion.accuracy(slim, self.splits.test)
        score = fine_tuned(slim, dense, self.splits, ARMS[arm], lr, self.epochs, seed)
        costs = count_parameters(slim), count_macs(slim, fashion.SIZE)
        found = (score.validation, score.test, pruning_seconds, score.seconds)
        self.rows.append(Row(*key, *costs, reached, before, *found))
        append(self.output, self.rows[-1], self.about)

    def _dense(self, seed: int) -> tuple[nn.Module, float]:
        recipe = fashion.recipe_of(0.1, 2 * self.epochs)
        torch.manual_seed(seed)
        drawn = timm.create_model(ARCHITECTURE, **fashion.ARGUMENTS)
        model, score = fashion.fit(drawn, self.splits, recipe, seed)
        return model, score.test

    def _slim(self, method: str, removed: float, seed: int) -> tuple[nn.Module, float]:
        dense, _ = self.dense(seed)
        recipe = replace(
            fashion.recipe_of(0.01, self.epochs),
            schedule=ScheduleConfig(epochs=self.epochs, sched="constant", warmup_epochs=0),
        )
        batches = fashion.loader(self.splits.train, seed)
        training = Training(batches, fashion.loader(self.splits.validation, batch=500), recipe)
        started = time.perf_counter()
        slim, _ = pruned(
            dense,
            torch.zeros(1, *fashion.SIZE),
            batches=[self.splits.train[:256]],
            training=training,
            method=method,
            target_params=1 - removed,
            round_to=1,
            floor=0.05,
        )
        return slim, time.perf_counter() - started


def fine_tuned(
    slim: nn.Module,
    teacher: nn.Module,
    splits: fashion.Splits,
    arm: Mapping[str, Any],
    lr: float,
    epochs: int,
    seed: int,
) -> fashion.Score:
    """Fine-tune a copy of a slim network.

    Args:
        slim: The network; it stays as it is.
        teacher: The dense one.
        splits: The data.
        arm: ``rate`` and ``init`` of the expansion, and fields of DistillConfig.
        lr: Learning rate.
        epochs: Epochs.
        seed: Of factors and batches.
    """
    arm = dict(arm)
    rate, init = arm.pop("rate", 0), arm.pop("init", "orthogonal")
    distill = DistillConfig(**{"gamma": 0.0, **arm})
    recipe = fashion.recipe_of(lr, epochs, distill=distill)
    student = copy.deepcopy(slim)
    if rate:
        expand(student, rate, init, seed=seed, compact=is_plain_sgd(recipe.optim))
    asked = teacher if distill.gamma or distill.kd_weight else None
    return fashion.fit(student, splits, recipe, seed, asked)[1]


def best_rate(rows: Sequence[Row], removed: float, arm: str) -> float:
    """The learning rate that validation images chose."""
    swept = [row for row in rows if (row.kind, row.removed, row.arm) == ("sweep", removed, arm)]
    return max(swept, key=lambda row: row.validation).lr


def summary(rows: Sequence[Row]) -> str:
    """Lay test accuracies out: methods and ways to fine-tune down, shares removed across.

    Args:
        rows: Those of the CSV.

    Returns:
        Markdown: mean over seeds, and the standard deviation where there are several.
    """
    results = [
        row
        for row in rows
        if row.kind == "result" and row.lr == best_rate(rows, row.removed, row.arm)
    ]
    shares = sorted({row.removed for row in results})
    head = " | ".join(f"{share:.0%} of weights removed" for share in shares)
    lines = [f"| method | fine-tuning | {head} |", "|---" * (2 + len(shares)) + "|"]
    for method in METHODS:
        for arm in ("none", *ARMS):
            cells = []
            for share in shares:
                same = [r for r in results if (r.method, r.removed) == (method, share)]
                if arm == "none":
                    cells.append(_mean(list({row.seed: row.pruned for row in same}.values())))
                else:
                    cells.append(_mean([row.test for row in same if row.arm == arm]))
            lines.append(f"| {method} | {arm} | {' | '.join(cells)} |")
    dense = {row.seed: row.dense for row in results}
    lines += ["", f"Dense: {_mean(list(dense.values()))} % over {len(dense)} seeds."]
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def main(arguments: list[str] | None = None) -> int:
    """Run what is not done yet, or tell what the rows say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pruning", description=__doc__)
    parser.add_argument("--train", type=int, default=2500, help="training images")
    parser.add_argument("--epochs", type=int, default=6, help="of fine-tuning, and of pruning")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the rows go")
    parser.add_argument("--summary", action="store_true", help="print what the rows say")
    args = parser.parse_args(arguments)
    if args.summary:
        print(summary(read_rows(args.output, Row)))
        return 0
    Comparison(args.train, args.epochs, args.output).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
