"""The training loop, on accelerate: task loss + gamma * SP-KD, timm's optimisers and schedules."""

from __future__ import annotations

import csv
import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.aggregation import MeanMetric

from .distill import SimilarityPreservingLoss, Taps, Teacher, paired_layers
from .errors import TrainingError
from .optim import make_mixup, make_optimizer, make_scheduler
from .recipe import Recipe

COLUMNS = (
    "epoch",
    "lr",
    "train_loss",
    "task_loss",
    "sp_loss",
    "validation_loss",
    "validation_accuracy",
    "seconds",
)


@dataclass(frozen=True)
class Losses:
    """One batch's losses, scalars: ``total = task + gamma * sp``."""

    total: Tensor
    task: Tensor
    sp: Tensor


class Objective:
    """What is minimised: the task's loss and, with a teacher, similarity preservation (Eq. 12).

    Args:
        student: The model in training, unwrapped.
        teacher: The dense teacher; None trains on the task alone.
        recipe: Its distill and optim groups are read.

    Raises:
        UnknownLayerError: If a paired layer is missing in student or teacher.
    """

    def __init__(self, student: nn.Module, teacher: Teacher | None, recipe: Recipe) -> None:
        self.student, self.teacher = student, teacher
        self.gamma = recipe.distill.gamma or 0.0
        optim, distill = recipe.optim, recipe.distill
        mixed = optim.mixup > 0 or optim.cutmix > 0
        smooth = LabelSmoothingCrossEntropy(optim.smoothing)
        self.criterion = SoftTargetCrossEntropy() if mixed else smooth
        self.similarity = SimilarityPreservingLoss(
            pairs_of(distill.pairs), distill.reduction, distill.sub_batch
        )
        self.layers: list[str] = []
        if teacher is not None:
            self.layers = paired_layers(student, teacher.model, pairs_of(distill.pairs))

    def __call__(self, forward: Any, images: Tensor, targets: Tensor, autocast: Any) -> Losses:
        """Run the student, through its wrapper ``forward``, and the teacher on one batch."""
        if self.teacher is None:
            task = self.criterion(forward(images), targets)
            return Losses(task, task.detach(), torch.zeros_like(task).detach())
        with ExitStack() as taps:
            see = self.similarity.grams
            own = taps.enter_context(Taps(self.student, self.layers, see))
            theirs = taps.enter_context(Taps(self.teacher.model, self.layers, see))
            with autocast:
                self.teacher(images)
            task = self.criterion(forward(images), targets)
        sp = self.similarity.compare(own, theirs)
        return Losses(task + self.gamma * sp, task.detach(), sp.detach())


def pairs_of(pairs: Sequence[str]) -> str | Sequence[str]:
    """Read the ``--pairs`` flag: one word is a choice of layers, several are their names.

    Example:
        >>> pairs_of(("blocks",)), pairs_of(("conv1", "layer1.0.conv2"))
        ('blocks', ('conv1', 'layer1.0.conv2'))
    """
    return pairs[0] if len(pairs) == 1 and "." not in pairs[0] else pairs


