"""A whole pruning run, from recipe to run folder: what prune.py does."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from .data import Augmentation, ImageData
from .errors import Interrupted, LinOPError
from .flags import write_yaml
from .models import trained_model
from .optim import check_training
from .outcome import Outcome
from .pruning import KeptScores, Pruned, PruningReport, Training, check_penalty, pruned
from .publish import push_result
from .recipe import PruneRecipe
from .report import accuracies, finish, tell, with_costs
from .resume import stop_signals
from .setup import Loaders, load_images, make_loaders, scoring_images, start


def prune(recipe: PruneRecipe) -> Path:
    """Prune a trained model and leave a run folder.

    Args:
        recipe: What ``prune.py`` was asked for.

    Returns:
        The run folder: recipe.yaml, pruning.json, scores.json, results.json, card.json, figures/
        and slim/; of a method that trains metrics.csv, convergence.csv and checkpoints/, too.

    Raises:
        LinOPError: If anything in the recipe cannot work.
        Interrupted: If it was asked to stop; it can be resumed.
    """
    recipe = recipe.effective()
    trains = recipe.prune.trains
    if trains:
        check_training(recipe.optim, recipe.schedule)
        check_penalty(recipe.prune, recipe.optim, recipe.admm)
    resumed, output = recipe.checkpoint.resume is not None, Path(recipe.run.output or "")
    accelerator = start(recipe, writes=not resumed)
    if resumed and (output / "slim").exists():
        accelerator.print(f"{output} is finished already")
        return output
    data = load_images(recipe.data)
    dense = trained_model(recipe, data)
    augment = recipe.augment if trains else Augmentation(no_aug=True)
    loaders = make_loaders(recipe, augment, data, dense)
    if accelerator.is_main_process and not resumed:
        output.mkdir(parents=True, exist_ok=True)
        write_yaml(recipe, output / "recipe.yaml")
    with nullcontext() if resumed else _given_back(output, accelerator):
        found = _pruned(recipe, dense, data, loaders, accelerator)
    _finish(recipe, dense, found, data, loaders, accelerator)
    return output


@contextmanager
def _given_back(output: Path, accelerator: Accelerator) -> Iterator[None]:
    """Leave no folder behind of a run that was refused before it had done anything."""
    try:
        yield
    except Interrupted:  # which says how to go on
        raise
    except LinOPError:
        if accelerator.is_main_process and [p.name for p in output.iterdir()] == ["recipe.yaml"]:
            (output / "recipe.yaml").unlink()
            output.rmdir()
        raise


def _pruned(
    recipe: PruneRecipe,
    dense: nn.Module,
    data: ImageData,
    loaders: Loaders,
    accelerator: Accelerator,
) -> Pruned:
    options = {each.name: getattr(recipe.prune, each.name) for each in fields(recipe.prune)}
    images = scoring_images(recipe, data, loaders.config)
    with stop_signals() as stop:
        how = (recipe.training(), accelerator, stop, recipe.admm, recipe.tpp)
        training = Training(loaders.train, loaders.validation, *how)
        kept = KeptScores(Path(recipe.run.output or "") / "scores.json", accelerator, stop)
        return pruned(dense, batches=images, training=training, kept_scores=kept, **options)


def _finish(
    recipe: PruneRecipe,
    dense: nn.Module,
    found: Pruned,
    data: ImageData,
    loaders: Loaders,
    accelerator: Accelerator,
) -> None:
    """Measure, and write what a run leaves."""
    output, failed = Path(recipe.run.output or ""), None
    models = {"dense": dense, "pruned": found.model}
    test = accelerator.prepare(loaders.test)
    results = accuracies(models, test, accelerator, len(data.class_names))
    if accelerator.is_main_process:
        results = with_costs(results, models, loaders.config["input_size"])
        tell(results)
        write_report(found.report, output)
        finish(Outcome(recipe, output, found.model, "pruned", data, loaders.config, results))
        failed = push_result(recipe, output)
    accelerator.wait_for_everyone()
    if failed is not None:
        raise failed


def write_report(report: PruningReport, output: Path) -> None:
    """Write what was found: pruning.json, scores.json, convergence.csv.

    Args:
        report: From `pruned`.
        output: The run folder.
    """
    scores = {name: group.scores for name, group in report.groups.items() if group.scores}
    _write_json(report.to_dict(), output / "pruning.json")
    if scores:
        _write_json(scores, output / "scores.json")
    if report.history:
        with (output / "convergence.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(report.history[0]))
            writer.writeheader()
            writer.writerows(report.history)


def _write_json(told: Any, path: Path) -> None:
    path.write_text(json.dumps(told, indent=1), encoding="utf-8")
