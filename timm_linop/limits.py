"""What a structure may ask of the dense architecture: its names, smaller sizes, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from . import wire
from .architecture import tensors_of
from .errors import StructureError, close_names
from .rules import Rule

# Attributes by class, with the file it stands in.
Table = Mapping[str, Mapping[str, Any]]


def check_names(base: str, dense: nn.Module, shapes: Mapping[str, Any]) -> None:
    """Refuse tensors that are not exactly those of the architecture.

    Args:
        base: Its timm name.
        dense: The dense model.
        shapes: Tensor name to shape of the slim one.

    Raises:
        StructureError: If one is missing or foreign.
    """
    names = {name for name, _ in tensors_of(dense)}
    absent, foreign = names - set(shapes), set(shapes) - names
    for missing, where in ((absent, "the slim model"), (foreign, base)):
        if missing:
            name = min(missing)
            raise StructureError(
                f"{where} has no tensor {name!r} ({len(missing)} such): the weights belong to "
                f"another architecture than {base}, or are expanded. Name the architecture they "
                "were pruned from, or contract(model) first."
            )


def check_slimmer(
    base: str,
    dense: nn.Module,
    shapes: Mapping[str, tuple[int | None, ...]],
    attributes: Mapping[str, Mapping[str, Any]],
    table: Table,
) -> None:
    """Refuse shapes and attributes that are no slimmer form of the dense model's.

    Args:
        base: The architecture's timm name.
        dense: The dense model.
        shapes: Tensor name to slim shape, None for a free axis.
        attributes: Module name to attributes and their values.
        table: Which attributes may be set.

    Raises:
        StructureError: If anything is foreign, larger, or not in the table.
    """
    tensors = dict(tensors_of(dense))
    for name, shape in shapes.items():
        if name not in tensors:
            raise StructureError(
                f"{base} has no tensor {name!r}: the structure belongs to another "
                "architecture." + close_names(name, tensors)
            )
        full = tuple(tensors[name].shape)
        fits = len(shape) == len(full) and all(
            s is None or 1 <= s <= f for s, f in zip(shape, full, strict=True)
        )
        if not fits:
            raise StructureError(
                f"{name} has shape {list(shape)}, but {base}'s own is {list(full)} and "
                "pruning only makes it smaller; name the architecture it was pruned from."
            )
    for name, values in attributes.items():
        _check_attributes(base, dense, name, values, table)


def _check_attributes(
    base: str, dense: nn.Module, name: str, values: Mapping[str, Any], table: Table
) -> None:
    modules = dict(dense.named_modules())
    if name not in modules:
        raise StructureError(f"{base} has no module {name!r}." + close_names(name, modules))
    module = modules[name]
    allowed = {a for a in table_row(module, table) if wire.plain(getattr(module, a)) is not None}
    for attribute, value in values.items():
        if attribute not in allowed:
            raise StructureError(
                f"{name}.{attribute}: a structure may not set this attribute of a "
                f"{type(module).__name__}; it may set {sorted(allowed) or 'none'}."
            )
        full = wire.plain(getattr(module, attribute))
        if not _is_slimmer(value, full):
            raise StructureError(
                f"{name}.{attribute} is {value}, but {base}'s own is {full} and pruning only "
                "makes it smaller."
            )


def _is_slimmer(value: Any, full: Any) -> bool:
    if isinstance(full, float):
        return isinstance(value, float)  # any factor that the file may hold
    if isinstance(full, int):
        return isinstance(value, int) and 1 <= value <= full
    return isinstance(value, list) and len(value) == len(full) and 1 <= max(value) <= max(full)


def table_row(module: nn.Module, table: Table) -> dict[str, Any]:
    """Look up what the table says of a module's class and base classes.

    Args:
        module: Any module.
        table: Attributes by class.

    Returns:
        The entries of those attributes that the module has.

    Example:
        >>> table_row(nn.Conv2d(1, 1, 1), {"conv._ConvNd": {"groups": None, "heads": None}})
        {'groups': None}
    """
    row: dict[str, Any] = {}
    for cls in type(module).__mro__:
        row |= table.get(f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}", {})
    return {attribute: entry for attribute, entry in row.items() if hasattr(module, attribute)}


def rules_of(
    model: nn.Module, told: Mapping[str, Mapping[str, Any]], table: Table
) -> dict[str, dict[str, Rule]]:
    """Collect the rules of each module, but for the attributes that a structure tells itself.

    Args:
        model: A timm model.
        told: Module name to attributes that are known.
        table: Attributes by class.

    Returns:
        Module name to attribute to rule.
    """
    found: dict[str, dict[str, Rule]] = {}
    for name, module in model.named_modules():
        for attribute, rule in table_row(module, table).items():
            if rule is not None and attribute not in told.get(name, {}):
                found.setdefault(name, {})[attribute] = rule
    return found


def differing(
    model: nn.Module, other: nn.Module, table: Table, *, ruled: bool
) -> dict[str, dict[str, Any]]:
    """Collect what the model has and the other has not, of the attributes with a rule or without.

    Layers that only one of them has are passed over: a user may add some without weights.

    Args:
        model: A slim model.
        other: Its rebuild.
        table: Attributes by class.
        ruled: Whether to look at those that follow a rule, or at those that do not.

    Returns:
        Module name to attribute to JSON-ready value.
    """
    found: dict[str, dict[str, Any]] = {}
    others = dict(other.named_modules())
    for name, module in model.named_modules():
        theirs = table_row(others.get(name, nn.Identity()), table)
        for attribute, rule in table_row(module, table).items():
            value = wire.plain(getattr(module, attribute))
            known = attribute in theirs and value is not None and (rule is not None) == ruled
            # timm's fused attention does not look at the scale.
            known &= attribute != "scale" or not getattr(module, "fused_attn", False)
            if known and value != wire.plain(getattr(others[name], attribute)):
                found.setdefault(name, {})[attribute] = value
    return found
