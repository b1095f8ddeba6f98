"""timm's optimisers, schedules, mixing, losses, clipping, averages, as a recipe asks for them."""

from __future__ import annotations

from typing import Any

import torch
from timm.data import Mixup
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn

from .decay import parameter_groups
from .errors import RecipeError
from .recipe import OptimConfig, ScheduleConfig


def make_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """Create timm's optimiser over all parameters, the factors of expanded layers among them.

    Raises:
        RecipeError: If the optimiser refuses its arguments.

    Example:
        >>> groups = make_optimizer(nn.Linear(4, 2), OptimConfig(weight_decay=0.1)).param_groups
        >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
        [(1, 0.0), (1, 0.1)]
    """
    return _optimizer(parameter_groups(model, optim), optim)


def is_sgd(optim: OptimConfig) -> bool:
    """Tell whether the optimizer is torch's SGD, under any of timm's names for it.

    Example:
        >>> is_sgd(OptimConfig(opt="Momentum")), is_sgd(OptimConfig(opt="muon"))
        (True, False)
    """
    return optim.opt.lower() in ("sgd", "momentum", "nesterov")


def is_plain_sgd(optim: OptimConfig) -> bool:
    """Tell whether compact chains train as wide ones: under SGD, with or without momentum.

    Other optimisers, and clipping that sees numbers or rows of a factor by themselves, tell the two
    apart.

    Example:
        >>> is_plain_sgd(OptimConfig(opt="sgd")), is_plain_sgd(OptimConfig(opt="adamw"))
        (True, False)
        >>> is_plain_sgd(OptimConfig(opt="sgd", clip_grad=1.0, clip_mode="agc"))
        False
    """
    return is_sgd(optim) and optim.clip_mode == "norm"


def make_scheduler(optimizer: Any, schedule: ScheduleConfig, steps: int) -> Any:
    """Create timm's schedule, moved at every step.

    Args:
        optimizer: Whose learning rate moves.
        schedule: What the recipe says.
        steps: Steps an epoch.

    Raises:
        RecipeError: If timm refuses the settings together.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> halves = ScheduleConfig(epochs=4, sched="multistep", decay_milestones=(2,))
        >>> scheduler = make_scheduler(optimizer, halves, steps=10)
        >>> for step in (19, 20):
        ...     scheduler.step_update(step)
        ...     print(f"{optimizer.param_groups[0]['lr']:.2f}")
        0.10
        0.01
    """
    return _schedule(optimizer, schedule, steps)[0]


def total_epochs(schedule: ScheduleConfig) -> int:
    """Tell how many epochs a run has: a cool-down and a prefixed warm-up come on top.

    Example:
        >>> total_epochs(ScheduleConfig(epochs=90, cooldown_epochs=10))
        100
    """
    steps = 1000  # any number; with few, timm would round short decays to nothing
    return int(_schedule(_stand_in(), schedule, steps)[1])


def check_training(optim: OptimConfig, schedule: ScheduleConfig) -> None:
    """Let timm refuse optimiser and schedule before anything is loaded.

    Raises:
        RecipeError: If it does.

    Example:
        >>> check_training(OptimConfig(opt_kwargs={"nestrov": False}), ScheduleConfig())
        Traceback (most recent call last):
        timm_linop.errors.RecipeError: opt='sgd' refuses its settings: ...
    """
    _optimizer([nn.Parameter(torch.zeros(2, 2))], optim)
    total_epochs(schedule)
    if schedule.min_lr > optim.lr:
        raise RecipeError(
            f"min_lr={schedule.min_lr} is above lr={optim.lr}, so the rate would rise; give a "
            "smaller one."
        )


def make_mixup(optim: OptimConfig, model: Any) -> Mixup | None:
    """Create timm's mixup and cutmix, or None where the recipe has neither.

    Example:
        >>> from types import SimpleNamespace
        >>> mix = make_mixup(OptimConfig(mixup=0.2), SimpleNamespace(num_classes=10))
        >>> images, targets = mix(torch.randn(5, 3, 8, 8), torch.arange(5))
        >>> images.shape, targets.shape
        (torch.Size([5, 3, 8, 8]), torch.Size([5, 10]))
    """
    if not optim.mixes:
        return None
    return _Mixup(
        mixup_alpha=optim.mixup,
        cutmix_alpha=optim.cutmix,
        cutmix_minmax=optim.cutmix_minmax,
        prob=optim.mixup_prob,
        switch_prob=optim.mixup_switch_prob,
        mode=optim.mixup_mode,
        label_smoothing=optim.smoothing,
        num_classes=model.num_classes,
    )