class Trainer:
    """One model's training, from first to last epoch.

    Args:
        model: Expanded, slim or dense; trained in place.
        teacher: Its dense teacher, or None.
        train: Batches of ``(images b x c x h x w, labels b)``.
        validation: Likewise, in order.
        recipe: An effective recipe; its distill, optim and schedule are read.
        accelerator: Where it runs.

    Raises:
        UnknownLayerError: If SP-KD pairs a layer that student or teacher has not.
        RecipeError: If timm knows no such optimiser or scheduler.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: Teacher | None,
        train: DataLoader[Any],
        validation: DataLoader[Any],
        recipe: Recipe,
        accelerator: Accelerator,
    ) -> None:
        self.recipe, self.accelerator, self.model = recipe, accelerator, model
        teacher = teacher.to(accelerator.device) if teacher is not None else None
        self.objective = Objective(model, teacher, recipe)
        optimizer = make_optimizer(model, recipe.optim)
        self.wrapped, self.optimizer, self.batches, self.validation = accelerator.prepare(
            model, optimizer, train, validation
        )
        self.scheduler = make_scheduler(self.optimizer, recipe.schedule, len(self.batches))
        ema = recipe.optim.model_ema
        self.ema = ModelEmaV3(model, recipe.optim.model_ema_decay) if ema else None
        self.mixup = make_mixup(recipe.optim, model)

    def run(self, metrics_csv: Path) -> tuple[nn.Module, float]:
        """Train all epochs.

        Args:
            metrics_csv: Gets one row an epoch, as `COLUMNS`; accuracies are percent.

        Returns:
            The trained model, unwrapped (its moving average where the recipe keeps one), and the
            seconds of training without evaluation.

        Raises:
            TrainingError: If the loss is no number any more.
        """
        best = self.ema.module if self.ema is not None else self.model
        seconds = 0.0
        for epoch in range(self.recipe.schedule.epochs):
            start = time.perf_counter()
            row = {"epoch": epoch + 1, **self._epoch(epoch)}
            seconds += time.perf_counter() - start
            row |= evaluate(best if self.ema else self.wrapped, self.validation, self.accelerator)
            self._record({**row, "seconds": seconds}, metrics_csv)
        return best, seconds

    def _epoch(self, epoch: int) -> dict[str, float]:
        self.wrapped.train()
        means = {name: MeanMetric().to(self.accelerator.device) for name in _LOSSES}
        updates = epoch * len(self.batches)
        lr = self.optimizer.param_groups[0]["lr"]
        with self._bar(epoch) as bar:
            for images, targets in self.batches:
                losses = self._step(images, targets, epoch)
                updates += 1
                self.scheduler.step_update(updates)
                if self.ema is not None:
                    self.ema.update(self.model, updates)
                for name, field in _LOSSES.items():
                    means[name].update(getattr(losses, field))
                bar.set_postfix(task=f"{losses.task:.3f}", sp=f"{losses.sp:.2e}", refresh=False)
                bar.update(len(images))
        return {"lr": lr, **{name: mean.compute().item() for name, mean in means.items()}}

    def _step(self, images: Tensor, targets: Tensor, epoch: int) -> Losses:
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
        losses = self.objective(self.wrapped, images, targets, self.accelerator.autocast())
        if not math.isfinite(losses.total.item()):
            raise TrainingError(
                f"the loss is {losses.total.item()} in epoch {epoch + 1} (task "
                f"{losses.task.item()}, SP {losses.sp.item()}): training has diverged. Lower --lr, "
                "or set --clip-grad."
            )
        self.optimizer.zero_grad()
        self.accelerator.backward(losses.total)
        if self.recipe.optim.clip_grad is not None:
            parameters = self.wrapped.parameters()
            self.accelerator.clip_grad_norm_(parameters, self.recipe.optim.clip_grad)
        self.optimizer.step()
        return losses

    def _bar(self, epoch: int) -> Any:
        """A progress bar of images, on a terminal only."""
        return tqdm(
            total=len(self.batches) * self.recipe.data.batch_size,
            desc=f"epoch {epoch + 1}/{self.recipe.schedule.epochs}",
            unit="img",
            leave=False,
            disable=not sys.stderr.isatty(),
        )

    def _record(self, row: Mapping[str, float], metrics_csv: Path) -> None:
        if not self.accelerator.is_main_process:
            return
        new = not metrics_csv.exists()
        with metrics_csv.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow(row)
        self.accelerator.print(
            f"epoch {row['epoch']}/{self.recipe.schedule.epochs}: task {row['task_loss']:.3f}, "
            f"SP {row['sp_loss']:.2e}, validation {row['validation_accuracy']:.2f} %, "
            f"lr {row['lr']:.2g}, {row['seconds']:.1f} s"
        )


_LOSSES = {"train_loss": "total", "task_loss": "task", "sp_loss": "sp"}


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: DataLoader[Any], accelerator: Accelerator
) -> dict[str, float]:
    """Measure a model on a split, exactly: images repeated to even out the ranks count once.

    Args:
        model: Any classifier.
        batches: Prepared by ``accelerator``.
        accelerator: Where it runs.

    Returns:
        ``validation_loss`` (mean cross-entropy) and ``validation_accuracy`` (top-1, percent).
    """
    training = model.training
    model.eval()
    right, seen, loss = 0, 0, 0.0
    for images, labels in batches:
        with accelerator.autocast():
            logits = model(images)
        logits, labels = accelerator.gather_for_metrics((logits.float(), labels))
        right += int((logits.argmax(1) == labels).sum())
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        seen += len(labels)
    model.train(training)
    return {"validation_loss": loss / seen, "validation_accuracy": 100 * right / seen}
