"""Recipes from the command line and YAML, and back: flags win over the file it names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from .errors import RecipeError
from .recipe import PruneRecipe, Recipe

R = TypeVar("R", Recipe, PruneRecipe)


def parse(kind: type[R], argv: Sequence[str], prog: str) -> R:
    """Read a recipe from flags and the YAML file that ``--config`` names; flags win.

    Args:
        kind: `Recipe` or `PruneRecipe`.
        argv: The command line, without the program's name.
        prog: The program's name, for ``--help``.

    Returns:
        The recipe.

    Raises:
        RecipeError: If a flag or a key is unknown, or a value is of the wrong type.

    Example:
        >>> parse(PruneRecipe, ["--model", "resnet18", "--ratio", "0.7"], "prune.py").prune.ratio
        0.7
    """
    groups: dict[str, Any] = get_type_hints(kind)
    parser = ArgumentParser(prog=prog, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of settings; flags win.")
    for group in groups.values():
        parser.add_class_arguments(group)
    try:
        values = parser.parse_args(_as_jsonargparse(argv, list(groups.values())))
    except RecipeError:
        raise
    except Exception as error:  # argparse's, jsonargparse's and yaml's own
        raise RecipeError(
            f"{prog}: {' '.join(str(error).split())}; {prog} --help lists the flags."
        ) from error
    return kind(
        **{
            name: group(**{f.name: values[f.name] for f in fields(group)})
            for name, group in groups.items()
        }
    )


def continued(asked: Recipe) -> Recipe:
    """Read the recipe of the run that ``--resume`` names.

    Args:
        asked: What the command line says; nothing but ``--resume``.

    Returns:
        The recipe that the run was started with.

    Raises:
        RecipeError: If there is no such run, or other settings are given beside it.
    """
    folder = Path(asked.checkpoint.resume or "")
    others = replace(asked, checkpoint=replace(asked.checkpoint, resume=None))
    if others != Recipe():
        raise RecipeError(
            f"--resume {folder} goes on as the run was started; leave the other flags out, or "
            "start a new run with --output."
        )
    if not (folder / "recipe.yaml").is_file():
        raise RecipeError(
            f"--resume {folder}: no run was started there (it has no recipe.yaml); name a folder "
            "of train.py, or start anew with --output."
        )
    recipe = parse(Recipe, ["--config", str(folder / "recipe.yaml")], "train.py")
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
        >>> flat(Recipe())["decay_milestones"]
        [60, 100, 120]
    """
    settings = {key: value for group in asdict(recipe).values() for key, value in group.items()}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}


def write_yaml(recipe: Recipe | PruneRecipe, path: Path) -> None:
    """Write a recipe to a file that ``--config`` reads back.

    Args:
        recipe: The recipe.
        path: The file.
    """
    draft = path.with_suffix(".new")
    draft.write_text(to_yaml(recipe), encoding="utf-8")
    draft.replace(path)


def _as_jsonargparse(argv: Sequence[str], groups: Any) -> list[str]:
    """Let flags be typed as in timm.

    That is ``--weight-decay 0``, a bare ``--model-ema``, ``--exclude fc conv1`` and
    ``--model-kwargs output_stride=8``; jsonargparse would have ``--weight_decay``, ``--model_ema
    true``, ``--exclude '[fc, conv1]'`` and ``--model_kwargs '{output_stride: 8}'``. What other
    flags mean when they are bare is in their field's metadata.
    """
    kinds = {f.name: str(f.type) for group in groups for f in fields(group)}
    bare = {f.name: f.metadata["bare"] for group in groups for f in fields(group) if f.metadata}
    bare |= {name: "true" for name, kind in kinds.items() if kind == "bool"}
    words, out = list(argv), []
    while words:
        flag, equals, value = words.pop(0).partition("=")
        name = flag.removeprefix("--").replace("-", "_")
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
        if kinds[name].startswith("tuple"):
            values = [
                value if value.startswith("[") else json.dumps(values) for value in values[:1]
            ]
        out.extend([f"--{name}", *values])
    return out
