"""Recipes from the command line and YAML, and back.

Flags win over the file of ``--config``, which wins over a named recipe, which wins over defaults.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from .errors import RecipeError, close_names
from .recipe import PruneRecipe, Recipe
from .recipe.named import read_recipe
from .recipe.schedule import scaled

# What transformers' TrainingArguments and timm's train.py call settings, too far off to be guessed.
_ELSEWHERE = {
    "data_dir": "dataset",
    "dataloader_num_workers": "workers",
    "gradient_accumulation_steps": "grad_accum_steps",
    "label_smoothing_factor": "smoothing",
    "learning_rate": "lr",
    "lr_scheduler_type": "sched",
    "max_grad_norm": "clip_grad",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "report_to": "track",
    "resume_from_checkpoint": "resume",
}

R = TypeVar("R", Recipe, PruneRecipe)


def parse(kind: type[R], argv: Sequence[str], prog: str) -> R:
    """Read a recipe from flags, the YAML file of ``--config`` and a named recipe, in this order.

    A named recipe is stretched to the number of epochs that flags or file give.

    Args:
        kind: `Recipe` or `PruneRecipe`.
        argv: The command line, without the program's name.
        prog: The program's name, for ``--help``.

    Returns:
        The recipe.

    Raises:
        RecipeError: If a flag, a key or a recipe's name is unknown, or a value is of the wrong
            type or out of range.

    Example:
        >>> parse(PruneRecipe, ["--model", "resnet18", "--ratio", "0.7"], "prune.py").prune.ratio
        0.7
        >>> flags = ["--recipe", "paper-finetune", "--epochs", "15"]
        >>> parse(Recipe, flags, "train.py").schedule.decay_milestones
        (6, 10, 12)
    """
    groups: dict[str, Any] = get_type_hints(kind)
    parser = ArgumentParser(prog=prog, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of settings; flags win.")
    flags = _flags(kind)
    for name, group in groups.items():
        others = {each.name for each in fields(group)} - set(flags[name])
        parser.add_class_arguments(group, skip=others)
    parser.set_defaults(_settings(kind()))
    try:
        words = _as_jsonargparse(argv, list(groups.values()))
        values = parser.parse_args(_beginning(parser, words) + words)
    except RecipeError:
        raise
    except Exception as error:  # argparse's, jsonargparse's and yaml's own
        known = [flag for group in flags.values() for flag in group]
        raise RecipeError(
            f"{prog}: {_in_one_line(error)}; {prog} --help lists the flags.{_close(error, known)}"
        ) from error
    return kind(
        **{
            name: group(**{flag: values[flag] for flag in flags[name]})
            for name, group in groups.items()
        }
    )


def _in_one_line(error: Exception) -> str:
    """The parser's message, without the list of types it tried."""
    told = " ".join(str(error).split())
    tried = re.search(r"(Parser key \"\w+\"): Does not validate .*Given value: (.*)", told)
    return f"{tried[1]} cannot be {tried[2]}" if tried else told


def _close(error: Exception, known: Sequence[str]) -> str:
    """What the unknown flag or key is called here, or names close to it."""
    unknown = re.search(r"(unrecognized arguments: --|Option ')([\w-]+)", str(error))
    if unknown is None:
        return ""
    name, is_flag = unknown[2].replace("-", "_"), unknown[1].endswith("--")
    typed = {each: _flag(each) if is_flag else each for each in {*known, name}}
    if (here := _ELSEWHERE.get(name)) in known:
        return f" Here it is {typed[here]}."
    return close_names(typed[name], [typed[each] for each in known])


def _flag(setting: str) -> str:
    return f"--{setting.replace('_', '-')}"


def continued(asked: R, prog: str) -> R:
    """Read the recipe of the run that ``--resume`` names.

    Args:
        asked: What the command line says; nothing but ``--resume``.
        prog: The program's name, ``train.py`` or ``prune.py``.

    Returns:
        The recipe that the run was started with.

    Raises:
        RecipeError: If there is no such run, or other settings are given beside it.
    """
    folder = Path(asked.checkpoint.resume or "")
    others = replace(asked, checkpoint=replace(asked.checkpoint, resume=None))
    if others != type(asked)():
        raise RecipeError(
            f"--resume {folder} goes on as the run was started; leave the other flags out, or "
            "start a new run with --output."
        )
    if not (folder / "recipe.yaml").is_file():
        raise RecipeError(
            f"--resume {folder}: no run was started there (it has no recipe.yaml); name a folder "
            f"of {prog}, or start anew with --output."
        )
    settings = yaml.safe_load((folder / "recipe.yaml").read_text("utf-8"))
    other = {"train.py": "prune.py", "prune.py": "train.py"}[prog]
    if ("weights" in settings) != (prog == "prune.py"):
        raise RecipeError(f"--resume {folder}: {other} wrote it; go on with {other} --resume.")
    recipe = parse(type(asked), ["--config", str(folder / "recipe.yaml")], prog)
    return replace(
        recipe,
        checkpoint=replace(recipe.checkpoint, resume=str(folder)),
        run=replace(recipe.run, output=str(folder)),
    )


