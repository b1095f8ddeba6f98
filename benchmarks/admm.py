"""What filter-wise ADMM comes to on digits: python -m benchmarks.admm [--seeds N].

A small residual network with BatchNorm is trained, then pruned to 6 of 16, 6 of 16 and 12 of 32
channels: with ADMM in 15 epochs, or by the norms of its filters at once, then trained for 15 epochs
(learning rate 0.01, cosine). SGD (Nesterov, momentum 0.9, batches of 64), float32, one thread;
accuracy on 400 images. Prints a table; takes a few minutes.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from timm_linop.channels.coupled import ChannelGroup
from timm_linop.channels.cut import cut_tensors, kept_by
from timm_linop.pruning.admm import ADMM
from timm_linop.pruning.silence import silence
from timm_linop.recipe import ADMMConfig
from timm_linop.regulariser import Regulariser

KEPT = {"stem": 6, "first": 6, "last": 12}
TRAIN, BATCH = 1397, 64
# Learning rate, whether it falls by a cosine, settings.
RUNS = (
    (0.01, False, ADMMConfig()),
    (0.01, True, ADMMConfig()),
    (0.01, False, ADMMConfig(admm_iterations=30)),
    (0.01, False, ADMMConfig(rho=1.0, rho_stages=2)),
    (0.01, True, ADMMConfig(rho=1.0, rho_stages=2)),
    (0.01, False, ADMMConfig(rho=0.001, rho_stages=4)),
    (0.001, False, ADMMConfig(rho=1.0, rho_stages=3)),
)
COLUMNS = "seed", "lr", "rho", "iterations", "residual", "dense", "at once", "and trained"
COLUMNS += "before the cut", "after"

Images = tuple[Tensor, Tensor]


class Residual(nn.Module):
    """A stem, one residual block, one layer more and a classifier, for images of 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.first, self.first_norm = nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.second, self.second_norm = nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.last, self.last_norm = nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32)
        self.fc = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, ``b x 10``."""
        x = self.stem_norm(self.stem(images)).relu()
        block = self.first_norm(self.first(x)).relu()
        x = (x + self.second_norm(self.second(block))).relu()
        return self.fc(self.last_norm(self.last(x)).relu().mean((2, 3)))


def groups_of(model: Residual) -> list[ChannelGroup]:
    """Coupled channels, by hand: those of the stream, of the block, and of the last layer."""
    return [
        _group(model, 16, ["stem", "stem_norm", "second", "second_norm"], ["first", "last"]),
        _group(model, 16, ["first", "first_norm"], ["second"]),
        _group(model, 32, ["last", "last_norm"], ["fc"]),
    ]


def _group(model: nn.Module, size: int, outputs: list[str], inputs: list[str]) -> ChannelGroup:
    axes = {
        (f"{module}.{name}", 0): torch.arange(size)
        for module in outputs
        for name, tensor in model.get_submodule(module).state_dict().items()
        if tensor.ndim
    }
    behind = {(f"{module}.weight", 1): torch.arange(size) for module in inputs}
    return ChannelGroup(outputs[0], size, axes | behind)


def digits() -> tuple[Images, Images]:
    """Images ``n x 1 x 8 x 8`` and labels, to train and to test on."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:TRAIN], order[TRAIN:]
    return (images[train], labels[train]), (images[test], labels[test])


def train(
    model: nn.Module,
    data: Images,
    epochs: int,
    lr: float,
    cosine: bool = False,
    method: Regulariser | None = None,
) -> None:
    """Train with SGD, and a method of pruning if there is one."""
    batches = len(data[1]) // BATCH
    optimizer = torch.optim.SGD(model.parameters(), lr, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    generator = torch.Generator().manual_seed(1)
    model.train()
    for step in range(epochs * batches):
        if step % batches == 0:
            order = torch.randperm(len(data[1]), generator=generator)
        chosen = order[step % batches * BATCH :][:BATCH]
        loss = nn.functional.cross_entropy(model(data[0][chosen]), data[1][chosen])
        optimizer.zero_grad()
        (loss + method.penalty() if method else loss).backward()
        optimizer.step()
        if method:
            method.after_step(step + 1)
        if cosine:
            schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: Images) -> float:
    """Percent of images that are told right."""
    return 100 * (model.eval()(data[0]).argmax(1) == data[1]).double().mean().item()


def dense_model(data: Images, seed: int = 0) -> Residual:
    """Train it for 15 epochs."""
    torch.manual_seed(seed)
    model = Residual()
    train(model, data, epochs=15, lr=0.05, cosine=True)
    return model


def slim_of(model: Residual, removed: Mapping[str, Sequence[int]]) -> Residual:
    """A copy without the units, its tensors sliced."""
    kept = kept_by((group.cut(removed[group.layer]) for group in groups_of(model)), model)
    slim = copy.deepcopy(model)
    for name, tensor in cut_tensors(model, kept).items():
        module, _, own = name.rpartition(".")
        getattr(slim.get_submodule(module), own).data = tensor
    return slim


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, a line for each seed and setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    torch.set_num_threads(1)
    data, test = digits()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for seed in range(parser.parse_args(arguments).seeds):
        dense = dense_model(data, seed)
        groups = groups_of(dense)
        at_once = slim_of(dense, ADMM(dense, groups, KEPT, steps=1).removed())
        known = f"{accuracy(dense, test):.1f} | {accuracy(at_once, test):.1f}"
        train(at_once, data, 15, lr=0.01, cosine=True)
        known += f" | {accuracy(at_once, test):.1f}"
        for lr, cosine, settings in RUNS:
            model = copy.deepcopy(dense)
            admm = ADMM(model, groups, KEPT, 15 * (TRAIN // BATCH), settings)
            train(model, data, 15, lr, cosine, admm)
            before = accuracy(model, test)
            silence(model, groups, admm.removed())
            print(
                f"| {seed} | {lr:g}{' cosine' if cosine else ''} "
                f"| {settings.rho:g} to {settings.last_rho:g} | {settings.admm_iterations} "
                f"| {admm.history[-1]['residual']:.4f} | {known} | {before:.1f} "
                f"| {accuracy(model, test):.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
