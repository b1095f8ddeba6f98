"""A small training run in this process, for tests of the loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState

import timm_linop
from timm_linop.data import Augmentation, load_data
from timm_linop.fit import Trainer
from timm_linop.models import make_student, make_teacher
from timm_linop.recipe import (
    DataConfig,
    ModelConfig,
    Recipe,
    RunConfig,
    ScheduleConfig,
)
from timm_linop.setup import make_loaders


def dense_and_slim(folder: Path, architecture: str = "test_convnext") -> tuple[str, str]:
    """Save a dense model of digits and its slim half; give both as recipes name them."""
    torch.manual_seed(0)
    dense = timm.create_model(architecture, in_chans=1, num_classes=10)
    timm_linop.save(dense, folder / "dense")
    timm_linop.save(timm_linop.prune(dense, ratio=0.5), folder / "pruned")
    return f"local-dir:{folder}/dense", f"{folder}/pruned"


def recipe_of(pruned: str, output: Path, *, epochs: int = 1, **groups: Any) -> Recipe:
    """A plain recipe on digits at 32 px; ``groups`` replaces some of its groups."""
    return replace(
        Recipe(
            model=ModelConfig(pruned=pruned),
            data=DataConfig(batch_size=100, crop_pct=1.0),
            augment=Augmentation(no_aug=True),
            schedule=ScheduleConfig(epochs=epochs, sched="constant"),
            run=RunConfig(str(output)),
        ),
        **groups,
    ).effective()


def trainer_of(recipe: Recipe, **options: Any) -> Trainer:
    """The trainer that train.py would make of it."""
    loading = DataLoaderConfiguration(use_seedable_sampler=True)
    AcceleratorState._reset_state(reset_partial_state=True)  # precision may differ between tests
    accelerator = Accelerator(cpu=True, dataloader_config=loading, **options)
    sized = replace(recipe, model=replace(recipe.model, img_size=32))
    data = load_data("digits")
    student, _ = make_student(sized, data)
    loaders = make_loaders(sized, sized.augment, data, student)
    teacher = make_teacher(sized, loaders.config) if sized.distill.asked else None
    Path(recipe.run.output or "").mkdir(parents=True, exist_ok=True)
    return Trainer(student, teacher, loaders.train, loaders.validation, sized, accelerator)


def some_steps(trainer: Trainer, count: int) -> torch.Tensor:
    """Losses of the first steps, ``count x 4``."""
    steps = trainer.steps(trainer.batches)
    losses = torch.stack([next(steps)[0] for _ in range(count)])
    steps.close()
    return losses
