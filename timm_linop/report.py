"""What a run leaves behind: costs, figures, the card, and the slim folder that holds them."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import accelerate
import datasets
import timm
import torch
from torch import nn

from . import bench, card, plots
from .architecture import base_of, dense_model, model_args_of
from .data import ImageData
from .evaluation import Evaluation, write_per_class
from .hub import save
from .recipe import PruneRecipe, Recipe
from .structure import Structure


def with_costs(
    results: Sequence[card.Result],
    models: Mapping[str, nn.Module | None],
    input_size: tuple[int, int, int],
) -> list[card.Result]:
    """Add parameters, multiply-adds and milliseconds per image to each arm's accuracy.

    Args:
        results: One row an arm.
        models: Arm to model; measured side by side.
        input_size: Channels, height, width.
    """
    there = {arm: model for arm, model in models.items() if model is not None}
    latencies = bench.latencies_ms(there, input_size)
    rows = []
    for row in results:
        cost = bench.Cost.of(there[row.arm], input_size)
        rows.append(
            replace(
                row,
                parameters=cost.parameters,
                macs=cost.macs,
                latency_ms=latencies[row.arm],
                size_bytes=sum(t.nbytes for t in there[row.arm].state_dict().values()),
            )
        )
    return rows


def finish(
    recipe: Recipe | PruneRecipe,
    output: Path,
    slim: nn.Module,
    arm: str,
    data: ImageData,
    config: Mapping[str, Any],
    results: Sequence[card.Result],
) -> None:
    """Write figures, results.json and the slim folder with its card.

    Args:
        recipe: What was run.
        output: The run folder.
        slim: The model to ship, contracted.
        arm: How it was made; its row in ``results`` has the same name.
        data: What it was trained on.
        config: Input size, mean and std.
        results: One row an arm.
    """
    widths = channel_widths(slim)
    figures = _figures(output, widths)
    rows = [asdict(row) for row in results]
    (output / "results.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    save(
        slim,
        output / "slim",
        class_names=data.class_names,
        data_config={key: config[key] for key in _DATA_KEYS},
        card=card_data(recipe, output, slim, arm, data, config, results, figures, widths),
        figures=[output / figure.path for figure in figures],
    )


def report_evaluation(evaluation: Evaluation, class_names: Sequence[str], output: Path) -> None:
    """Write a split's figures: evaluation.json, per_class.csv and the confusion figure.

    Args:
        evaluation: What was counted.
        class_names: In the order of the labels.
        output: The run folder.
    """
    told = {"top1": evaluation.top1, "top5": evaluation.top5, "loss": evaluation.loss}
    (output / "evaluation.json").write_text(json.dumps(told, indent=2), encoding="utf-8")
    write_per_class(evaluation.confusion, class_names, output / "per_class.csv")
    matrix = evaluation.confusion.tolist()
    plots.confusion(matrix, class_names, output / "figures" / "confusion.png")


_DATA_KEYS = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


def channel_widths(slim: nn.Module) -> dict[str, tuple[int, int]]:
    """Compare each convolution's and linear layer's outputs with the dense architecture's.

    Returns:
        Layer name to (dense, slim) output channels.
    """
    dense = dict(dense_model(base_of(slim), **model_args_of(slim)).named_modules())
    kinds = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
    return {
        name: (dense[name].weight.shape[0], module.weight.shape[0])
        for name, module in slim.named_modules()
        if isinstance(module, kinds)
    }


def _figures(output: Path, widths: Mapping[str, tuple[int, int]]) -> list[card.Figure]:
    folder, figures = output / "figures", []
    if (output / "metrics.csv").exists():
        plots.training_curves(output / "metrics.csv", folder / "training.png")
        figures.append(card.Figure("figures/training.png", "Loss and validation accuracy"))
    if any(dense != slim for dense, slim in widths.values()):
        before = {name: dense for name, (dense, _) in widths.items()}
        after = {name: slim for name, (_, slim) in widths.items()}
        plots.channel_widths(before, after, folder / "widths.png")
        figures.append(card.Figure("figures/widths.png", "Output channels per layer"))
    return figures


def card_data(
    recipe: Recipe | PruneRecipe,
    output: Path,
    slim: nn.Module,
    arm: str,
    data: ImageData,
    config: Mapping[str, Any],
    results: Sequence[card.Result],
    figures: Sequence[card.Figure],
    widths: Mapping[str, tuple[int, int]],
) -> card.CardData:
    """Gather what the model card tells; arguments as `finish` and `channel_widths` have them."""
    chosen, defaults = _settings(recipe)
    teacher = (
        recipe.distill.teacher if isinstance(recipe, Recipe) and recipe.distill.gamma else None
    )
    repo = recipe.run.push_to_hub
    return card.CardData(
        name=repo.split("/")[-1] if repo else output.name,
        architecture=base_of(slim),
        arm=arm,
        repo=repo,
        teacher=teacher,
        teacher_id=teacher.removeprefix("hf-hub:").split("@")[0]
        if teacher and teacher.startswith("hf-hub:")
        else None,
        dataset=card.Dataset(
            data.name,
            data.class_names,
            {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)},
            measured_on="test",
        ),
        results=tuple(results),
        pruning=_pruning(recipe, output, slim, widths),
        figures=tuple(figures),
        input_size=tuple(config["input_size"]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        hyperparameters=chosen,
        defaults=defaults,
        machine=bench.machine(slim),
        versions=versions(),
        seed=recipe.run.seed,
        command=" ".join(["python", *sys.argv]),
    )


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
        values, usual = getattr(recipe, group.name), type(getattr(recipe, group.name))()
        for key, value in asdict(values).items():
            same = value == getattr(usual, key)
            (defaults if same else chosen)[key] = value
    return chosen, defaults


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
    dense = dense_model(base_of(slim), **model_args_of(slim))
    return card.Pruning(
        how.get("method", "structured"),
        bench.count_parameters(dense),
        bench.count_parameters(slim),
        how.get("ratio"),
        widths,
    )