def set_mixing(mixup: Mixup | None, optim: OptimConfig, epoch: int) -> None:
    """Turn mixing off from the epoch on that ``mixup_off_epoch`` says; call it before each epoch.

    Args:
        mixup: From `make_mixup`; what it gives stays of the same form when it is off.
        optim: What the recipe says.
        epoch: Epochs that are done.

    Example:
        >>> mixup = Mixup(num_classes=10)
        >>> set_mixing(mixup, OptimConfig(mixup=0.2, mixup_off_epoch=5), epoch=5)
        >>> mixup.mixup_enabled
        False
    """
    if mixup is not None:
        mixup.mixup_enabled = not optim.mixup_off_epoch or epoch < optim.mixup_off_epoch


def make_criterion(optim: OptimConfig) -> nn.Module:
    """Create the task's loss, of logits [b k] and what `make_mixup` makes of labels.

    Args:
        optim: Its smoothing, BCE and mixing settings are read.

    Returns:
        A loss of labels [b], or where the recipe mixes of shares [b k], which are smoothed already.

    Example:
        >>> loss = make_criterion(OptimConfig(bce_loss=True))
        >>> round(loss(torch.zeros(4, 10), torch.arange(4)).item(), 3)
        0.693
    """
    if optim.bce_loss:
        smoothing = 0.0 if optim.mixes else optim.smoothing
        return BinaryCrossEntropy(smoothing, target_threshold=optim.bce_target_thresh)
    if optim.mixes:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(optim.smoothing)


def clip_gradients(model: Any, optim: OptimConfig) -> None:
    """Clip gradients in place, where the recipe says so, by timm's function.

    ``agc`` clips each unit in relation to its weights, each factor of a chain by itself, and leaves
    the classifier alone (Brock et al. 2021). Gradients must not be scaled any more.

    Args:
        model: The model in training, unwrapped.
        optim: Its clip_grad and clip_mode are read.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> (100 * layer(torch.ones(1, 1))).sum().backward()
        >>> clip_gradients(layer, OptimConfig(clip_grad=1.0, clip_mode="value"))
        >>> layer.weight.grad.item()
        1.0
    """
    if optim.clip_grad is None:
        return
    parameters = list(model.parameters())
    if optim.clip_mode == "agc":
        heads = model.get_classifier() if hasattr(model, "get_classifier") else ()
        heads = heads if isinstance(heads, tuple | list) else (heads,)
        spared = {id(p) for head in heads for p in head.parameters()}
        parameters = [p for p in parameters if id(p) not in spared]
    dispatch_clip_grad(parameters, optim.clip_grad, mode=optim.clip_mode)


class _Mixup(Mixup):
    """timm's Mixup pairs images, so it needs an even number; here the last odd one stays as it is.

    timm's own loaders leave out the last, short batch; ours does not.
    """

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if len(images) % 2 == 0:
            mixed: tuple[Tensor, Tensor] = super().__call__(images, labels)
            return mixed
        first, shares = super().__call__(images[:-1], labels[:-1])
        last = mixup_target(labels[-1:], self.num_classes, 1.0, self.label_smoothing)
        return torch.cat([first, images[-1:]]), torch.cat([shares, last])


def _optimizer(parameters: Any, optim: OptimConfig) -> torch.optim.Optimizer:
    own = {"eps": optim.opt_eps, "betas": optim.opt_betas}
    own = {key: value for key, value in own.items() if value is not None} | optim.opt_kwargs
    try:
        return create_optimizer_v2(
            parameters, optim.opt, lr=optim.lr, momentum=optim.momentum, **own
        )
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise RecipeError(
            f"opt={optim.opt!r} refuses its settings: {error}. Check --opt-kwargs, --opt-betas and "
            "--opt-eps, and whether it needs a package that is not installed."
        ) from error


def _schedule(optimizer: Any, schedule: ScheduleConfig, steps: int) -> Any:
    """The schedule, and the number of epochs that it takes."""
    schedule = schedule.effective()
    # timm lets the step before a milestone see the lower rate already; half a step keeps it off.
    milestones = [milestone + 0.5 / steps for milestone in schedule.decay_milestones or ()]
    try:
        return create_scheduler_v2(
            optimizer,
            schedule.sched,
            num_epochs=schedule.epochs,
            warmup_epochs=schedule.warmup_epochs,
            warmup_lr=schedule.warmup_lr,
            warmup_prefix=schedule.warmup_prefix,
            cooldown_epochs=schedule.cooldown_epochs,
            min_lr=schedule.min_lr,
            decay_epochs=schedule.decay_epochs,
            decay_milestones=milestones,
            decay_rate=schedule.decay_rate,
            step_on_epochs=False,
            updates_per_epoch=steps,
        )
    except ValueError as error:
        raise RecipeError(
            f"sched={schedule.sched!r} refuses its settings: {error} Check --epochs, "
            "--warmup-epochs and --decay-epochs."
        ) from error


def _stand_in() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1)], lr=1.0)
