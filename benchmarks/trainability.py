"""What pruning does to a network's trainability: the linear MLP of the TPP paper.

    python -m benchmarks.trainability [--quick] [--data idx:DIR|digits]
    python -m benchmarks.trainability --summary       # tables, and the figure

Seven linear layers without activations between them (Wang & Fu, ICLR 2023) are trained on real
images. Then all six hidden layers lose the same share of their units, in three ways: those of
smallest mean ``|w|`` go at once (L1); what L1 leaves is made orthogonal (L1+OrthP); TPP takes the
same units away while the network trains on. Each trains for as many steps after the dense network
as the others, at one learning rate: TPP spends half of them taking units away, the others all of
them retraining. The mean JSV is that of the Jacobian d logits / d pixels.

Two controls, at some ratios: L1 whose learning rate is held as long as TPP's before it falls (L1
held), and TPP that only shrinks what it takes away (TPP without Gram).

Rows are written to the CSV as they are made, and a rerun goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.rows import add, read_table
from benchmarks.trainability_summary import figure, summary
from timm_linop.bench import machine
from timm_linop.channels.coupled import ChannelGroup
from timm_linop.channels.cut import cut_tensors, kept_by
from timm_linop.data import load_data
from timm_linop.pruning.tpp import TrainabilityPreserving, marked_units
from timm_linop.pruning.trainability import mean_jacobian_singular_value, orthogonalize
from timm_linop.recipe import TPPConfig
from timm_linop.regulariser import Regulariser

RESULTS = Path(__file__).with_name("results") / "trainability.csv"
FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
LAYERS, WIDTH, BATCH = 7, 100, 100
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
METHODS, CONTROLS = ("L1", "L1+OrthP", "TPP"), ("L1 held", "TPP without Gram")
COLUMNS = (
    "seed",
    "ratio",
    "method",
    "lr",
    "jsv_pruned",
    "accuracy_pruned",
    "jsv_retrained",
    "accuracy_retrained",
)


@dataclass(frozen=True)
class Study:
    """How much is measured; ``steps`` are those after the dense network's own."""

    images: int = 10_000
    dense_steps: int = 1500
    steps: int = 1000
    seeds: tuple[int, ...] = (0, 1, 2)
    ratios: tuple[float, ...] = tuple(i / 10 for i in range(10))
    rates: tuple[float, ...] = (1e-2, 1e-3)
    controls: tuple[float, ...] = (0.5, 0.7, 0.9)


QUICK = Study(images=1000, dense_steps=300, steps=100, seeds=(0,), ratios=(0.0, 0.5, 0.9))


@dataclass(frozen=True)
class Images:
    """Standardised pixels, flattened, and labels."""

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def images_of(spec: str, most: int) -> Images:
    """Read a data set's first training images, and all of its test images."""
    data = load_data(spec)
    splits = []
    for split, count in ((data.train, most), (data.test, len(data.test))):
        rows = split[:count]
        pixels = np.stack([np.asarray(image, dtype=np.float32) for image in rows["image"]])
        splits.append((torch.from_numpy(pixels).flatten(1), torch.tensor(rows["label"])))
    mean, std = splits[0][0].mean(), splits[0][0].std()
    train, test = (((pixels - mean) / std, labels) for pixels, labels in splits)
    return Images(data.name, train, test)


def linear_mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers, one after the other."""
    return nn.Sequential(*itertools.starmap(nn.Linear, itertools.pairwise(widths)))


def hidden_groups(model: nn.Sequential) -> list[ChannelGroup]:
    """The hidden units: a row and a bias of a layer, and a column of the next."""
    groups = []
    for i, layer in enumerate(list(model)[:-1]):
        units = torch.arange(layer.out_features)
        axes = {(f"{i}.weight", 0): units, (f"{i}.bias", 0): units, (f"{i + 1}.weight", 1): units}
        groups.append(ChannelGroup(str(i), len(units), axes))
    return groups


def without(model: nn.Sequential, marked: dict[str, list[int]]) -> nn.Sequential:
    """Remove hidden units: a slim model."""
    cuts = [group.cut(marked[group.layer]) for group in hidden_groups(model)]
    state = cut_tensors(model, kept_by(cuts, model))
    weights = [state[f"{i}.weight"] for i in range(len(model))]
    slim = linear_mlp([weights[0].shape[1], *map(len, weights)])
    slim.load_state_dict(state)
    return slim


def units_kept(size: int, ratio: float) -> int:
    """Count what stays as the paper does: ``ceil(ratio * size)`` go, at most 99.5% of them."""
    return size - min(math.ceil(round(ratio * size, 6)), math.floor(0.995 * size))


def train(
    model: nn.Sequential,
    images: Images,
    steps: int,
    lr: float,
    seed: int,
    *,
    falls: bool = True,
    regulariser: Regulariser | None = None,
) -> nn.Sequential:
    """Train with momentum; the learning rate falls tenfold after each third of the steps."""
    pixels, labels = images.train
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(
        model.parameters(), lr, MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True
    )
    milestones = [steps // 3, 2 * steps // 3] if falls else []
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    batches = itertools.chain.from_iterable(
        torch.randperm(len(pixels), generator=order).split(BATCH) for _ in itertools.count()
    )
    for step, batch in enumerate(itertools.islice(batches, steps), start=1):
        loss = nn.functional.cross_entropy(model(pixels[batch]), labels[batch])
        if regulariser is not None:
            loss = loss + regulariser.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if regulariser is not None:
            regulariser.after_step(step)
    return model


def pruned(
    dense: nn.Sequential,
    images: Images,
    method: str,
    ratio: float,
    lr: float,
    seed: int,
    steps: int,
) -> nn.Sequential:
    """Prune a copy of the dense model; TPP trains it for so many steps meanwhile."""
    model, groups = copy.deepcopy(dense), hidden_groups(dense)
    if method == "dense":
        return model
    kept = {group.layer: units_kept(group.size, ratio) for group in groups}
    if method.startswith("TPP"):
        settings = TPPConfig() if method == "TPP" else TPPConfig(tpp_gram=0)
        tpp = TrainabilityPreserving(model, groups, kept, steps, settings)
        train(model, images, steps, lr, seed, falls=False, regulariser=tpp)
        return without(model, tpp.removed())
    marked = {group.layer: marked_units(model, group, kept[group.layer]) for group in groups}
    slim = without(model, marked)
    return orthogonalize(slim) if method == "L1+OrthP" else slim


def trained_dense(images: Images, study: Study, seed: int) -> nn.Sequential:
    """The network that all of a seed's begin with."""
    torch.manual_seed(seed)
    classes = int(images.train[1].max()) + 1
    model = linear_mlp([images.train[0].shape[1], *[WIDTH] * (LAYERS - 1), classes])
    return train(model, images, study.dense_steps, 1e-2, seed)


