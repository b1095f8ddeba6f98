"""Fine-tuning a pruned net on few images: python -m benchmarks.limited [--data digits] [--summary].

50 images of each class of Fashion-MNIST (the Debian package dataset-fashion-mnist) or of
scikit-learn's digits; a dense `test_resnet` is trained on them, its channels are halved by
magnitude, and the slim net is trained in several ways on the same images. Every way but one sees as
many of them; accuracy is of the whole test split, after the last epoch. Rows go to
``benchmarks/results/limited.csv``; those that are there already are not measured again. Beside them
stands how well the teacher knows the six versions of its own training images, which give the
refinement its first labels.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

import timm_linop
from benchmarks.rows import add, read_table
from timm_linop.bench import Cost
from timm_linop.data import (
    VERSIONS,
    ImageData,
    load_data,
    make_expanded_loader,
    make_transforms,
)
from timm_linop.fit import Trainer
from timm_linop.flags import parse
from timm_linop.models import make_student, make_teacher
from timm_linop.recipe import Recipe
from timm_linop.refine import refiner
from timm_linop.resume import Stop
from timm_linop.setup import make_loaders, start

RESULTS = Path(__file__).with_name("results") / "limited.csv"
WORK = Path("runs") / "limited"
DATA = {"fashion-mnist": "idx:/usr/share/datasets/fashion-mnist", "digits": "digits"}
EACH, CHOSEN, SEEDS, RATIO, SIZE = 50, 0, (0, 1, 2), 0.5, 28
STAGE, REFINED = 24, 2  # epochs of the recipe's two stages, 200 and 16 in the paper
EPOCHS = STAGE + len(VERSIONS) * REFINED  # of the others, which see the images as often
COLUMNS = ("data", "seed", "arm", "parameters", "macs", "passes", "accuracy", "seconds")
# Smaller crops, as timm's default has them, leave too little of 28 px.
COMMON = f"--recipe curl-limited --img-size {SIZE} --crop-pct 1.0 --opt momentum --scale 0.7 1.0"
COMMON += " --color-jitter 0 --workers 0 --checkpoint-hist 1"
PLAIN = f"--epochs {EPOCHS} --mixup 0 --kd-weight 0 --task-weight 1 --refine-epochs 0"
SLIM = "--pruned {work}/pruned --teacher local-dir:{work}/dense"
DENSE, SMALL = "dense", "small, from scratch"
REFINEMENT, LONG = "mixup, KD, then refined", "mixup, KD, then refined as long as in the paper"
FLAGS = {
    DENSE: f"--model test_resnet --in-chans 1 --lr 0.05 {PLAIN}",
    "fine-tuning": f"{SLIM} {PLAIN}",
    "mixup, KD": f"{SLIM} --epochs {EPOCHS} --refine-epochs 0",
    REFINEMENT: f"{SLIM} --epochs {STAGE} --refine-epochs {REFINED}",
    LONG: f"{SLIM} --epochs {STAGE} --refine-epochs 16",  # of the first seed only
    # The pruned shape without the pruned weights.
    SMALL: "--model test_resnet --in-chans 1 --model-kwargs channels=[16,24,24,48] stem_width=8 "
    f"--lr 0.05 {PLAIN}",
}
PRUNED, FIRST = "pruned, not trained", "mixup, KD, first stage"
# In the order of `VERSIONS`; their rows are of the dense net.
KINDS = (
    "as they are",
    "2 x 2 blocks",
    "3 x 3 blocks",
    "4 x 4 blocks",
    "a square cut out",
    "turned",
)
ON = "dense, on training images: "


@cache
def few(name: str) -> ImageData:
    """Take `EACH` images of each class off a train split, the same in every run."""
    data = load_data(DATA[name])
    labels, draws = np.array(data.train["label"]), np.random.default_rng(CHOSEN)
    places = [draws.permutation(np.flatnonzero(labels == c))[:EACH] for c in np.unique(labels)]
    train = data.train.select(np.sort(np.concatenate(places)), keep_in_memory=True)
    # Nothing is chosen by it; its accuracy is in each run's metrics.csv.
    return replace(data, train=train, validation=data.validation.select(range(100)))


@cache
def test_batches(name: str) -> list[tuple[Tensor, Tensor]]:
    """The test split, transformed once."""
    recipe, model = recipe_of(name, 0, DENSE), timm.create_model("test_resnet", in_chans=1)
    return list(make_loaders(recipe, recipe.augment, few(name), model).test)


def recipe_of(name: str, seed: int, arm: str) -> Recipe:
    """The recipe of an arm, as train.py would read it."""
    work = WORK / f"{name}-{seed}"
    flags = f"{COMMON} {FLAGS[arm].format(work=work)} --seed {seed}".split()
    output = work / arm.replace(", ", "-").replace(" ", "-")
    return parse(Recipe, [*flags, "--output", str(output)], "train.py").effective()


def trainer_of(recipe: Recipe, data: ImageData) -> tuple[Trainer, dict[str, Any]]:
    """The trainer that train.py would make of a recipe, on these images."""
    shutil.rmtree(recipe.run.output or "", ignore_errors=True)
    accelerator = start(recipe, writes=True)
    Path(recipe.run.output or "").mkdir(parents=True)
    student, _ = make_student(recipe, data)
    loaders = make_loaders(recipe, recipe.augment, data, student)
    teacher = make_teacher(recipe, loaders.config) if recipe.distill.asked else None
    splits = loaders.train, loaders.validation
    return Trainer(student, teacher, *splits, recipe, accelerator), dict(loaders.config)


def trained(name: str, seed: int, arm: str) -> Iterator[tuple[str, nn.Module, int, float]]:
    """Train an arm; give its name, model, passes over the images and seconds, after each stage."""
    recipe, data = recipe_of(name, seed, arm), few(name)
    trainer, config = trainer_of(recipe, data)
    model, seconds = trainer.run(Stop())
    if not recipe.refine.refine_epochs:
        yield arm, model, EPOCHS, seconds
        return
    yield FIRST, model, STAGE, seconds
    model, seconds = refiner(trainer, data, config).run(Stop())
    yield arm, model, STAGE + len(VERSIONS) * recipe.refine.refine_epochs, seconds


def prepared(name: str, seed: int) -> Iterator[tuple[str, nn.Module, int, float]]:
    """Train the dense net, prune it, and leave both where the other arms look for them."""
    work = WORK / f"{name}-{seed}"
    ((arm, dense, passes, seconds),) = trained(name, seed, DENSE)
    # Each run has its own folder; slim ones lie beside, as recipes name them.
    shutil.rmtree(work / "dense")
    timm_linop.save(dense, work / "dense")
    yield arm, dense, passes, seconds
    slim = timm_linop.prune(dense, torch.randn(1, 1, SIZE, SIZE), ratio=RATIO)
    shutil.rmtree(work / "pruned", ignore_errors=True)
    timm_linop.save(slim, work / "pruned")
    yield PRUNED, slim, 0, 0.0


@torch.no_grad()
def accuracy(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Percent of the images whose class is the model's first guess."""
    right = [(model.eval()(images).argmax(1) == labels) for images, labels in batches]
    return 100 * torch.cat(right).double().mean().item()


