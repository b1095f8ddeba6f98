"""Read a structure's JSON from a file that nobody vouches for: each piece is what it should be."""

from __future__ import annotations

import re
from typing import Any

from .errors import StructureError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*")
_MAX_AXES = 6
_MAX_ENTRIES = 50_000


def expect(value: Any, kind: type, where: str) -> Any:
    """Return a value of the type it should have, or refuse it by name.

    Raises:
        StructureError: If it has another type, or holds an absurd number of entries.
    """
    if not isinstance(value, kind):
        raise StructureError(
            f"{where} is {type(value).__name__}, not {kind.__name__}; the file was not written by "
            "timm_linop's save(), or was changed since."
        )
    if isinstance(value, dict) and len(value) > _MAX_ENTRIES:
        raise StructureError(f"{where} has {len(value):,} entries, over {_MAX_ENTRIES:,}.")
    return value


def name(name: Any, *, root: bool = False) -> str:
    """Return a dotted module or tensor name; the model itself, ``""``, only where ``root``.

    Raises:
        StructureError: If it is anything else.
    """
    if root and name == "":
        return name
    if not isinstance(name, str) or len(name) > 300 or not _NAME.fullmatch(name):
        raise StructureError(
            f"structure: {str(name)[:80]!r} is no name of a module or tensor; save the model again."
        )
    return name


def shape(name: str, sizes: Any) -> tuple[int | None, ...]:
    """Return a tensor's sizes, None for a free axis.

    Raises:
        StructureError: If they are not whole numbers of at least 1.
    """
    whole = isinstance(sizes, list) and 0 < len(sizes) <= _MAX_AXES
    if not whole or not all(size is None or _is_count(size) for size in sizes):
        raise StructureError(
            f"structure: shapes[{name[:80]!r}] is {str(sizes)[:80]}, not a list of sizes >= 1."
        )
    return tuple(sizes)


def numbers(name: str, values: Any, allowed: set[str]) -> dict[str, int]:
    """Return a module's attributes.

    Raises:
        StructureError: If one is not ``allowed``, or no whole number of at least 1.
    """
    values = expect(values, dict, f"structure: attributes[{name[:80]!r}]")
    for attribute, value in values.items():
        if attribute not in allowed:
            raise StructureError(
                f"structure: attributes[{name[:80]!r}] would set {str(attribute)[:80]!r}; only "
                f"{', '.join(sorted(allowed))} may be set."
            )
        if not _is_count(value):
            raise StructureError(
                f"structure: {name[:80]}.{attribute} is {str(value)[:80]}, not a whole number >= 1."
            )
    return dict(values)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
