"""What every run begins with: its processes, its images, its batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from timm.data import resolve_input_data_config
from torch import nn
from torch.utils.data import DataLoader

from . import watch
from .data import Augmentation, ImageData, load_data, make_loader, make_transforms
from .hub import check_output
from .processes import start_accelerator
from .publish import check_push
from .recipe import DataConfig, PruneRecipe, Recipe


@dataclass(frozen=True)
class Loaders:
    """Batches of the three splits, and how their images were made."""

    train: DataLoader[Any]
    validation: DataLoader[Any]
    test: DataLoader[Any]
    config: Mapping[str, Any]


def start(recipe: Recipe | PruneRecipe, *, writes: bool) -> Accelerator:
    """Do everything that can fail at once: the folder, the trackers, the processes, the token.

    Args:
        recipe: An effective one.
        writes: Whether a new run folder is going to be written.

    Returns:
        Where the run is to run.

    Raises:
        LinOPError: If it cannot.
    """
    output = Path(recipe.run.output or "")
    if writes:
        check_output(output)
    loading = DataLoaderConfiguration(use_seedable_sampler=True)
    trackers = watch.trackers(recipe.watch) if isinstance(recipe, Recipe) else []
    accelerator = start_accelerator(
        dataloader_config=loading, log_with=trackers or None, project_dir=str(output / "tracking")
    )
    if accelerator.is_main_process:
        check_push(recipe)
    set_seed(recipe.run.seed)
    accelerator.wait_for_everyone()
    return accelerator


def load_images(data: DataConfig) -> ImageData:
    """Read the images that a recipe names.

    Args:
        data: Its data group.

    Raises:
        DataError: If they cannot be read.

    Example:
        >>> len(load_images(DataConfig("digits")).train)
        1000
    """
    return load_data(
        data.dataset,
        image_column=data.image_column,
        label_column=data.label_column,
        streaming=data.streaming,
    )


def make_loaders(
    recipe: Recipe | PruneRecipe, augment: Augmentation, data: ImageData, model: nn.Module
) -> Loaders:
    """Feed a model the images it expects.

    Args:
        recipe: Its model, data and run groups are read.
        augment: How training images are varied.
        data: The three splits.
        model: Tells input size, mean and std.

    Returns:
        Training batches shuffled, the others in order.
    """
    config = _input_config(recipe, model)
    train_transform, eval_transform = make_transforms(config, augment=augment)
    batch = recipe.data.batch_size
    return Loaders(
        make_loader(data.train, train_transform, batch, shuffle=True, **_loading(recipe)),
        make_loader(data.validation, eval_transform, batch, shuffle=False, **_loading(recipe)),
        make_loader(data.test, eval_transform, batch, shuffle=False, **_loading(recipe)),
        config,
    )


def evaluation_loader(
    recipe: Recipe, data: ImageData, model: nn.Module, split: str
) -> DataLoader[Any]:
    """Feed a model one split as evaluation sees it; training images are not varied either.

    Args:
        recipe: Its model, data and run groups are read.
        data: The three splits.
        model: Tells input size, mean and std.
        split: "train", "validation" or "test".

    Returns:
        Batches in order.
    """
    _, transform = make_transforms(_input_config(recipe, model), augment=Augmentation(no_aug=True))
    images, batch = getattr(data, split), recipe.data.batch_size
    return make_loader(images, transform, batch, shuffle=False, **_loading(recipe))


def _input_config(recipe: Recipe | PruneRecipe, model: nn.Module) -> dict[str, Any]:
    """The model's own input size, mean and std, but for those that the recipe names."""
    given = {key: getattr(recipe.data, key) for key in ("mean", "std", "interpolation", "crop_pct")}
    return resolve_input_data_config(model, args={**given, "img_size": recipe.model.img_size})


def _loading(recipe: Recipe | PruneRecipe) -> dict[str, Any]:
    """What all batches of a run share."""
    return {"workers": recipe.data.workers, "seed": recipe.run.seed}


def scoring_images(recipe: PruneRecipe, data: ImageData, config: Mapping[str, Any]) -> Any:
    """Feed training images as evaluation sees them, in one order drawn by the seed.

    Args:
        recipe: Its data and run groups are read.
        data: The three splits.
        config: Input size, mean and std, as `Loaders` has them.

    Returns:
        Batches, the same ones on every process.
    """
    _, transform = make_transforms(dict(config), augment=Augmentation(no_aug=True))
    return make_loader(
        data.train, transform, recipe.data.batch_size, shuffle=True, **_loading(recipe)
    )
