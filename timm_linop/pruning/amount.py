"""How much goes: from a ratio, a target or a file to the units of each group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..bench import Cost
from ..channels.coupled import ChannelGroup
from ..channels.groups import stay
from ..errors import PruningError
from ..patterns import matched
from ..recipe import PruneConfig

# Ratios are searched in steps of this, finer than most layers' channels.
_STEPS = 1000


def counts(
    groups: Sequence[ChannelGroup], config: PruneConfig, cost: Callable[[dict[str, int]], Cost]
) -> dict[str, int]:
    """Count the units that each group keeps, by the same ratio for all or a ratio of its own.

    Args:
        groups: What can go.
        config: Its amount and round_to are read.
        cost: Of a slim model with so many units in each group; asked for targets only.

    Returns:
        Units that stay, by group.

    Raises:
        PruningError: If a target is out of reach, or ratios contradict each other.
        UnknownLayerError: If a ratio is of no layer.

    Example:
        >>> groups = [ChannelGroup("conv1", 16, {}), ChannelGroup("conv2", 64, {})]
        >>> counts(groups, PruneConfig(ratio=0.5), cost=lambda kept: Cost(0, 0))
        {'conv1': 8, 'conv2': 32}
    """

    def at(ratio: float) -> dict[str, int]:
        return {group.layer: stay(group, ratio, config.round_to) for group in groups}

    if config.ratios is not None:
        ratios = _by_group(groups, read_ratios(config.ratios))
        return {
            group.layer: stay(group, ratios.get(group.layer, 0.0), config.round_to)
            for group in groups
        }
    if config.target_params is None and config.target_macs is None:
        return at(config.ratio or 0.5)
    step = first_within(config, _STEPS - 1, lambda step: cost(at(step / _STEPS)))
    return at(step / _STEPS)


def first_within(config: PruneConfig, most: int, cost: Callable[[int], Cost]) -> int:
    """Find how far pruning must go to meet a target.

    Args:
        config: Its target_params or target_macs is read.
        most: The furthest it can go.
        cost: Of the model at each stage from 0 (dense) on, never rising.

    Returns:
        The first stage within the target.

    Raises:
        PruningError: If even the last one is not.

    Example:
        >>> first_within(PruneConfig(target_params=0.3), 10, lambda step: Cost(100 - 10 * step, 0))
        7
    """
    name = "target_params" if config.target_params is not None else "target_macs"
    attribute = {"target_params": "parameters", "target_macs": "macs"}[name]
    dense, least = (getattr(cost(stage), attribute) for stage in (0, most))
    target = getattr(config, name)
    wanted = target * dense if target <= 1 else target
    if dense <= wanted:
        raise PruningError(
            f"{name}={target:g} removes nothing: the dense model has {dense:,} {attribute}. A "
            "number up to 1 is a fraction of that; take a smaller one."
        )
    if least > wanted:
        raise PruningError(
            f"{name}={target:g} is out of reach: the dense model has {dense:,} {attribute}, and "
            f"{least:,} stay when all that can go is gone. Take a larger target, a smaller "
            "--round-to, or a lower --floor where scores are global."
        )
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        if getattr(cost(middle), attribute) <= wanted:
            high = middle
        else:
            low = middle + 1
    return low


def read_ratios(ratios: str | Mapping[str, float]) -> dict[str, float]:
    """Read the ratio of each layer from a YAML file, or check those that are given.

    Raises:
        PruningError: If the file cannot be read, or does not hold ratios.

    Example:
        >>> read_ratios({"layer1.*": 0.5})
        {'layer1.*': 0.5}
    """
    found: Any = ratios
    if isinstance(ratios, str):
        try:
            found = yaml.safe_load(Path(ratios).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise PruningError(f"ratios={ratios!r} cannot be read: {error}") from error
    if not isinstance(found, Mapping) or not found:
        raise PruningError(
            f"ratios={ratios!r} must hold lines of a layer and its ratio, such as 'layer1.*: 0.5'."
        )
    for layer, ratio in found.items():
        if not isinstance(ratio, int | float) or isinstance(ratio, bool) or not 0 <= ratio < 1:
            raise PruningError(f"ratios: {layer}: {ratio!r} is no fraction from 0 to below 1.")
    return dict(found)


def _by_group(groups: Sequence[ChannelGroup], ratios: Mapping[str, float]) -> dict[str, float]:
    """Ratios of groups, each named by any layer whose outputs are its channels."""
    group_of = {layer: group.layer for group in groups for layer in group.layers()}
    found: dict[str, dict[str, float]] = {}
    for pattern, ratio in ratios.items():
        for layer in matched(list(group_of), [pattern], "ratios"):
            found.setdefault(group_of[layer], {})[layer] = ratio
    for layers in found.values():
        if len(set(layers.values())) > 1:
            told = ", ".join(f"{layer}: {ratio:g}" for layer, ratio in layers.items())
            raise PruningError(
                f"ratios: channels of these layers go together, so they need one ratio ({told})."
            )
    return {group: next(iter(layers.values())) for group, layers in found.items()}
