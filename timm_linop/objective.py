"""What training minimises: the task's loss and, with a teacher, two kinds of distillation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .distill import SimilarityPreservingLoss, Taps, Teacher, distill_logits, pair_up
from .errors import RecipeError
from .optim import make_criterion
from .recipe import Recipe
from .regulariser import Regulariser


@dataclass(frozen=True)
class Losses:
    """One batch's losses, scalars.

    ``total = task_weight * task + gamma * sp + kd_weight * kd``, and a pruning method's penalty.
    """

    total: Tensor
    task: Tensor
    sp: Tensor
    kd: Tensor

    def values(self) -> Tensor:
        """All four, without their graphs."""
        return torch.stack([self.total, self.task, self.sp, self.kd]).detach().double()


class Objective:
    """``L_task + gamma L_SP`` (Eq. 12), and the distillation of logits beside it.

    Args:
        student: The model in training, unwrapped.
        teacher: The dense teacher; None trains on the task alone.
        recipe: Its distill and optim groups are read.

    Raises:
        UnknownLayerError: If a paired layer is missing in student or teacher.
        RecipeError: If the teacher's logits are of other classes.
    """

    def __init__(self, student: Any, teacher: Teacher | None, recipe: Recipe) -> None:
        distill = recipe.distill
        self.teacher = teacher
        self.gamma, self.kd_weight = distill.gamma or 0.0, distill.kd_weight or 0.0
        self.task_weight, self.temperature = distill.task_weight, distill.kd_temperature
        self.criterion: nn.Module = make_criterion(recipe.optim)
        self.similarity = SimilarityPreservingLoss(
            reduction=distill.reduction, sub_batch=distill.sub_batch
        )
        self.regulariser: Regulariser | None = None
        self.taps: list[Taps] = []
        if teacher is not None and self.gamma:
            pairs, see = pair_up(student, teacher.model, distill.pairs), self.similarity.grams
            self.taps = [Taps(student, list(pairs), see), Taps(teacher.model, pairs, see)]
        if teacher is not None and (self.kd_weight or recipe.refine.refine_epochs):
            _check_same_classes(student, teacher.model)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Open the taps; they stay open from forward to backward and from batch to batch.

        So checkpointed activations see them again when they are computed anew, and a compiled
        model does not see them change.
        """
        with ExitStack() as stack:
            for taps in self.taps:
                stack.enter_context(taps)
            yield

    def __call__(self, forward: Any, images: Tensor, targets: Tensor, autocast: Any) -> Losses:
        """Run the student, through its wrapper ``forward``, and the teacher on one batch."""
        for taps in self.taps:
            taps.seen.clear()
        if self.teacher is not None:
            with autocast:
                soft = self.teacher(images)
        logits = forward(images)
        task = self.criterion(logits, targets)
        zero = task.new_zeros(())
        sp = self.similarity.compare(*(taps.seen for taps in self.taps)) if self.taps else zero
        kd = distill_logits(logits, soft, self.temperature) if self.kd_weight else zero
        total = self.task_weight * task + self.gamma * sp + self.kd_weight * kd
        if self.regulariser is not None:
            total = total + self.regulariser.penalty()
        return Losses(total, task, sp, kd)

    def after_step(self, updates: int) -> None:
        """Called after each step of the optimiser, with the number of steps done so far."""
        if self.regulariser is not None:
            self.regulariser.after_step(updates)


def _check_same_classes(student: Any, teacher: Any) -> None:
    if student.num_classes != teacher.num_classes:
        raise RecipeError(
            f"the teacher has {teacher.num_classes} classes and the student {student.num_classes}, "
            "so its logits are no example to follow; set --kd-weight and --refine-epochs 0, or "
            "name a teacher of the same classes."
        )
