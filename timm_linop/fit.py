"""The training loop, on accelerate: an objective, timm's optimisers and schedules."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from torch import Tensor, nn
from torch.utils.data import DataLoader

from . import metrics, watch
from .arrange import agree_on_statistics, arranged, check_sharding, compiled, gathered
from .average import WeightAverage, warn_of_short_run
from .distill import Teacher
from .divergence import blame, broken_parameter, diverged
from .errors import Interrupted, TrainingError
from .evaluation import evaluate
from .objective import Objective
from .once import composed_once
from .optim import (
    clip_gradients,
    make_mixup,
    make_optimizer,
    make_scheduler,
    set_mixing,
    total_epochs,
)
from .recipe import Recipe
from .regulariser import Regulariser
from .resume import Checkpoints, Progress, Stop

Batch = tuple[Tensor, Tensor]


class Trainer:
    """One model's training, from first to last epoch.

    Args:
        model: Expanded, slim or dense; trained in place.
        teacher: Its dense teacher, or None.
        train: Batches of ``(images b x c x h x w, labels b)``.
        validation: Likewise, in order.
        recipe: An effective recipe; its run group names the folder: metrics.csv gets one row an
            epoch, as `metrics.COLUMNS`, checkpoints/ the newest states, from which it goes on.
        accelerator: Where it runs.
        objective: What to minimise; None is what the recipe says.
        before: How far another training came that this one goes on from: epochs, steps and seconds
            count on from there, while the schedule begins anew. None begins with nothing.

    Raises:
        UnknownLayerError: If SP-KD pairs a layer that student or teacher has not.
        RecipeError: If a setting does not fit the model, the others, or timm.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: Teacher | None,
        train: DataLoader[Any],
        validation: DataLoader[Any],
        recipe: Recipe,
        accelerator: Accelerator,
        objective: Objective | None = None,
        before: Progress | None = None,
    ) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        self.output = Path(recipe.run.output or "")
        self.teacher = teacher.to(accelerator.device) if teacher is not None else None
        self.sharded = check_sharding(recipe, accelerator)
        self.model = arranged(model, recipe.compute, accelerator)
        self.spare = copy.deepcopy(self.model) if self.sharded else nn.Module()
        self.objective = objective or Objective(self.model, self.teacher, recipe)
        self.mixup = make_mixup(recipe.optim, self.model)
        optimizer = make_optimizer(self.model, recipe.optim)
        self.wrapped, self.optimizer, self.batches, self.validation = accelerator.prepare(
            self.model, optimizer, train, validation
        )
        self.forward = compiled(self.wrapped, recipe.compute)
        self.accumulate = recipe.compute.grad_accum_steps
        updates = math.ceil(len(self.batches) / self.accumulate)
        self.scheduler = make_scheduler(self.optimizer, recipe.schedule, updates)
        self.before = before or Progress()
        own_epochs = total_epochs(recipe.schedule)
        self.epochs, self.updates_in_all = self.before.epoch + own_epochs, updates * own_epochs
        self.average = self._average()
        self.progress, self.stop = replace(self.before), Stop()
        # Called with the epochs done and what gives the model as it is then, on every process.
        self.after_epoch: Callable[[int, Callable[[], nn.Module]], None] | None = None
        self.checkpoints = Checkpoints(
            self.output / ("refined" if before else "checkpoints"),
            accelerator,
            self.average.module if self.average else None,
            recipe.checkpoint.checkpoint_hist,
        )

    def _average(self) -> WeightAverage | None:
        optim = self.recipe.optim
        if optim.model_ema and self.accelerator.is_main_process:
            warn_of_short_run(optim, self.updates_in_all)
        return WeightAverage(self.model, optim) if optim.model_ema else None

    def regularise(self, regulariser: Regulariser) -> None:
        """Train with a pruning method's penalty, whose state is kept in checkpoints."""
        self.objective.regulariser = regulariser
        self.accelerator.register_for_checkpointing(regulariser)

    def run(self, stop: Stop) -> tuple[nn.Module, float]:
        """Train all epochs that are not done yet.

        Args:
            stop: Asks to save and leave.

        Returns:
            The trained model, unwrapped (its moving average where the recipe keeps one), and the
            seconds of training without evaluation.

        Raises:
            TrainingError: If the loss or a weight is no number any more.
            Interrupted: If it was asked to stop.
        """
        self.stop = stop
        self.progress = progress = self.checkpoints.load() or self.progress
        best = self.average.module if self.average else self.wrapped
        # Rows after a finished training are those of one that went on from it.
        if self.accelerator.is_main_process and progress.epoch < self.epochs:
            metrics.forget_after(progress.epoch, self.output / "metrics.csv")
        while progress.epoch < self.epochs:
            row = self._epoch(progress.epoch)
            agree_on_statistics(self.model, *([self.average.module] if self.average else []))
            row |= evaluate(best, self.validation, self.accelerator).row()
            progress.epoch, progress.batch = progress.epoch + 1, 0
            self._record({"epoch": progress.epoch, **row})
            self._save()
            if self.after_epoch is not None:
                self.after_epoch(progress.epoch, self._whole)
        return self._whole(), progress.seconds

    def steps(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, int]]:
        """Train on batches, as many at a time as the recipe accumulates.

        Args:
            batches: Prepared ones.

        Yields:
            After each step its losses, as `Losses.values`, and its images on this process.
        """
        self.wrapped.train()
        batches = iter(batches)
        with self.objective.watching():
            while group := list(islice(batches, self.accumulate)):
                losses = self._step([self._mixed(*batch) for batch in group])
                self.progress.updates += 1
                self.progress.batch += len(group)
                self._schedule(self.progress.updates)
                self.objective.after_step(self.progress.updates)
                if self.average is not None:
                    self.average.update(self.model, self.progress.updates)
                yield losses, sum(len(images) for images, _ in group)

    def _whole(self) -> nn.Module:
        """The trained model, or its average, with all its weights on every process."""
        if self.average is not None or not self.sharded:
            return self.average.module if self.average else self.model
        return gathered(self.wrapped, self.spare, self.accelerator)

    def _epoch(self, epoch: int) -> dict[str, float]:
        progress, sums = self.progress, self._sums()
        done = progress.updates - math.ceil(progress.batch / self.accumulate)
        self._schedule(done)
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        self._schedule(progress.updates)
        set_mixing(self.mixup, self.recipe.optim, epoch)
        rest = skip_first_batches(self.batches, progress.batch) if progress.batch else self.batches
        rest.set_epoch(epoch)  # after skipping: before accelerate 1.15 that starts from epoch 0
        if hasattr(self.batches.dataset, "set_epoch"):  # ours draw their augmentation anew
            self.batches.dataset.set_epoch(epoch)
        start = time.perf_counter() - progress.seconds
        processes = self.accelerator.num_processes
        with self._bar(epoch) as bar:
            for losses, images in self.steps(rest):
                sums += images * torch.cat([losses, losses.new_ones(1)])
                bar.show(losses, images * processes)
                progress.seconds = time.perf_counter() - start
                self._pause(sums)
        *totals, seen = self.accelerator.reduce(sums).tolist()
        means = dict(zip(metrics.LOSSES, (total / seen for total in totals), strict=True))
        progress.sums = ()
        return {"lr": lr, **means, "seconds": progress.seconds}

    def _schedule(self, updates: int) -> None:
        self.scheduler.step_update(updates - self.before.updates)

    def _bar(self, epoch: int) -> watch.Bar:
        batch = self.recipe.data.batch_size * self.accelerator.num_processes
        return watch.Bar(epoch, self.epochs, len(self.batches) * batch)

    def _sums(self) -> Tensor:
        """Sums of the losses over the images so far, and their number, on this process."""
        sums = torch.zeros(
            len(metrics.LOSSES) + 1, dtype=torch.float64, device=self.accelerator.device
        )
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
        self._save()
        if leave:
            raise Interrupted(
                f"stopped after {self.progress.updates} steps, as asked; the state is saved. Go on "
                f"with --resume {self.output}"
            )

    def _save(self) -> None:
        """Write a checkpoint, unless it would put broken weights in a good one's place."""
        broken = None if self.sharded else broken_parameter(self.model)
        if broken is not None:
            raise self._diverged(f"{broken!r} is not finite any more")
        self.checkpoints.save(self.progress)

    def _mixed(self, images: Tensor, targets: Tensor) -> Batch:
        if self.recipe.compute.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return self.mixup(images, targets) if self.mixup is not None else (images, targets)

    def _step(self, batches: Sequence[Batch]) -> Tensor:
        """One step of the optimiser, over batches whose gradients add up to one large batch's."""
        in_all = sum(len(images) for images, _ in batches)
        means = torch.zeros(len(metrics.LOSSES), dtype=torch.float64)
        means = means.to(self.accelerator.device)
        self.optimizer.zero_grad()
        with self._composed(batches):
            for place, (images, targets) in enumerate(batches, start=1):
                share = len(images) / in_all
                with self._silent(place < len(batches)):
                    losses = self._losses(images, targets)
                    self.accelerator.backward(losses.total * share)
                means += share * losses.values()
        self._clip()
        self.optimizer.step()
        return means

    def _composed(self, batches: Sequence[Batch]) -> AbstractContextManager[None]:
        """Compose weights once for several batches; a single one composes as it runs."""
        return composed_once(self.model) if len(batches) > 1 else nullcontext()

    def _silent(self, silent: bool) -> AbstractContextManager[None]:
        """Let processes exchange gradients at the last batch of a step only."""
        return self.accelerator.no_sync(self.wrapped) if silent else nullcontext()

    def _losses(self, images: Tensor, targets: Tensor) -> Any:
        autocast = self.accelerator.autocast
        losses = self.objective(self.forward, images, targets, autocast())
        if math.isfinite(losses.total.item()):
            return losses
        if self.accelerator.num_processes > 1:
            self.model.eval()  # in training mode it might wait for the other processes
        with autocast():
            why = blame(self.model, images, self.teacher)
        task, sp, kd = (each.item() for each in (losses.task, losses.sp, losses.kd))
        raise self._diverged(f"the loss is {losses.total.item()} ({task=}, {sp=}, {kd=}): {why}")

    def _diverged(self, what: str) -> TrainingError:
        rate = "--refine-lr" if self.before.epoch else "--lr"
        return diverged(what, self.progress, self.checkpoints.newest_name(), rate)

    def _clip(self) -> None:
        optim = self.recipe.optim
        if optim.clip_grad is not None and optim.clip_mode == "norm":  # accelerate's: over shards
            self.accelerator.clip_grad_norm_(self.wrapped.parameters(), optim.clip_grad)
        else:
            self.accelerator.unscale_gradients()
            clip_gradients(self.model, optim)

    def _record(self, row: dict[str, float]) -> None:
        self.accelerator.log(row, step=self.progress.updates)
        if self.accelerator.is_main_process:
            metrics.record(row, self.output / "metrics.csv")
            self.accelerator.print(watch.line(row, self.epochs, self.before))
