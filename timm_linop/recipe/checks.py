"""Ranges that settings must lie in, told in one form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from timm_linop.errors import RecipeError, close_names


def check_numbers(
    config: object, holds: Callable[[Any], bool], wanted: str, fields: Iterable[str]
) -> None:
    """Refuse fields of a group of settings that are out of range; None always passes.

    Args:
        config: The group.
        holds: Whether a value is in range.
        wanted: What to give instead, for the message.
        fields: Names of the fields.

    Raises:
        RecipeError: If a field is out of range.

    Example:
        >>> check_numbers(3j, lambda x: x >= 0, "a number not below 0", ["imag"])
    """
    for field in fields:
        value = getattr(config, field)
        # A comparison with NaN is false, so NaN is refused, too.
        if value is not None and not holds(value):
            raise RecipeError(f"{field}={value} is out of range; give {wanted}.")


def check_choice(field: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a word that is none of those a field may be.

    Args:
        field: Its name.
        value: What it is.
        choices: What it may be.

    Raises:
        RecipeError: If it is none of them.

    Example:
        >>> check_choice("mixup_mode", "pairs", ("batch", "pair", "elem"))
        Traceback (most recent call last):
        timm_linop.errors.RecipeError: mixup_mode='pairs' is unknown; use batch, pair or elem. ...
    """
    choices = list(choices)
    if value not in choices:
        listed = f"{', '.join(choices[:-1])} or {choices[-1]}"
        raise RecipeError(
            f"{field}={value!r} is unknown; use {listed}." + close_names(value, choices)
        )
