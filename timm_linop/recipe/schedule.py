"""The learning rate over the epochs, and how a schedule is stretched to other lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from timm_linop.errors import RecipeError
from timm_linop.recipe.checks import check_choice, check_numbers

SCHEDULES = ("cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant")
# Fine-tuning in Qian et al. 2022: x0.1 at these epochs of 150.
_MILESTONES, _OF = (60, 100, 120), 150
# Settings in epochs; beside them stands decay_milestones.
_DURATIONS = (
    "warmup_epochs",
    "cooldown_epochs",
    "decay_epochs",
    "mixup_off_epoch",
    "refine_epochs",
)


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning-rate schedule, under timm's names; it moves at every step.

    Attributes:
        epochs: Passes over the training images.
        sched: One of timm's: cosine, tanh, step, multistep, poly, wsd, rsqrt or constant.
        warmup_epochs: Epochs of linear warm-up.
        warmup_lr: Learning rate it starts from.
        warmup_prefix: Warm up before the schedule begins; that many epochs come on top.
        cooldown_epochs: Epochs on top, at --min-lr; not of step, multistep and constant.
        min_lr: Learning rate that schedules end at; not step, multistep and constant.
        decay_epochs: Epochs between steps of step (None: 90), or at the end of wsd and rsqrt in
            which they decay (None: a fifth).
        decay_milestones: Epochs after which multistep multiplies the rate by --decay-rate; None
            stretches the paper's 60, 100, 120 of 150.
        decay_rate: That factor, of step and multistep; the power of poly.
    """

    epochs: int = 100
    sched: str = "cosine"
    warmup_epochs: int = 0
    warmup_lr: float = 1e-5
    warmup_prefix: bool = False
    cooldown_epochs: int = 0
    min_lr: float = 0.0
    decay_epochs: float | None = None
    decay_milestones: tuple[int, ...] | None = None
    decay_rate: float = 0.1

    def __post_init__(self) -> None:
        check_choice("sched", self.sched, SCHEDULES)
        check_numbers(self, lambda x: x >= 1, "at least 1", ("epochs",))
        at_least_0 = ("warmup_epochs", "cooldown_epochs", "warmup_lr", "min_lr")
        check_numbers(self, lambda x: 0 <= x < math.inf, "a number not below 0", at_least_0)
        above_0 = ("decay_epochs", "decay_rate")
        check_numbers(self, lambda x: 0 < x < math.inf, "a number above 0", above_0)
        if not self.warmup_prefix and self.warmup_epochs >= self.epochs:
            raise RecipeError(
                f"warmup_epochs={self.warmup_epochs} takes all of epochs={self.epochs}; give fewer "
                "of them, more --epochs, or --warmup-prefix."
            )
        if self.sched == "multistep":
            self._check_milestones(list(self.decay_milestones or ()))

    def effective(self) -> ScheduleConfig:
        """Fill in the milestones that follow from the number of epochs.

        Example:
            >>> ScheduleConfig(epochs=15, sched="multistep").effective().decay_milestones
            (6, 10, 12)
        """
        if self.sched != "multistep" or self.decay_milestones is not None:
            return self
        return replace(self, decay_milestones=stretched(_MILESTONES, _OF, self.epochs))

    def _check_milestones(self, milestones: list[int]) -> None:
        if milestones != sorted(set(milestones)) or any(m < 1 for m in milestones):
            raise RecipeError(
                f"decay_milestones={milestones} must be epochs from 1 on, each later than the one "
                "before."
            )
        if milestones and milestones[-1] >= self.epochs:
            raise RecipeError(
                f"decay_milestones={milestones} reach beyond epochs={self.epochs}, so the rate "
                "would never fall that low; give earlier ones, or more --epochs."
            )


def stretched(milestones: Sequence[int], of: int, epochs: int) -> tuple[int, ...]:
    """Move milestones of a run of one length to where they lie in one of another.

    Each goes to the nearest whole epoch (halves up); they stay at least one apart and before the
    last epoch ends. Where a run is too short for all, the earliest are left out.

    Args:
        milestones: Epochs, increasing.
        of: The length they were made for, in epochs.
        epochs: The length wanted.

    Returns:
        The milestones, increasing, from 1 to ``epochs - 1``.

    Example:
        >>> stretched((60, 100, 120), 150, 15), stretched((60, 100, 120), 150, 4)
        ((6, 10, 12), (1, 2, 3))
    """
    moved: list[int] = []
    for milestone in milestones:
        moved.append(max(_nearest(milestone * epochs / of), moved[-1] + 1 if moved else 1))
    for i in range(1, len(moved) + 1):
        moved[-i] = min(moved[-i], epochs - i)
    return tuple(milestone for milestone in moved if milestone >= 1)


def scaled(settings: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    """Stretch all that a recipe's settings say in epochs to another number of epochs.

    What is not 0 stays at least 1; a warm-up leaves an epoch over; a ``decay_epochs`` below 1 is a
    part of the run already.

    Args:
        settings: A recipe's settings by name, ``epochs`` among them.
        epochs: The number wanted.

    Returns:
        All settings, changed where they count epochs.

    Example:
        >>> scaled({"lr": 0.1, "epochs": 100, "warmup_epochs": 5, "decay_milestones": [50]}, 10)
        {'lr': 0.1, 'epochs': 10, 'warmup_epochs': 1, 'decay_milestones': [5]}
    """
    of, changed = settings["epochs"], {**settings, "epochs": epochs}
    for name in _DURATIONS:
        if (settings.get(name) or 0) >= 1:
            changed[name] = max(_nearest(settings[name] * epochs / of), 1)
    if "warmup_epochs" in changed and not settings.get("warmup_prefix"):
        changed["warmup_epochs"] = min(changed["warmup_epochs"], epochs - 1)
    if settings.get("decay_milestones"):
        changed["decay_milestones"] = list(stretched(settings["decay_milestones"], of, epochs))
    return changed


def _nearest(number: float) -> int:
    """The nearest whole number; Python's round would take 2.5 to 2."""
    return math.floor(number + 0.5)
