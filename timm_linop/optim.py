"""timm's optimisers, schedules and mixup, as a recipe asks for them."""

from __future__ import annotations

from typing import Any

import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import nn

from .errors import RecipeError, close_names
from .recipe import OptimConfig, ScheduleConfig


def make_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """Create timm's optimiser over all parameters, the factors of expanded layers among them.

    Raises:
        RecipeError: If timm knows none of that name.
    """
    options = {"momentum": optim.momentum} if "sgd" in optim.opt.lower() else {}
    try:
        return create_optimizer_v2(
            model, optim.opt, lr=optim.lr, weight_decay=optim.weight_decay, **options
        )
    except (ValueError, AssertionError) as error:
        raise RecipeError(
            f"opt={optim.opt!r} is no optimiser of timm; timm.optim.list_optimizers() lists them."
            + close_names(optim.opt, list_optimizers())
        ) from error


def is_plain_sgd(optim: OptimConfig) -> bool:
    """Tell whether compact chains train as wide ones: under SGD, with or without momentum.

    Other optimisers treat each number of a factor by itself, and tell the two apart.

    Example:
        >>> is_plain_sgd(OptimConfig(opt="sgd")), is_plain_sgd(OptimConfig(opt="adamw"))
        (True, False)
    """
    return optim.opt.lower() in ("sgd", "momentum", "nesterov")  # timm's names of torch's SGD


def make_scheduler(optimizer: Any, schedule: ScheduleConfig, steps: int) -> Any:
    """Create timm's schedule, moved at every step.

    Args:
        optimizer: Whose learning rate moves.
        schedule: What the recipe says.
        steps: Steps an epoch.

    Raises:
        RecipeError: If timm knows none of that name.
    """
    known = ("cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant")
    if schedule.sched not in known:
        raise RecipeError(
            f"sched={schedule.sched!r}: use one of timm's {', '.join(known)}."
            + close_names(schedule.sched, known)
        )
    scheduler, _ = create_scheduler_v2(
        optimizer,
        schedule.sched,
        num_epochs=schedule.epochs,
        warmup_epochs=schedule.warmup_epochs,
        warmup_lr=schedule.warmup_lr,
        min_lr=schedule.min_lr,
        decay_milestones=list(schedule.decay_milestones),
        decay_rate=schedule.decay_rate,
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    return scheduler


def make_mixup(optim: OptimConfig, model: Any) -> Mixup | None:
    """Create timm's mixup and cutmix, or None where the recipe has neither."""
    if optim.mixup <= 0 and optim.cutmix <= 0:
        return None
    return Mixup(
        mixup_alpha=optim.mixup,
        cutmix_alpha=optim.cutmix,
        label_smoothing=optim.smoothing,
        num_classes=model.num_classes,
    )


def make_criterion(optim: OptimConfig) -> nn.Module:
    """Create the task's loss: for mixed targets where the recipe mixes, else for labels."""
    if optim.mixup > 0 or optim.cutmix > 0:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(optim.smoothing)
