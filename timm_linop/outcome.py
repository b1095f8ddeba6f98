"""What a run came to, and what its card tells of that."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import accelerate
import datasets
import timm
import torch
from torch import Tensor, nn

from . import bench, card
from .architecture import base_of, dense_model, model_args_of
from .data import ImageData
from .evaluation import Evaluation
from .recipe import DistillConfig, PruneRecipe, Recipe
from .structure import Structure

# Images per forward pass where latencies are measured.
BATCH = 32
# So many classes a card names as those recognised least.
_WEAKEST = 3
# Groups of settings that are no hyper-parameters: where things go and what is shown.
_NO_SETTINGS = ("checkpoint", "snapshots", "watch", "run")


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        recipe: What was run.
        output: The run folder.
        slim: The model to ship, contracted.
        arm: How it was made; its row in ``results`` has the same name.
        data: What it was trained on.
        config: Input size, mean and std.
        results: One row an arm, this run's own last.
        evaluation: What was counted of this model on the test split, where it was.
        contraction: How exactly it was contracted, where it was.
        differences: By arm of a run compared with, the settings in which it was unlike this one.
    """

    recipe: Recipe | PruneRecipe
    output: Path
    slim: nn.Module
    arm: str
    data: ImageData
    config: Mapping[str, Any]
    results: Sequence[card.Result]
    evaluation: Evaluation | None = None
    contraction: card.Contraction | None = None
    differences: Mapping[str, Mapping[str, tuple[object, object]]] = field(default_factory=dict)


def card_data(
    outcome: Outcome, figures: Sequence[card.Figure], widths: Mapping[str, tuple[int, int]]
) -> card.CardData:
    """Gather what the model card tells.

    Args:
        outcome: What the run came to.
        figures: What was drawn.
        widths: As `channel_widths` has them.
    """
    recipe, data, config = outcome.recipe, outcome.data, outcome.config
    chosen, defaults = _settings(recipe)
    distill = recipe.distill if isinstance(recipe, Recipe) else DistillConfig()
    teacher, repo = distill.asked, recipe.run.push_to_hub
    measured = outcome.evaluation
    return card.CardData(
        name=repo.split("/")[-1] if repo else outcome.output.name,
        architecture=base_of(outcome.slim),
        arm=outcome.arm,
        repo=repo,
        teacher=teacher and teacher.removeprefix("local-dir:").removeprefix("hf-hub:"),
        teacher_id=distill.teacher_id,
        dataset=card.Dataset(
            data.name,
            data.class_names,
            {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)},
            measured_on="test",
        ),
        results=tuple(outcome.results),
        differences=outcome.differences,
        pruning=_pruning(recipe, outcome.output, outcome.slim, widths),
        contraction=outcome.contraction,
        weakest=_weakest(measured.confusion, data.class_names) if measured else (),
        figures=tuple(figures),
        input_size=tuple(config["input_size"]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        hyperparameters=chosen,
        defaults=defaults,
        machine=_measured_on(outcome.slim),
        versions=versions(),
        seed=recipe.run.seed,
        command=_command(),
    )


def _command() -> str:
    """The command line that was typed, whatever Python and folder it ran in."""
    program = Path(sys.argv[0]).name
    python = ["python"] if program.endswith(".py") else []
    return shlex.join([*python, program, *sys.argv[1:]])


def _measured_on(slim: nn.Module) -> dict[str, str]:
    """What latencies were measured on, and how."""
    told = bench.machine(slim)
    kept = {key: told[key] for key in ("device", "cpu", "threads", "dtype")}
    return {**kept, "batch": str(BATCH)}


def _weakest(confusion: Tensor, class_names: Sequence[str]) -> tuple[card.ClassResult, ...]:
    """The classes recognised least, of those with images, where any image was not."""
    images, right = confusion.sum(1).tolist(), confusion.diagonal().tolist()
    missed = [
        card.ClassResult(name, int(of), int(found))
        for name, of, found in zip(class_names, images, right, strict=True)
        if found < of
    ]
    return tuple(sorted(missed, key=lambda each: each.right / each.images)[:_WEAKEST])


def versions() -> dict[str, str]:
    """Name the libraries a run was made with.

    Example:
        >>> sorted(versions())[0]
        'accelerate'
    """
    from . import __version__

    return {
        "timm_linop": __version__,
        "timm": timm.__version__,
        "torch": torch.__version__,
        "accelerate": accelerate.__version__,
        "datasets": datasets.__version__,
        "python": platform.python_version(),
    }


def _settings(recipe: Recipe | PruneRecipe) -> tuple[dict[str, object], dict[str, object]]:
    """The settings chosen for this run, and those left at their defaults."""
    chosen: dict[str, object] = {}
    defaults: dict[str, object] = {}
    for group in fields(recipe):
        if group.name in _NO_SETTINGS or _is_unused(recipe, group.name):
            continue
        values, usual = getattr(recipe, group.name), getattr(type(recipe)(), group.name)
        for key, value in asdict(values).items():
            same = value == getattr(usual, key)
            (defaults if same else chosen)[key] = value
    return chosen, defaults


def _is_unused(recipe: Recipe | PruneRecipe, group: str) -> bool:
    """Settings of training, of a method that does not train."""
    training = ("augment", "optim", "schedule", "compute")
    return isinstance(recipe, PruneRecipe) and not recipe.prune.trains and group in training


def _pruning(
    recipe: Recipe | PruneRecipe,
    output: Path,
    slim: nn.Module,
    widths: Mapping[str, tuple[int, int]],
) -> card.Pruning | None:
    if not Structure.of(slim).shapes:
        return None
    told = output if isinstance(recipe, PruneRecipe) else Path(recipe.model.pruned or "")
    path = told / "pruning.json"
    how = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    dense, options = dense_model(base_of(slim), **model_args_of(slim)), how.get("options", {})
    aims = ("target_params", "target_macs")
    return card.Pruning(
        how.get("method", "structured"),
        bench.count_parameters(dense),
        bench.count_parameters(slim),
        options.get("ratio"),
        widths,
        next((f"{aim} {options[aim]}" for aim in aims if options.get(aim)), None),
    )
