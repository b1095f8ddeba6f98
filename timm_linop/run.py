"""A whole run, from recipe to run folder: what train.py and prune.py do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader

from . import card, watch
from .compare import START, References, compared_runs, start_of
from .data import Augmentation, ImageData
from .dry_run import describe
from .errors import TrainingError
from .evaluation import evaluate
from .expand import contract, is_expanded
from .fit import Trainer
from .flags import write_yaml
from .models import arm_of, make_student, make_teacher, trained_model
from .optim import check_training
from .outcome import Outcome
from .pruning import prune as prune_model
from .publish import Snapshots, push_result
from .recipe import PruneRecipe, Recipe
from .report import finish, report_evaluation, with_costs
from .resume import stop_signals
from .setup import Loaders, load_images, make_loaders, start

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
    recipe = recipe.effective()
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
    if recipe.watch.dry_run:
        _try_out(trainer)
        return None
    if accelerator.is_main_process and not resumed:
        output.mkdir(parents=True, exist_ok=True)
        write_yaml(recipe, output / "recipe.yaml")
        (output / START).write_text(json.dumps(began, indent=2), encoding="utf-8")
    beside = References(teacher, slim_start, compared)
    for row in _evaluated(beside.measured(), trainer.validation, accelerator, data):
        accelerator.print(f"{row.arm}: validation {row.accuracy:.2f} %")
    watch.start(recipe, accelerator)
    # Drawn per process from here on: dropout and mixup are not to be the same on all of them.
    set_seed(recipe.run.seed, device_specific=True)
    with stop_signals() as stop:
        trained, seconds = trainer.run(stop)
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
    results = _evaluated(beside.measured(), test, accelerator, data)
    results += [other.result for other in beside.compared]
    evaluation = evaluate(slim, test, accelerator)
    own = card.Result(arm, evaluation.top1, training_seconds=seconds, top5=evaluation.top5)
    if accelerator.is_main_process:
        config, models = loaders.config, {**beside.timed(), arm: slim}
        results = with_costs([*results, own], models, config["input_size"])
        _tell(results)
        report_evaluation(evaluation, data.class_names, output)
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
    loaders = make_loaders(recipe, recipe.augment, data, model)
    split = recipe.watch.eval_only or ""
    model, batches = accelerator.prepare(model, getattr(loaders, split))
    evaluation = evaluate(model, batches, accelerator)
    accelerator.print(
        f"{split} of {data.name}: top-1 {evaluation.top1:.2f} %, top-5 {evaluation.top5:.2f} %, "
        f"loss {evaluation.loss:.4f}"
    )
    output = Path(recipe.run.output) if recipe.run.output is not None else None
    if accelerator.is_main_process and output is not None:
        output.mkdir(parents=True, exist_ok=True)
        write_yaml(recipe, output / "recipe.yaml")
        report_evaluation(evaluation, data.class_names, output)
    accelerator.wait_for_everyone()
    return output


def _try_out(trainer: Trainer) -> None:
    """Describe a run and do two steps of it."""
    images = next(iter(trainer.batches))[0]
    trainer.accelerator.print(describe(trainer, images))
    for losses, seen in islice(trainer.steps(trainer.batches), 2):
        total, task, sp, kd = losses.tolist()
        trainer.accelerator.print(
            f"step {trainer.progress.updates}: {seen} images, loss {total:.4f} (task {task:.4f}, "
            f"SP {sp:.3e}, KD {kd:.4f})"
        )
    trainer.accelerator.print("nothing was written; leave --dry-run out to train.")


def prune(recipe: PruneRecipe) -> Path:
    """Prune a trained model and leave a run folder.

    Args:
        recipe: What ``prune.py`` was asked for.

    Returns:
        The run folder: recipe.yaml, pruning.json, results.json, card.json, figures/ and slim/.

    Raises:
        LinOPError: If anything in the recipe cannot work.
    """
    recipe = recipe.effective()
    accelerator, output = start(recipe, writes=True), Path(recipe.run.output or "")
    data = load_images(recipe.data)
    dense = trained_model(recipe, data)
    loaders = make_loaders(recipe, Augmentation(no_aug=True), data, dense)
    test = accelerator.prepare(loaders.test)
    slim = prune_model(dense, ratio=recipe.prune.ratio, round_to=recipe.prune.round_to)
    models, failed = {"dense": dense, "pruned": slim}, None
    results = _evaluated(models, test, accelerator, data)
    if accelerator.is_main_process:
        results = with_costs(results, models, loaders.config["input_size"])
        _tell(results)
        output.mkdir(parents=True, exist_ok=True)
        write_yaml(recipe, output / "recipe.yaml")
        told = {"method": "magnitude", "ratio": recipe.prune.ratio}
        (output / "pruning.json").write_text(json.dumps(told, indent=2), encoding="utf-8")
        finish(Outcome(recipe, output, slim, "pruned", data, loaders.config, results))
        failed = push_result(recipe, output)
    accelerator.wait_for_everyone()
    if failed is not None:
        raise failed
    return output


def _evaluated(
    models: Mapping[str, nn.Module | None],
    test: DataLoader[Any],
    accelerator: Accelerator,
    data: ImageData,
) -> list[card.Result]:
    """Accuracy on a split of each model that has the data's classes."""
    results, classes = [], len(data.class_names)
    for arm, model in models.items():
        if model is not None and getattr(model, "num_classes", classes) == classes:
            model.to(accelerator.device)
            found = evaluate(model, test, accelerator)
            results.append(card.Result(arm, found.top1, top5=found.top5))
    return results


def _tell(results: Sequence[card.Result]) -> None:
    """Print what a run came to, one line an arm."""
    for row in results:
        reached = "" if row.accuracy is None else f"test {row.accuracy:.2f} %, "
        costs = f"{row.parameters:,} parameters, {row.macs:,} multiply-adds an image"
        print(f"{row.arm}: {reached}{costs}")


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