def measured(
    dense: nn.Sequential, images: Images, study: Study, key: tuple[int, float, str, float]
) -> dict[str, Any]:
    """One row: prune, measure, retrain, measure."""
    seed, ratio, method, lr = key
    apart = study.steps // 2 if method in ("TPP", *CONTROLS) else 0
    slim = pruned(dense, images, method, ratio, lr, seed, apart)
    before = _figures(slim, images)
    if method == "L1 held":
        train(slim, images, apart, lr, seed, falls=False)
    after = _figures(train(slim, images, study.steps - apart, lr, seed), images)
    return dict(zip(COLUMNS, (*key, *before, *after), strict=True))


@torch.no_grad()
def _figures(model: nn.Sequential, images: Images) -> tuple[str, str]:
    """The mean JSV and the test accuracy in percent."""
    pixels, labels = images.test
    jsv = mean_jacobian_singular_value(model, pixels[:4])  # the same for all, as it is linear
    accuracy = (model(pixels).argmax(1) == labels).double().mean().item()
    return f"{jsv:.4g}", f"{100 * accuracy:.2f}"


def keys(study: Study) -> list[tuple[int, float, str, float]]:
    """Seed, ratio, method and learning rate of each row."""
    methods = {ratio: METHODS if ratio else ("dense",) for ratio in study.ratios}
    methods |= {ratio: methods[ratio] + CONTROLS for ratio in study.controls if ratio in methods}
    return [
        (seed, ratio, method, lr)
        for seed, ratio in itertools.product(study.seeds, study.ratios)
        for method, lr in itertools.product(methods[ratio], study.rates)
    ]


def run(spec: str, study: Study, output: Path) -> None:
    """Measure what is not in the CSV yet.

    Raises:
        SystemExit: If its rows were made with other settings.
    """
    images = images_of(spec, study.images)
    head = (
        f"python -m benchmarks.trainability; first {study.images} training images of "
        f"{images.name}, {study.dense_steps} steps dense, {study.steps} after, batches of {BATCH}"
    )
    if output.exists() and not output.read_text().startswith(f"# {head}; "):
        sys.exit(f"{output} was made with other settings; remove it, or choose another --output.")
    done = {tuple(row[c] for c in COLUMNS[:4]) for row in read_table(output)}
    dense = cache(partial(trained_dense, images, study))
    for key in keys(study):
        if tuple(map(str, key)) not in done:
            _append(output, head, measured(dense(key[0]), images, study, key))


def _append(path: Path, head: str, row: dict[str, Any]) -> None:
    add(path, row, f"{head}; " + ", ".join(f"{k} {v}" for k, v in machine().items()))
    print(*row.values(), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or tell what was measured.

    Args:
        arguments: The command line; None takes the process's own.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainability", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    default = f"idx:{FASHION}" if FASHION.is_dir() else "digits"
    parser.add_argument("--data", default=default, help="idx:DIR or digits (now %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a minute's worth, not for the docs")
    parser.add_argument("--output", type=Path, help="where the rows go")
    parser.add_argument("--summary", action="store_true", help="print the tables, draw the figure")
    args = parser.parse_args(arguments)
    output = args.output or (Path("runs/trainability-quick.csv") if args.quick else RESULTS)
    if args.summary:
        print(summary(read_table(output)))
        figure(read_table(output), output.with_suffix(".png"))
        return 0
    torch.set_num_threads(1)  # the layers are small
    run(args.data, QUICK if args.quick else Study(), output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
