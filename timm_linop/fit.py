"""The training loop, on accelerate: task loss + gamma * SP-KD, timm's optimisers and schedules."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import broadcast, tqdm
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from . import metrics
from .distill import SimilarityPreservingLoss, Taps, Teacher, paired_layers
from .errors import Interrupted, TrainingError
from .optim import make_mixup, make_optimizer, make_scheduler
from .recipe import Recipe
from .resume import Checkpoints, Progress, Stop


@dataclass(frozen=True)
class Losses:
    """One batch's losses, scalars: ``total = task + gamma * sp``."""

    total: Tensor
    task: Tensor
    sp: Tensor

    def of(self, name: str) -> Tensor:
        """One of them by name, without its graph."""
        loss: Tensor = getattr(self, name).detach()
        return loss


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

    def run(self, output: Path, stop: Stop | None = None) -> tuple[nn.Module, float]:
        """Train all epochs that are not done yet.

        Args:
            output: The run folder: metrics.csv gets one row an epoch, as `metrics.COLUMNS`
                (accuracies are percent), checkpoints/ the newest states, from which it goes on.
            stop: Asks to save and leave.

        Returns:
            The trained model, unwrapped (its moving average where the recipe keeps one), and the
            seconds of training without evaluation.

        Raises:
            TrainingError: If the loss is no number any more.
            Interrupted: If it was asked to stop.
        """
        self.stop = stop or Stop()
        best = self.ema.module if self.ema is not None else self.model
        keep = self.recipe.checkpoint.checkpoint_hist
        folder = output / "checkpoints"
        self.checkpoints = Checkpoints(folder, self.accelerator, self.ema, keep)
        self.progress = progress = self.checkpoints.load() or Progress()
        if self.accelerator.is_main_process:
            metrics.forget_after(progress.epoch, output / "metrics.csv")
        while progress.epoch < self.recipe.schedule.epochs:
            row = self._epoch(progress.epoch)
            self._agree_on_statistics()
            row |= evaluate(best if self.ema else self.wrapped, self.validation, self.accelerator)
            progress.epoch, progress.batch = progress.epoch + 1, 0
            self._record({"epoch": progress.epoch, **row}, output / "metrics.csv")
            self.checkpoints.save(progress)
        return best, progress.seconds

    def _epoch(self, epoch: int) -> dict[str, float]:
        self.wrapped.train()
        progress, sums = self.progress, self._sums()
        self.scheduler.step_update(progress.updates - progress.batch)
        lr = self.optimizer.param_groups[0]["lr"]
        self.scheduler.step_update(progress.updates)
        self.batches.set_epoch(epoch)
        self.batches.dataset.set_epoch(epoch)
        rest = skip_first_batches(self.batches, progress.batch) if progress.batch else self.batches
        start = time.perf_counter() - progress.seconds
        with self._bar(epoch) as bar:
            for images, targets in rest:
                losses = self._step(images, targets, epoch)
                progress.updates, progress.batch = progress.updates + 1, progress.batch + 1
                self.scheduler.step_update(progress.updates)
                if self.ema is not None:
                    self.ema.update(self.model, progress.updates)
                sums += len(images) * torch.stack([*map(losses.of, _LOSSES), sums.new_ones(())])
                bar.set_postfix(task=f"{losses.task:.3f}", sp=f"{losses.sp:.2e}", refresh=False)
                bar.update(len(images))
                progress.seconds = time.perf_counter() - start
                self._pause(sums)
        *totals, seen = self.accelerator.reduce(sums).tolist()
        means = dict(zip(_LOSSES.values(), (total / seen for total in totals), strict=True))
        progress.sums = ()
        return {"lr": lr, **means, "seconds": progress.seconds}

    def _agree_on_statistics(self) -> None:
        """Each process keeps running statistics of its own images; the main one's are shipped."""
        for model in (self.model, *([self.ema.module] if self.ema is not None else [])):
            for buffer in model.buffers():
                buffer.copy_(broadcast(buffer))

    def _sums(self) -> Tensor:
        """Sums of the losses over the images so far, and their number, on this process."""
        sums = torch.zeros(len(_LOSSES) + 1, dtype=torch.float64, device=self.accelerator.device)
        if self.progress.sums and self.accelerator.is_main_process:
            sums += torch.tensor(self.progress.sums, dtype=sums.dtype, device=sums.device)
        return sums

    def _pause(self, sums: Tensor) -> None:
        """Between two steps: save where it is time, leave where somebody asked for it."""
        every = self.recipe.checkpoint.checkpoint_every
        if self.stop.asked:
            self.accelerator.set_trigger()
        leave = self.accelerator.check_trigger()
        if not leave and not (every and self.progress.updates % every == 0):
            return
        self.progress.sums = tuple(self.accelerator.reduce(sums).tolist())
        self.checkpoints.save(self.progress)
        if leave:
            raise Interrupted(
                f"stopped after {self.progress.updates} steps, as asked; the state is saved. Go on "
                f"with --resume {self.checkpoints.folder.parent}"
            )

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
        metrics.record(row, metrics_csv)
        self.accelerator.print(
            f"epoch {row['epoch']}/{self.recipe.schedule.epochs}: task {row['task_loss']:.3f}, "
            f"SP {row['sp_loss']:.2e}, validation {row['validation_accuracy']:.2f} %, "
            f"lr {row['lr']:.2g}, {row['seconds']:.1f} s"
        )


_LOSSES = {"total": "train_loss", "task": "task_loss", "sp": "sp_loss"}


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