def to_yaml(recipe: Recipe | PruneRecipe) -> str:
    """Write a recipe as the flat YAML that ``--config`` reads.

    Example:
        >>> "lr: 0.01" in to_yaml(Recipe())
        True
    """
    return yaml.safe_dump(flat(recipe), sort_keys=False)


def flat(recipe: Recipe | PruneRecipe) -> dict[str, Any]:
    """List all settings of a recipe by flag, as plain values.

    Example:
        >>> flat(Recipe())["pairs"]
        ['blocks']
    """
    return {k: list(v) if isinstance(v, tuple) else v for k, v in _settings(recipe).items()}


def _settings(recipe: Recipe | PruneRecipe) -> dict[str, Any]:
    return {
        flag: value
        for group, flags in _flags(type(recipe)).items()
        for flag, value in asdict(getattr(recipe, group)).items()
        if flag in flags
    }


def _flags(kind: type[Recipe | PruneRecipe]) -> dict[str, list[str]]:
    """The settings of each group that are flags: where two share a name, the first one's is.

    ``prune.py --ratio`` is how much to prune, and timm's ``--ratio`` of random crops none of it.
    """
    found: dict[str, list[str]] = {}
    for name, group in get_type_hints(kind).items():
        taken = {flag for flags in found.values() for flag in flags}
        found[name] = [each.name for each in fields(group) if each.name not in taken]
    return found


def write_yaml(recipe: Recipe | PruneRecipe, path: Path) -> None:
    """Write a recipe to a file that ``--config`` reads back.

    Args:
        recipe: The recipe.
        path: The file.
    """
    draft = path.with_suffix(".new")
    draft.write_text(to_yaml(recipe), encoding="utf-8")
    draft.replace(path)


def _beginning(parser: ArgumentParser, words: list[str]) -> list[str]:
    """Give the words for the named recipe that flags or a file ask for; they go before these."""
    given = parser.parse_args(words, defaults=False)
    if "recipe" not in given or given.recipe is None:
        return []
    settings = read_recipe(given.recipe)
    if "epochs" in given:
        settings = scaled(settings, given.epochs)
    return ["--config", yaml.safe_dump(settings)]


def _as_jsonargparse(argv: Sequence[str], groups: Any) -> list[str]:
    """Let flags be typed as in timm.

    That is ``--weight-decay 0``, a bare ``--model-ema``, ``--exclude fc conv1`` and
    ``--model-kwargs output_stride=8``; jsonargparse would have ``--weight_decay``, ``--model_ema
    true``, ``--exclude '[fc, conv1]'`` and ``--model_kwargs '{output_stride: 8}'``. What other
    flags mean when they are bare is in their field's metadata. ``--config`` goes first, since
    jsonargparse lets the later word win.
    """
    settings = [each for group in reversed(groups) for each in fields(group)]  # the first one wins
    kinds = {each.name: str(each.type) for each in settings}
    bare = {each.name: each.metadata["bare"] for each in settings if each.metadata}
    bare |= {name: "true" for name, kind in kinds.items() if kind == "bool"}
    words, files, out = list(argv), [], []
    while words:
        flag, equals, value = words.pop(0).partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if name == "config" and (equals or words):
            files += ["--config", value if equals else words.pop(0)]
            continue
        if not flag.startswith("--") or name not in kinds:
            out.append(flag + equals + value)
            continue
        values = [value] if equals else []
        while not equals and words and not words[0].startswith("--"):
            values.append(words.pop(0))
        if name in bare and not values:
            values = [bare[name]]
        if kinds[name].startswith("dict"):
            pairs = [value.partition("=") for value in values]
            values = [json.dumps({key: yaml.safe_load(value) for key, _, value in pairs})]
        if kinds[name].startswith("tuple") and values:
            written = values == ["null"] or values[0].startswith("[")
            each = [part for value in values for part in value.split(",")]
            values = values[:1] if written else [json.dumps(each)]
        out.extend([f"--{name}", *values])
    return files + out
