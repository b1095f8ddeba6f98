"""Training towards a slim net: what ADMM and TPP do before anything is removed."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from accelerate import Accelerator, DataLoaderConfiguration
from torch import nn
from torch.utils.data import DataLoader

from ..errors import PruningError
from ..fit import Trainer
from ..optim import is_plain_sgd
from ..recipe import ADMMConfig, OptimConfig, PruneConfig, Recipe, ScheduleConfig, TPPConfig
from ..regulariser import Regulariser
from ..resume import Stop
from .admm import ADMM, CONVERGED, check_stable
from .silence import silence
from .subject import Removed, Subject
from .tpp import TrainabilityPreserving

_log = logging.getLogger(__name__)
# Marked filters that have more of the others' mean |w| than this were not taken away, but cut off.
_FADED = 0.05


def _usual() -> Recipe:
    return Recipe(schedule=ScheduleConfig(epochs=30, sched="constant", warmup_epochs=0))


@dataclass
class Training:
    """How a method trains.

    Attributes:
        train: Batches of ``(images b x c x h x w, labels b)``.
        validation: Likewise, in order; measured after each epoch.
        recipe: Its optim, schedule, compute, checkpoint and run groups are read; the usual one is
            30 epochs of SGD at a constant 0.01. With an output folder, metrics.csv and
            checkpoints/ are written there, and a run goes on from the newest checkpoint that it
            finds.
        accelerator: Where it runs; None makes one.
        stop: Asks to save and leave.
        admm: How admm goes on.
        tpp: How tpp presses.
    """

    train: DataLoader[Any]
    validation: DataLoader[Any]
    recipe: Recipe = field(default_factory=_usual)
    accelerator: Accelerator | None = None
    stop: Stop = field(default_factory=Stop)
    admm: ADMMConfig = field(default_factory=ADMMConfig)
    tpp: TPPConfig = field(default_factory=TPPConfig)


def train_towards(
    subject: Subject, removed: Removed, config: PruneConfig, training: Training
) -> tuple[nn.Module, Removed, list[dict[str, float]]]:
    """Train a copy of the dense model with the method's regulariser.

    Args:
        subject: What is pruned.
        removed: A choice of the size wanted, which was found to be sound.
        config: Its method is read.
        training: How to train.

    Returns:
        The trained model, silent where it will be cut; the units that go; how it converged.

    Raises:
        PruningError: If what was trained cannot be cut soundly.
        TrainingError: If training diverges.
        Interrupted: If it was asked to stop.
    """
    model, recipe = copy.deepcopy(subject.model).train(), training.recipe
    kept = {g.layer: g.size - len(removed.get(g.layer, ())) for g in subject.groups}
    with tempfile.TemporaryDirectory() as scratch:
        if recipe.run.output is None:
            recipe = replace(recipe, run=replace(recipe.run, output=scratch))
        loading = DataLoaderConfiguration(use_seedable_sampler=True)  # the order can be resumed
        accelerator = training.accelerator or Accelerator(dataloader_config=loading)
        trainer = Trainer(model, None, training.train, training.validation, recipe, accelerator)
        if trainer.sharded:
            raise PruningError(
                f"{accelerator.distributed_type.value} spreads the weights over the processes, and "
                f"{config.method} compares whole filters; launch with multi_gpu.yaml."
            )
        regulariser = _regulariser(subject, kept, config, training, trainer)
        trainer.regularise(regulariser)
        trained, _ = trainer.run(training.stop)
    _warn_of_short(regulariser)
    removed = regulariser.removed()
    silence(trained, subject.groups, removed)
    return trained.eval(), removed, regulariser.history


def _warn_of_short(regulariser: Regulariser) -> None:
    """Say where training ended before the method had done its work."""
    if isinstance(regulariser, ADMM) and not regulariser.converged:
        _log.warning(
            "ADMM has not converged: ||W - Z|| / ||W|| is %.3f, over %g, so the cut takes "
            "something with it. Train longer, take a larger --rho, or fewer --admm-iterations.",
            regulariser.history[-1]["residual"],
            CONVERGED,
        )
    if isinstance(regulariser, TrainabilityPreserving) and regulariser.left > _FADED:
        _log.warning(
            "TPP has set to zero what was not small yet: marked filters had %.0f%% of the others' "
            "mean |w|. Train longer, or take a larger --lr or --tpp-top.",
            100 * regulariser.left,
        )


def check_penalty(config: PruneConfig, optim: OptimConfig, admm: ADMMConfig) -> None:
    """Refuse, before long work, a penalty that the optimiser would overshoot.

    Raises:
        RecipeError: If it would.
    """
    if config.method == "admm" and is_plain_sgd(optim):
        check_stable(admm, optim.lr, optim.momentum)


def _regulariser(
    subject: Subject,
    kept: Mapping[str, int],
    config: PruneConfig,
    training: Training,
    trainer: Trainer,
) -> Regulariser:
    groups = [group for group in subject.groups if kept[group.layer] < group.size]
    fewer = {group.layer: kept[group.layer] for group in groups}
    towards = (trainer.model, groups, fewer, trainer.updates_in_all)
    if config.method == "admm":
        return ADMM(*towards, training.admm)
    return TrainabilityPreserving(*towards, training.tpp)