@torch.no_grad()
def on_versions(name: str, seed: int) -> Iterator[tuple[str, nn.Module, float]]:
    """Measure the dense net on each version of the images that it was trained on."""
    dense = timm.create_model(f"local-dir:{WORK / f'{name}-{seed}'}/dense", pretrained=True).eval()
    recipe, train = recipe_of(name, seed, DENSE), few(name).train
    config = make_loaders(recipe, recipe.augment, few(name), dense).config
    _, transform = make_transforms(dict(config), augment=recipe.augment)
    right = torch.zeros(len(VERSIONS))
    for images, targets in make_expanded_loader(train, transform, 100, seed=seed):
        classes, places = targets.unbind(dim=1)
        right.index_add_(0, places % len(VERSIONS), (dense(images).argmax(1) == classes).float())
    for kind, count in zip(KINDS, right.tolist(), strict=True):
        yield ON + kind, dense, 100 * count / len(train)


def measure(name: str, path: Path) -> None:
    """Add the rows that are missing."""
    for seed in SEEDS:
        _measure_arms(name, seed, path)
        if not any(arm.startswith(ON) for arm in _arms(name, seed, path)):
            for arm, model, reached in on_versions(name, seed):
                append(_row(name, seed, arm, model, EPOCHS, reached, 0), path)


