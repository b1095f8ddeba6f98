"""A whole run, from recipe to run folder: what train.py and prune.py do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from timm.data import resolve_input_data_config
from torch import Tensor, nn
from torch.utils.data import DataLoader

from . import card, watch
from .compare import START, References, compared_runs, start_of
from .data import Augmentation, ImageData, load_data, make_loader, make_transforms
from .dry_run import describe
from .errors import TrainingError
from .evaluation import evaluate
from .expand import contract, is_expanded
from .fit import Trainer
from .flags import write_yaml
from .hub import check_output
from .models import arm_of, make_student, make_teacher, trained_model
from .optim import check_training
from .outcome import Outcome
from .processes import start_accelerator
from .pruning import prune as prune_model
from .publish import Snapshots, check_push, push_result
from .recipe import DataConfig, PruneRecipe, Recipe
from .report import finish, report_evaluation, with_costs
from .resume import stop_signals

# Contracting may change logits by rounding only, relative to their norm.
_AGREEMENT = 1e-5


@dataclass(frozen=True)
class Loaders:
    """Batches of the three splits, and how their images were made."""

    train: DataLoader[Any]
    validation: DataLoader[Any]
    test: DataLoader[Any]
    config: Mapping[str, Any]


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
    resumed = recipe.checkpoint.resume is not None
    output, accelerator = _start(recipe, resumed)
    if resumed and (output / "slim").exists():
        accelerator.print(f"{output} is finished already")
        return output
    data = _load(recipe.data)
    student, slim_start = make_student(recipe, data)
    loaders = make_loaders(recipe, recipe.augment, data, student)
    distilled = recipe.distill.gamma or recipe.distill.kd_weight
    teacher = make_teacher(recipe, loaders.config) if distilled else None
    start = start_of(slim_start, data, loaders.config) if slim_start is not None else {}
    compared = compared_runs(recipe.watch.compare, start, arm_of(recipe), recipe)
    trainer = Trainer(student, teacher, loaders.train, loaders.validation, recipe, accelerator)
    trainer.after_epoch = Snapshots(recipe, arm_of(recipe), data, loaders.config, accelerator)
    if recipe.watch.dry_run:
        _try_out(trainer)
        return None
    if accelerator.is_main_process and not resumed:
        output.mkdir(parents=True, exist_ok=True)
        write_yaml(recipe, output / "recipe.yaml")
        (output / START).write_text(json.dumps(start, indent=2), encoding="utf-8")
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
    results = _evaluated(beside.measured(), test, accelerator, data)
    results += [other.result for other in beside.compared]
    evaluation = evaluate(slim, test, accelerator)
    own = card.Result(arm, evaluation.top1, training_seconds=seconds, top5=evaluation.top5)
    if accelerator.is_main_process:
        config, models = loaders.config, {**beside.timed(), arm: slim}
        results = with_costs([*results, own], models, config["input_size"])
        report_evaluation(evaluation, data.class_names, output)
        differences = {other.result.arm: other.differences for other in beside.compared}
        outcome = Outcome(recipe, output, slim, arm, data, config, results, evaluation)
        finish(replace(outcome, contraction=contraction, differences=differences))
        failed = push_result(recipe, output)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if failed is not None:
        raise failed


def _evaluate_only(recipe: Recipe) -> Path:
    """Measure a model on the split that --eval-only names."""
    output, accelerator = _start(recipe)
    data = _load(recipe.data)
    model, _ = make_student(recipe, data)
    loaders = make_loaders(recipe, recipe.augment, data, model)
    split = recipe.watch.eval_only or ""
    model, batches = accelerator.prepare(model, getattr(loaders, split))
    evaluation = evaluate(model, batches, accelerator)
    accelerator.print(
        f"{split} of {data.name}: top-1 {evaluation.top1:.2f} %, top-5 {evaluation.top5:.2f} %, "
        f"loss {evaluation.loss:.4f}"
    )
    if accelerator.is_main_process:
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
    output, accelerator = _start(recipe)
    data = _load(recipe.data)
    dense = trained_model(recipe, data)
    loaders = make_loaders(recipe, Augmentation(no_aug=True), data, dense)
    test = accelerator.prepare(loaders.test)
    slim = prune_model(dense, ratio=recipe.prune.ratio, round_to=recipe.prune.round_to)
    models, failed = {"dense": dense, "pruned": slim}, None
    results = _evaluated(models, test, accelerator, data)
    if accelerator.is_main_process:
        results = with_costs(results, models, loaders.config["input_size"])
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


def make_loaders(
    recipe: Recipe | PruneRecipe, augment: Augmentation, data: ImageData, model: nn.Module
) -> Loaders:
    """Feed a model the images it expects.

    Args:
        recipe: Its model, data and run groups are read.
        augment: How training images are varied.
        data: The three splits.
        model: Tells input size, mean and std.

    Returns:
        Training batches shuffled, the others in order.
    """
    given = {key: getattr(recipe.data, key) for key in ("mean", "std", "interpolation", "crop_pct")}
    config = resolve_input_data_config(model, args={**given, "img_size": recipe.model.img_size})
    train_transform, eval_transform = make_transforms(config, augment=augment)
    options: dict[str, Any] = {"workers": recipe.data.workers, "seed": recipe.run.seed}
    batch = recipe.data.batch_size
    return Loaders(
        make_loader(data.train, train_transform, batch, shuffle=True, **options),
        make_loader(data.validation, eval_transform, batch, shuffle=False, **options),
        make_loader(data.test, eval_transform, batch, shuffle=False, **options),
        config,
    )


def _start(recipe: Recipe | PruneRecipe, resumed: bool = False) -> tuple[Path, Accelerator]:
    """Everything that can fail at once: the folder, the token, the processes."""
    output = Path(recipe.run.output or "")
    if not resumed:
        check_output(output)
    loading = DataLoaderConfiguration(use_seedable_sampler=True)
    trackers = watch.trackers(recipe.watch) if isinstance(recipe, Recipe) else []
    accelerator = start_accelerator(
        dataloader_config=loading, log_with=trackers or None, project_dir=str(output / "tracking")
    )
    if accelerator.is_main_process:
        check_push(recipe)
    set_seed(recipe.run.seed)
    accelerator.wait_for_everyone()
    return output, accelerator


def _load(data: DataConfig) -> ImageData:
    return load_data(
        data.dataset,
        image_column=data.image_column,
        label_column=data.label_column,
        streaming=data.streaming,
    )


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
