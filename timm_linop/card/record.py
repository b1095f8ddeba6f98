"""A card's data as a file: what was rendered once can be rendered again, without the run.

It may be published like the card: no secret and no local path gets into it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from timm_linop import markdown
from timm_linop.card.data import (
    CardData,
    ClassResult,
    Contraction,
    Dataset,
    Figure,
    Pruning,
    Result,
)
from timm_linop.errors import DataError, LinOPError


def write_record(data: CardData, path: Path) -> None:
    """Write all that a card tells as JSON, secrets and local paths taken out.

    Args:
        data: What the card tells.
        path: The file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "card.json"
        >>> write_record(CardData("tiny", "resnet18", "dense", teacher="/home/ann/big"), path)
        >>> read_record(path).teacher
        'big'
    """
    if data.command is not None:
        data = replace(data, command=markdown.command_line(data.command))
    # The owner's own words stay as they were written.
    told = {**_public(asdict(data)), "free": dict(data.free)}
    text = json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(f"{text}\n", encoding="utf-8")


def read_record(path: Path) -> CardData:
    """Read what `write_record` wrote.

    Args:
        path: The file.

    Raises:
        DataError: It is missing, damaged, or of another version of timm_linop.
        RecipeError: An id or an accuracy in it cannot be.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return _as_card(told)
    except LinOPError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise DataError(
            f"{path} is no record of a card ({type(error).__name__}: {error}); take the card.json "
            "of a run folder that this version wrote."
        ) from error


def _as_card(told: Mapping[str, Any]) -> CardData:
    made: dict[str, Any] = dict(told)
    for name, each in _EACH.items():
        made[name] = tuple(each(**value) for value in told[name])
    for name, kind in _ONE.items():
        made[name] = kind(**told[name]) if told[name] is not None else None
    if made["dataset"]:
        made["dataset"] = replace(made["dataset"], classes=tuple(made["dataset"].classes))
    for field in fields(CardData):
        if isinstance(made.get(field.name), list):
            made[field.name] = tuple(made[field.name])
    return CardData(**made)


_EACH: dict[str, type] = {"results": Result, "weakest": ClassResult, "figures": Figure}
_ONE: dict[str, type] = {"dataset": Dataset, "pruning": Pruning, "contraction": Contraction}


def _public(value: Any) -> Any:
    """Take secrets and local paths out of every string."""
    if isinstance(value, str):
        return markdown.public(value)
    if isinstance(value, Mapping):
        return {markdown.public(key): _public(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_public(each) for each in value]
    return value
