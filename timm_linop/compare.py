"""Runs that a card may be held against: those that started from the same weights and data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from torch import nn

from .card import Result
from .data import ImageData
from .errors import RecipeError
from .flags import flat
from .recipe import Recipe

START = "start.json"
# What makes two arms two, and what does not bear on accuracy.
_NOT_COMPARED = ("expand", "distill", "refine", "checkpoint", "watch", "run")
_SAME = ("pruned",)  # held by the weights themselves, wherever they lie


@dataclass(frozen=True)
class Compared:
    """A finished run beside this one.

    Attributes:
        result: Its own row, without costs: those are measured anew, side by side with this run's.
        model: Its slim model.
        differences: Settings in which it was unlike this run, beside those that make its arm:
            its value and this run's.
    """

    result: Result
    model: nn.Module
    differences: Mapping[str, tuple[object, object]]


@dataclass(frozen=True)
class References:
    """What a trained model is held against: its teacher, its start, and runs from that start."""

    dense: nn.Module | None
    pruned: nn.Module | None
    compared: Sequence[Compared] = ()

    def measured(self) -> dict[str, nn.Module | None]:
        """The models whose accuracy this run measures itself, by arm."""
        return {"dense": self.dense, "pruned": self.pruned}

    def timed(self) -> dict[str, nn.Module | None]:
        """The models whose cost it measures, by arm: all of them."""
        others = {other.result.arm: other.model for other in self.compared}
        return {**self.measured(), "dense": getattr(self.dense, "model", None), **others}


def start_of(slim: nn.Module, data: ImageData, config: Mapping[str, Any]) -> dict[str, Any]:
    """Describe what a run starts from, so that another run can tell whether it is the same.

    Args:
        slim: The slim model before training.
        data: What it is trained on.
        config: Its input size is read.

    Returns:
        Plain data: a digest of the weights, the data's name, classes and sizes, the input size.

    Example:
        >>> from timm_linop.data import load_data
        >>> slim = timm.create_model("test_resnet", num_classes=10, in_chans=1)
        >>> start_of(slim, load_data("digits"), {"input_size": (1, 32, 32)})["images"]
        [1000, 297, 500]
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(slim.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return {
        "weights": digest.hexdigest(),
        "data": data.name,
        "classes": list(data.class_names),
        "images": [len(data.train), len(data.validation), len(data.test)],
        "input_size": list(config["input_size"]),
    }


def compared_runs(
    folders: Sequence[str], start: Mapping[str, Any], arm: str, recipe: Recipe
) -> list[Compared]:
    """Load the runs to compare with, or refuse them before anything long is done.

    Args:
        folders: Finished run folders of train.py.
        start: What this run starts from.
        arm: This run's arm.
        recipe: This run's recipe.

    Returns:
        One entry a folder, in order.

    Raises:
        RecipeError: A folder is of no finished run, that run started from other weights or data,
            or its arm is there already.

    Example:
        >>> from timm_linop.recipe import ModelConfig
        >>> compared_runs(["nowhere"], {}, "linop", Recipe(ModelConfig("resnet18")))
        Traceback (most recent call last):
        ...
        timm_linop.errors.RecipeError: --compare nowhere: it holds no start.json, so it is no ...
    """
    found: list[Compared] = []
    for folder in map(Path, folders):
        _check_start(folder, start)
        result = _own_row(folder)
        if result.arm in (arm, *(other.result.arm for other in found)):
            raise RecipeError(
                f"--compare {folder}: its arm {result.arm!r} has a row already; name runs of other "
                "arms, one each."
            )
        model = timm.create_model(f"local-dir:{folder}/slim", pretrained=True)
        found.append(Compared(result, model, _differences(folder, recipe)))
    return found


def _check_start(folder: Path, start: Mapping[str, Any]) -> None:
    theirs = _read(folder, START)
    for key, words in _STARTS.items():
        if theirs.get(key) != start.get(key):
            raise RecipeError(
                f"--compare {folder}: that run had other {words} than this one, so its row would "
                "compare nothing; name a run with the same --pruned, --dataset and --img-size."
            )


_STARTS = {
    "weights": "pruned weights to start from",
    "data": "data",
    "classes": "classes",
    "images": "splits",
    "input_size": "images",
}


def _own_row(folder: Path) -> Result:
    """Read what a run reached: the last row of its results."""
    rows = _read(folder, "results.json")
    try:
        own = Result(**rows[-1])
    except (TypeError, KeyError, IndexError) as error:
        raise _unusable(folder, f"its results.json has no row of its own ({error})") from error
    return Result(own.arm, own.accuracy, training_seconds=own.training_seconds, top5=own.top5)


def _differences(folder: Path, recipe: Recipe) -> dict[str, tuple[object, object]]:
    """Find settings that bear on accuracy and are not the same."""
    try:
        theirs = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _unusable(folder, f"its recipe.yaml cannot be read ({error})") from error
    passed_over = {key for group in _NOT_COMPARED for key in vars(getattr(recipe, group))} | {
        *_SAME
    }
    ours = {key: value for key, value in flat(recipe).items() if key not in passed_over}
    # The seed is in the group of the output, but it matters.
    ours["seed"] = recipe.run.seed
    return {
        key: (theirs.get(key), value) for key, value in ours.items() if theirs.get(key) != value
    }


def _read(folder: Path, name: str) -> Any:
    path = folder / name
    if not path.is_file():
        raise _unusable(folder, f"it holds no {name}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unusable(folder, f"its {name} is damaged ({error})") from error


def _unusable(folder: Path, why: str) -> RecipeError:
    return RecipeError(
        f"--compare {folder}: {why}, so it is no finished run of train.py --pruned; name one, or "
        "leave --compare out."
    )
