"""A whole run, from recipe to run folder: what train.py does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from . import card, watch
from .compare import START, References, compared_runs, start_of
from .data import ImageData
from .doubts import warn_of_recipe, warn_of_size, warn_of_teacher
from .dry_run import describe
from .errors import TrainingError
from .evaluation import evaluate
from .expand import contract, is_expanded
from .fit import Trainer
from .flags import write_yaml
from .models import arm_of, make_student, make_teacher
from .optim import check_training
from .outcome import Outcome
from .publish import Snapshots, push_result
from .recipe import Recipe
from .refine import refiner
from .report import accuracies, finish, report_evaluation, tell, with_costs
from .resume import stop_signals
from .setup import Loaders, evaluation_loader, load_images, make_loaders, start

# Contracting may change logits by rounding only, relative to their norm.
_AGREEMENT = 1e-5


def train(recipe: Recipe) -> Path | None:
    """Train a dense model, or fine-tune a slim one, and leave a run folder.

    Args:
        recipe: What ``train.py`` was asked for.

    Returns:
        The run folder: recipe.yaml, start.json, metrics.csv, checkpoints/, results.json, card.json,
        evaluation.json, per_class.csv, figures/ and slim/. With eval_only a folder of results,
        with dry_run none.

    Raises:
        LinOPError: If anything in the recipe cannot work, before long work if it can be told.
        HubError: Also if the finished run, which is whole, cannot be pushed.
    """
    given, recipe = recipe, recipe.effective()
    if recipe.watch.eval_only:
        return _evaluate_only(recipe)
    check_training(recipe.optim, recipe.schedule)
    resumed, output = recipe.checkpoint.resume is not None, Path(recipe.run.output or "")
    accelerator = start(recipe, writes=not (resumed or recipe.watch.dry_run))
    if resumed and (output / "slim").exists():
        accelerator.print(f"{output} is finished already")
        return output
    data = load_images(recipe.data)
    student, slim_start = make_student(recipe, data)
    loaders = make_loaders(recipe, recipe.augment, data, student)
    teacher = make_teacher(recipe, loaders.config) if recipe.distill.asked else None
    began = start_of(slim_start, data, loaders.config) if slim_start is not None else {}
    compared = compared_runs(recipe.watch.compare, began, arm_of(recipe), recipe)
    trainer = Trainer(student, teacher, loaders.train, loaders.validation, recipe, accelerator)
    trainer.after_epoch = Snapshots(recipe, arm_of(recipe), data, loaders.config, accelerator)
    stages = _stages(trainer, recipe, data, loaders)
    warn_of_recipe(given, recipe)
    warn_of_size(recipe.model, student)
    if recipe.watch.dry_run:
        _try_out(stages)
        return None
    if accelerator.is_main_process and not resumed:
        output.mkdir(parents=True, exist_ok=True)
        write_yaml(recipe, output / "recipe.yaml")
        (output / START).write_text(json.dumps(began, indent=2), encoding="utf-8")
    beside = References(teacher, slim_start, compared)
    classes = len(data.class_names)
    measured = accuracies(beside.measured(), trainer.validation, accelerator, classes)
    for row in measured:
        accelerator.print(f"{row.arm}: validation {row.accuracy:.2f} %")
    warn_of_teacher(measured)
    watch.start(recipe, accelerator)
    # Drawn per process from here on: dropout and mixup are not to be the same on all of them.
    set_seed(recipe.run.seed, device_specific=True)
    with stop_signals() as stop:
        for stage in stages:
            trained, seconds = stage.run(stop)
    _finish(recipe, trained, seconds, beside, data, loaders, accelerator)
    return output


def _finish(
    recipe: Recipe,
    trained: nn.Module,
    seconds: float,
    beside: References,
    data: ImageData,
    loaders: Loaders,
    accelerator: Accelerator,
) -> None:
    """Contract, touch the test split for the first time, and write what a run leaves."""
    output, arm, failed = Path(recipe.run.output or ""), arm_of(recipe), None
    test = accelerator.prepare(loaders.test)
    slim, contraction = _contracted(trained, next(iter(test))[0], accelerator)
    accelerator.print("measuring on the test split")
    results = accuracies(beside.measured(), test, accelerator, len(data.class_names))
    results += [other.result for other in beside.compared]
    evaluation = evaluate(slim, test, accelerator)
    own = card.Result(arm, evaluation.top1, training_seconds=seconds, top5=evaluation.top5)
    if accelerator.is_main_process:
        config, models = loaders.config, {**beside.timed(), arm: slim}
        results = with_costs([*results, own], models, config["input_size"])
        tell(results)
        report_evaluation(evaluation, "test", data.class_names, output)
        differences = {other.result.arm: other.differences for other in beside.compared}
        outcome = Outcome(recipe, output, slim, arm, data, config, results, evaluation)
        finish(replace(outcome, contraction=contraction, differences=differences))
        failed = push_result(recipe, output)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if failed is not None:
        raise failed


def _evaluate_only(recipe: Recipe) -> Path | None:
    """Measure a model on the split that --eval-only names; leave it where --output says, if so."""
    accelerator = start(recipe, writes=recipe.run.output is not None)
    data = load_images(recipe.data)
    model, _ = make_student(recipe, data)
    warn_of_size(recipe.model, model)
    split = recipe.watch.eval_only or ""
    loader = evaluation_loader(recipe, data, model, split)
    model, batches = accelerator.prepare(model, loader)
    evaluation = evaluate(model, batches, accelerator)
    accelerator.print(
        f"{split} of {data.name}: top-1 {evaluation.top1:.2f} %, top-5 {evaluation.top5:.2f} %, "
        f"loss {evaluation.loss:.4f}"
    )
    output = Path(recipe.run.output) if recipe.run.output is not None else None
    if accelerator.is_main_process and output is not None:
        output.mkdir(parents=True, exist_ok=True)
        write_yaml(recipe, output / "recipe.yaml")
        report_evaluation(evaluation, split, data.class_names, output)
    accelerator.wait_for_everyone()
    return output


def _stages(
    trainer: Trainer, recipe: Recipe, data: ImageData, loaders: Loaders
) -> Iterator[Trainer]:
    """The training proper and, where it is asked for, the label refinement that goes on from it."""
    yield trainer
    if recipe.refine.refine_epochs:
        yield refiner(trainer, data, loaders.config)


def _try_out(stages: Iterable[Trainer]) -> None:
    """Describe each stage of a run and do two steps of it."""
    for trainer in stages:
        tell = trainer.accelerator.print
        if trainer.before.updates:
            tell("\nlabel refinement after that:")
        tell(describe(trainer, next(iter(trainer.batches))[0]))
        for losses, seen in islice(trainer.steps(trainer.batches), 2):
            total, task, sp, kd = losses.tolist()
            tell(
                f"step {trainer.progress.updates}: {seen} images, loss {total:.4f} "
                f"(task {task:.4f}, SP {sp:.3e}, KD {kd:.4f})"
            )
    tell("nothing was written; leave --dry-run out to train.")


@torch.no_grad()
def _contracted(
    model: nn.Module, images: Tensor, accelerator: Accelerator
) -> tuple[nn.Module, card.Contraction | None]:
    """Contract a model and hold its logits against the expanded ones."""
    model.eval()
    if not is_expanded(model):
        return model, None
    expected = model(images)
    got = contract(model)(images)
    off = ((got - expected).norm() / expected.norm()).item()
    if not off <= _AGREEMENT:
        raise TrainingError(
            f"contracting changed the logits by {off:.2g} relative, over {_AGREEMENT:g}: the "
            "trained factors are too ill-conditioned for float32. Lower --lr, or use "
            "--init orthogonal."
        )
    accelerator.print(f"contracted: the logits moved by {off:.1e} relative")
    return model, card.Contraction(off, len(images))
