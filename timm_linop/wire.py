"""Read a structure's JSON from a file that nobody vouches for: each piece is what it should be."""

from __future__ import annotations

import re
import reprlib
from typing import Any

from .architecture import known_architecture
from .errors import StructureError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*")
_MAX_AXES = 6
_MAX_ENTRIES = 50_000
_MAX_PARTS = 64
_MAX_BITS = 4096


def read(
    data: Any, version: int, settable: set[str]
) -> tuple[str, dict[str, tuple[int | None, ...]], dict[str, dict[str, Any]]]:
    """Take a structure's JSON apart.

    Args:
        data: Parsed JSON.
        version: The one that is read.
        settable: Names of the attributes that any module may be given.

    Returns:
        The architecture, the shapes by tensor, the attributes by module.

    Raises:
        StructureError: If anything in it is not what it should be.
    """
    data = expect(data, dict, "structure")
    if type(data.get("version")) is not int or data["version"] != version:
        raise StructureError(
            f"structure: version {shown(data.get('version'))} is not {version}, the one this "
            "timm_linop reads; upgrade it (pip install -U timm-linop)."
        )
    unknown = sorted(map(str, set(data) - {"version", "base", "shapes", "attributes"}))
    if unknown:
        raise StructureError(
            f"structure: unknown entry {unknown[0][:80]!r}; save the model again with save()."
        )
    base = known_architecture(expect(data.get("base"), str, "structure: base"))
    shapes = expect(data.get("shapes", {}), dict, "structure: shapes")
    attributes = expect(data.get("attributes", {}), dict, "structure: attributes")
    return (
        base,
        {name(key): shape(key, value) for key, value in shapes.items()},
        {name(key, root=True): numbers(key, value, settable) for key, value in attributes.items()},
    )


def plain(value: Any) -> int | float | list[int] | None:
    """Write an attribute's value as JSON: whole numbers, or a factor up to 1; None is neither.

    Example:
        >>> plain((4, 8)), plain(0.125), plain(1.5), plain(True)
        ([4, 8], 0.125, None, None)
    """
    if _is_factor(value):
        return value
    if isinstance(value, list | tuple) and value and all(map(_is_whole, value)):
        return [int(part) for part in value]
    return int(value) if _is_whole(value) else None


def shown(value: Any) -> str:
    """Print a value of a file in at most 80 characters, however long or deep it is.

    Example:
        >>> shown([[[[[[[[3]]]]]]]]), shown("x" * 10**6), shown(10**9999)
        ('[[[[[[[...]]]]]]]', "'xxxxxxxxxxxx...xxxxxxxxxxxxx'", 'a very long int')
    """
    try:
        return reprlib.repr(value)[:80]
    except ValueError:
        return f"a very long {type(value).__name__}"


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
            f"structure: {shown(name)} is no name of a module or tensor; save the model again."
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
            f"structure: shapes[{name[:80]!r}] is {shown(sizes)}, not a list of sizes >= 1."
        )
    return tuple(sizes)


def numbers(name: str, values: Any, allowed: set[str]) -> dict[str, Any]:
    """Return a module's attributes.

    Raises:
        StructureError: If one is not ``allowed``, or no number or short list of them.
    """
    values = expect(values, dict, f"structure: attributes[{name[:80]!r}]")
    for attribute, value in values.items():
        if attribute not in allowed:
            raise StructureError(
                f"structure: attributes[{name[:80]!r}] would set {str(attribute)[:80]!r}; only "
                f"{', '.join(sorted(allowed))} may be set."
            )
        parts = value if isinstance(value, list) and 0 < len(value) <= _MAX_PARTS else [value]
        whole = all(_is_whole(part) and part >= 0 for part in parts) and value != 0
        if not whole and not _is_factor(value):
            raise StructureError(
                f"structure: {name[:80]}.{attribute} is {shown(value)}, not a whole number >= 1, "
                "a short list of them, or a factor up to 1."
            )
    return dict(values)


def _is_whole(value: Any) -> bool:
    # Python itself refuses to print longer ones.
    return type(value) is int and value.bit_length() < _MAX_BITS


def _is_factor(value: Any) -> bool:
    """What an attention multiplies its products by."""
    return type(value) is float and 0 < value <= 1


def _is_count(value: Any) -> bool:
    return _is_whole(value) and value >= 1
