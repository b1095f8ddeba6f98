"""Named recipes: settings that belong together, in ``timm_linop/recipes/NAME.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from timm_linop.errors import RecipeError, close_names

_FOLDER = resources.files("timm_linop") / "recipes"


@dataclass(frozen=True)
class NamedConfig:
    """Settings to begin with.

    Attributes:
        recipe: Named recipe to begin with: default (measured best), paper-finetune, paper-scratch,
            curl-limited or quick; --config and flags win over it, and its schedule is stretched to
            --epochs.
    """

    recipe: str | None = None


def recipe_names() -> list[str]:
    """List the named recipes.

    Example:
        >>> recipe_names()
        ['curl-limited', 'default', 'paper-finetune', 'paper-scratch', 'quick']
    """
    files = (file.name for file in _FOLDER.iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def read_recipe(name: str) -> dict[str, Any]:
    """Read the settings of a named recipe.

    Args:
        name: One of `recipe_names`.

    Returns:
        Its settings by name, ``epochs`` among them.

    Raises:
        RecipeError: If there is none of that name.

    Example:
        >>> read_recipe("paper-finetune")["decay_milestones"]
        [60, 100, 120]
        >>> read_recipe("paper-finetun")
        Traceback (most recent call last):
        timm_linop.errors.RecipeError: recipe='paper-finetun' is no named recipe; there are ...
    """
    names = recipe_names()
    if name not in names:
        raise RecipeError(
            f"recipe={name!r} is no named recipe; there are {', '.join(names)}. A file of your own "
            "goes to --config." + close_names(name, names)
        )
    settings: dict[str, Any] = yaml.safe_load((_FOLDER / f"{name}.yaml").read_text("utf-8"))
    return settings
