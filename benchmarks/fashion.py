"""Fashion-MNIST in memory, and the runs on it that comparisons are made of.

The images are those of Debian's package ``dataset-fashion-mnist``. They are decoded once: a run is
a minute or less, of which reading images would be most. Otherwise everything is the package's own:
the training loop, expansion, distillation and pruning that ``train.py`` and ``prune.py`` run.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms import v2

from benchmarks.rows import read_table
from timm_linop.data import ImageData, load_data
from timm_linop.distill import Teacher
from timm_linop.errors import DataError
from timm_linop.evaluation import evaluate
from timm_linop.expand import contract, contracted_state, is_expanded
from timm_linop.fit import Trainer
from timm_linop.recipe import DataConfig, OptimConfig, Recipe, ScheduleConfig
from timm_linop.resume import Stop

SOURCES = {"fashion-mnist": "idx:/usr/share/datasets/fashion-mnist", "digits": "digits"}
MEAN, STD = 0.2860, 0.3530
BATCH = 64
# At output stride 16 the last map of a 28 px image is 2 x 2.
ARGUMENTS: dict[str, Any] = {"in_chans": 1, "num_classes": 10, "output_stride": 16}
SIZE = (1, 28, 28)
# What is usual on CIFAR, for smaller images: shifts, into black, and flips.
SHIFT = 2
VARY = v2.Compose(
    [v2.RandomCrop(SIZE[1:], padding=SHIFT, fill=-MEAN / STD), v2.RandomHorizontalFlip()]
)


class Varied(Dataset[tuple[Tensor, Tensor]]):
    """Images that are shifted and flipped anew each time they are read."""

    def __init__(self, images: TensorDataset) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        image, label = self.images[place]
        return VARY(image), label


@dataclass(frozen=True)
class Splits:
    """Three splits: images ``n x 1 x 28 x 28``, normalised, and labels."""

    train: TensorDataset | Varied
    validation: TensorDataset
    test: TensorDataset


def images_of(name: str) -> ImageData:
    """Read one of `SOURCES` as it lies on the disk.

    Raises:
        DataError: If it is not there.
    """
    try:
        return load_data(SOURCES[name])
    except DataError as error:
        hint = "" if name == "digits" else " Install Debian's package dataset-fashion-mnist."
        raise DataError(f"{error}{hint}") from error


def read(
    train: int, validation: int, seed: int = 0, name: str = "fashion-mnist", seen: int = 0
) -> Splits:
    """Read images: so many to train on, drawn by the seed, others to choose by, all to test on.

    Args:
        train: How many to train on.
        validation: How many to choose by.
        seed: Of the draw; of one seed, fewer to train on are the first of more.
        name: One of `SOURCES`.
        seen: How many another network is trained on, if those are more; those to choose by come
            after them, too.

    Raises:
        DataError: If they are not there.
    """
    images = images_of(name)
    order = np.random.default_rng(seed).permutation(len(images.train))
    held_out = order[max(train, seen) :]
    parts = order[:train], held_out[:validation]
    chosen = (images.train.select(part) for part in parts)
    return Splits(*(_in_memory(split) for split in (*chosen, images.test)))


def _in_memory(split: Any) -> TensorDataset:
    sized = (image.resize(SIZE[1:]) for image in split["image"])  # digits are of 8 x 8
    pixels = np.stack([np.asarray(image, dtype=np.float32) for image in sized])
    images = (torch.from_numpy(pixels)[:, None] / 255 - MEAN) / STD
    return TensorDataset(images, torch.tensor(split["label"]))


def loader(images: Dataset[Any], seed: int | None = None, batch: int = BATCH) -> DataLoader[Any]:
    """Make batches, shuffled by a seed or in order."""
    generator = torch.Generator().manual_seed(seed or 0)
    return DataLoader(images, batch, shuffle=seed is not None, generator=generator)


def recipe_of(lr: float, epochs: int, **groups: Any) -> Recipe:
    """SGD with Nesterov's momentum, one epoch of warm-up and a cosine; ``groups`` as in Recipe."""
    return Recipe(
        data=DataConfig(batch_size=BATCH),
        optim=OptimConfig(lr=lr, weight_decay=1e-4),
        schedule=ScheduleConfig(epochs=epochs, warmup_epochs=1 if epochs > 1 else 0),
        **groups,
    )


@dataclass(frozen=True)
class Score:
    """What a training came to: accuracies in percent after the last epoch, and after the best one.

    Attributes:
        validation: After the last epoch.
        test: Likewise.
        seconds: Of training.
        best_epoch: The first one of those that are best on validation images.
        best_validation: After that epoch.
        best_test: Likewise.
    """

    validation: float
    test: float
    seconds: float
    best_epoch: int
    best_validation: float
    best_test: float


def fit(
    model: nn.Module, splits: Splits, recipe: Recipe, seed: int, teacher: nn.Module | None = None
) -> tuple[nn.Module, Score]:
    """Train a model in place as ``train.py`` does, contract it, and measure it.

    Args:
        model: Dense, slim or expanded.
        splits: The data.
        recipe: How.
        seed: Of the batches' order.
        teacher: For distillation.
    """
    set_seed(seed)  # accelerate's sampler draws the order by torch's, timm's mixup by numpy's
    loading = DataLoaderConfiguration(use_seedable_sampler=True)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), dataloader_config=loading)
    with tempfile.TemporaryDirectory() as scratch:
        recipe = replace(recipe, run=replace(recipe.run, output=scratch, seed=seed))
        recipe = replace(recipe, schedule=recipe.schedule.effective())
        mean, std = [MEAN], [STD]
        taught = Teacher(copy.deepcopy(teacher), mean, std, mean, std) if teacher else None
        batches = loader(splits.train, seed), loader(splits.validation, batch=500)
        trainer = Trainer(model, taught, *batches, recipe, accelerator)
        states: list[dict[str, Tensor]] = []
        trainer.after_epoch = lambda _, model: states.append(_copied(contracted_state(model())))
        trained, seconds = trainer.run(Stop())
        rows = read_table(Path(scratch) / "metrics.csv")
    trained = contract(trained) if is_expanded(trained) else trained
    reached = [float(row["validation_accuracy"]) for row in rows]
    last, best = len(reached) - 1, reached.index(max(reached))
    tests = {epoch: _test(trained, states[epoch], splits) for epoch in {best, last}}
    trained.load_state_dict(states[last])
    score = Score(reached[last], tests[last], seconds, best + 1, reached[best], tests[best])
    return trained.eval(), score


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def _test(model: nn.Module, state: Mapping[str, Tensor], splits: Splits) -> float:
    model.load_state_dict(state)
    return accuracy(model, splits.test)


def accuracy(model: nn.Module, images: Dataset[Any]) -> float:
    """Top-1 in percent."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    return evaluate(model, accelerator.prepare(loader(images, batch=500)), accelerator).top1
