"""What a run leaves behind: costs, figures, the card, and the slim folder that holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from . import bench, card, plots
from .architecture import base_of, dense_model, model_args_of
from .evaluation import Evaluation, evaluate, write_per_class
from .hub import save
from .outcome import BATCH, Outcome, card_data
from .recipe import PruneRecipe
from .snippet import check_snippet


def with_costs(
    results: Sequence[card.Result],
    models: Mapping[str, nn.Module | None],
    input_size: tuple[int, int, int],
) -> list[card.Result]:
    """Add parameters, multiply-adds and milliseconds per image to each arm's accuracy.

    Args:
        results: One row an arm.
        models: Arm to model; measured side by side, where the last one is.
        input_size: Channels, height, width.
    """
    there = {arm: model for arm, model in models.items() if model is not None}
    place = next(list(there.values())[-1].parameters()).device
    for model in there.values():
        model.to(place)
    latencies = bench.latencies_ms(there, input_size, batch_size=BATCH)
    rows = []
    for row in results:
        cost = bench.Cost.of(there[row.arm], input_size)
        rows.append(
            replace(
                row,
                parameters=cost.parameters,
                macs=cost.macs,
                latency_ms=latencies[row.arm],
                size_bytes=_file_bytes(there[row.arm]),
            )
        )
    return rows


def accuracies(
    models: Mapping[str, nn.Module | None],
    batches: DataLoader[Any],
    accelerator: Accelerator,
    classes: int,
) -> list[card.Result]:
    """Measure each model that has the data's classes on a split.

    Args:
        models: Arm to model.
        batches: The split, prepared.
        accelerator: Where to measure.
        classes: The data's.
    """
    results = []
    for arm, model in models.items():
        if model is not None and getattr(model, "num_classes", classes) == classes:
            model.to(accelerator.device)
            found = evaluate(model, batches, accelerator)
            results.append(card.Result(arm, found.top1, top5=found.top5))
    return results


def tell(results: Sequence[card.Result]) -> None:
    """Print what a run came to, one line an arm."""
    for row in results:
        reached = "" if row.accuracy is None else f"test {row.accuracy:.2f} %, "
        costs = f"{row.parameters:,} parameters, {row.macs:,} multiply-adds an image"
        print(f"{row.arm}: {reached}{costs}")


def _file_bytes(model: nn.Module) -> int:
    """Size of the file that `save` would write of a model."""
    state = {name: tensor.cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    return len(safetensors.torch.save(state))


def finish(outcome: Outcome) -> None:
    """Write figures, results.json, card.json and the slim folder with its card.

    Args:
        outcome: What the run came to.

    Raises:
        CheckpointError: The card's loading snippet does not work on the folder.
    """
    output, slim, config = outcome.output, outcome.slim, outcome.config
    rows = [asdict(row) for row in outcome.results]
    (output / "results.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    widths = channel_widths(slim)
    figures = _figures(outcome, widths)
    record = output / "card.json"
    card.write_record(card_data(outcome, figures, widths), record)
    save(
        slim,
        output / "slim",
        class_names=outcome.data.class_names,
        data_config={key: config[key] for key in _DATA_KEYS},
        card=card.read_record(record),
        figures=[output / figure.path for figure in figures],
    )
    check_snippet(output / "slim", slim, config, outcome.data.class_names)


def report_evaluation(
    evaluation: Evaluation, split: str, class_names: Sequence[str], output: Path
) -> None:
    """Write a split's figures: evaluation.json, per_class.csv and the confusion figure.

    Args:
        evaluation: What was counted.
        split: Where: train, validation or test.
        class_names: In the order of the labels.
        output: The run folder.
    """
    told = {
        "split": split,
        "top1": evaluation.top1,
        "top5": evaluation.top5,
        "loss": evaluation.loss,
        "images": int(evaluation.confusion.sum()),
    }
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


def _figures(outcome: Outcome, widths: Mapping[str, tuple[int, int]]) -> list[card.Figure]:
    """Draw what the run has numbers for; the figure of confusions is there already, if any."""
    folder, figures = outcome.output / "figures", []
    points = [
        (card.label(row.arm), row.arm, row.parameters, row.accuracy)
        for row in outcome.results
        if row.parameters and row.accuracy is not None
    ]
    pruning = isinstance(outcome.recipe, PruneRecipe)
    if len(points) > 1 and not pruning:  # a cut before its fine-tuning is no point of that curve
        plots.accuracy_against_parameters(points, folder / "accuracy_against_parameters.png")
        figures.append("accuracy_against_parameters")
    if (outcome.output / "metrics.csv").exists():
        plots.training_curves(outcome.output / "metrics.csv", folder / "training.png")
        figures.append("training")
    if outcome.evaluation is not None:
        figures.append("confusion")
    if pruning:
        figures += _how_it_was_pruned(outcome.output, folder)
    if any(dense != slim for dense, slim in widths.values()):
        before = {name: dense for name, (dense, _) in widths.items()}
        after = {name: slim for name, (_, slim) in widths.items()}
        plots.channel_widths(before, after, folder / "widths.png")
        figures.append("widths")
    captions = {**_CAPTIONS, **(_WHILE_PRUNING if pruning else {})}
    return [
        card.Figure(f"figures/{name}.png", captions[name], _WIDTHS.get(name)) for name in figures
    ]


def _how_it_was_pruned(output: Path, folder: Path) -> list[str]:
    """Draw what prune.py wrote beside the slim model."""
    drawn = []
    if (output / "convergence.csv").exists():
        plots.convergence(output / "convergence.csv", folder / "convergence.png")
        drawn.append("convergence")
    if (output / "scores.json").exists():
        scores = json.loads((output / "scores.json").read_text(encoding="utf-8"))
        groups = json.loads((output / "pruning.json").read_text(encoding="utf-8"))["groups"]
        removed = {name: group["removed"] for name, group in groups.items()}
        plots.scores(scores, removed, folder / "scores.png")
        drawn.append("scores")
    return drawn


# Pixels on a page, of what would look coarse as wide as the text.
_WIDTHS = {"confusion": 520, "accuracy_against_parameters": 600}
_WHILE_PRUNING = {
    "training": "Validation accuracy and losses while the dense model was trained towards the slim "
    "one; the total holds the pruning method's penalty",
}
_CAPTIONS = {
    "accuracy_against_parameters": "Test accuracy against parameters, a point for each row above",
    "training": "Losses and validation accuracy while training",
    "confusion": "Which classes of the test split it takes for which, in percent of the true class",
    "convergence": "How the pruning method converged, against steps of training",
    "scores": "The score of each channel, and which were removed",
    "widths": "Output channels of each layer, before pruning and after",
}