def _measure_arms(name: str, seed: int, path: Path) -> None:
    there = _arms(name, seed, path)
    for arm in FLAGS:
        wanted = {DENSE, PRUNED} if arm == DENSE else {arm}
        slim_needed = arm == DENSE and not (WORK / f"{name}-{seed}" / "pruned").exists()
        done = wanted <= there and not slim_needed
        if done or (arm == LONG and seed != SEEDS[0]):
            continue
        make = prepared(name, seed) if arm == DENSE else trained(name, seed, arm)
        for made, model, passes, seconds in make:
            if made not in there:
                reached = accuracy(model, test_batches(name))
                append(_row(name, seed, made, model, passes, reached, seconds), path)
                there.add(made)


def _arms(name: str, seed: int, path: Path) -> set[str]:
    """Arms that have their row."""
    return {
        row["arm"] for row in read_table(path) if (row["data"], row["seed"]) == (name, str(seed))
    }


def _row(
    name: str, seed: int, arm: str, model: nn.Module, passes: int, reached: float, seconds: float
) -> dict[str, Any]:
    cost = Cost.of(model, (1, SIZE, SIZE))
    values = (cost.parameters, cost.macs, passes, f"{reached:.2f}", round(seconds))
    return dict(zip(COLUMNS, (name, seed, arm, *values), strict=True))


def append(row: dict[str, Any], path: Path) -> None:
    """Add a row to the CSV, and print it."""
    head = (
        f"python -m benchmarks.limited; {EACH} images a class, ratio {RATIO}, {SIZE} px, "
        f"float32, {torch.get_num_threads()} thread, {platform.machine()} CPU, torch "
        f"{torch.__version__}, timm {timm.__version__}"
    )
    add(path, row, head)
    print(*row.values(), flush=True)


def summary(rows: Sequence[dict[str, str]]) -> str:
    """Lay the rows out: an arm a line, mean and standard deviation over the seeds.

    Args:
        rows: Those of the CSV.

    Returns:
        Markdown, a table a data set.
    """
    tables = []
    for name in dict.fromkeys(row["data"] for row in rows):
        lines = [f"| {name} | test accuracy | each seed | parameters | MACs | passes |"]
        lines.append("|---" * 6 + "|")
        for arm in (DENSE, PRUNED, SMALL, "fine-tuning", "mixup, KD", FIRST, REFINEMENT, LONG):
            found = [row for row in rows if (row["data"], row["arm"]) == (name, arm)]
            if found:
                costs = f"{int(found[0]['parameters']):,} | {int(found[0]['macs']):,}"
                lines.append(f"| {arm} | {_spread(found)} | {costs} | {found[0]['passes']} |")
        tables.append("\n".join(lines))
        lines = ["| the dense net on its training images | accuracy | each seed |"]
        lines.append("|---" * 3 + "|")
        for kind in KINDS:
            found = [row for row in rows if (row["data"], row["arm"]) == (name, ON + kind)]
            if found:
                lines.append(f"| {kind} | {_spread(found)} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _spread(rows: Sequence[dict[str, str]]) -> str:
    """Mean, standard deviation, and the accuracy of each seed, in two cells."""
    reached = [float(row["accuracy"]) for row in sorted(rows, key=lambda row: int(row["seed"]))]
    spread = f" ± {stdev(reached):.1f}" if len(reached) > 1 else ""
    return f"{fmean(reached):.1f}{spread} | {', '.join(f'{value:.1f}' for value in reached)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write.

    Args:
        arguments: The command line; None takes the process's own.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limited", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", choices=list(DATA), default="fashion-mnist")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--summary", action="store_true", help="print what the rows say")
    args = parser.parse_args(arguments)
    if not args.summary:
        began = time.perf_counter()
        measure(args.data, args.output)
        print(f"{time.perf_counter() - began:.0f} s")
    print(summary(read_table(args.output)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
