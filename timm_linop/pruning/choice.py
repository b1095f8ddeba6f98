"""Which units go: the lowest scores of each group, or of all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from ..channels.coupled import ChannelGroup
from ..channels.groups import least
from ..errors import PruningError
from ..recipe import PruneConfig
from .amount import counts, first_within
from .ranking import ranking
from .subject import Choice, Removed, Subject


def by_scores(subject: Subject, scores: Mapping[str, Tensor], config: PruneConfig) -> Choice:
    """Choose by given scores, the lowest first.

    Args:
        subject: What is pruned; asked for costs where there is a target.
        scores: Of each group's units.
        config: Its amount, scope, floor and round_to are read.

    Returns:
        What takes groups to the units that are to go.
    """

    def locally(groups: Sequence[ChannelGroup]) -> Removed:
        return lowest(groups, scores, wanted(subject, groups, scores, config))

    def globally(groups: Sequence[ChannelGroup]) -> Removed:
        order = ranking({group.layer: scores[group.layer] for group in groups}, config.floor)

        def first(count: int) -> Removed:
            return _rounded(groups, order[:count], config.round_to)

        if config.target_params is None and config.target_macs is None:
            return first(_share(groups, len(order), config))
        return first(first_within(config, len(order), lambda stage: subject.cost(first(stage))))

    return globally if config.is_global else locally


def lowest(
    groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor], kept: Mapping[str, int]
) -> Removed:
    """Take the units of the lowest scores of each group, until so many are kept."""
    return {g.layer: least(scores[g.layer], g.size - kept[g.layer]) for g in groups}


def wanted(
    subject: Subject,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    config: PruneConfig,
) -> dict[str, int]:
    """Count the units that each group keeps where scores are compared within it."""
    return counts(groups, config, lambda kept: subject.cost(lowest(groups, scores, kept)))


def _share(groups: Sequence[ChannelGroup], most: int, config: PruneConfig) -> int:
    """Units that are to go of all that there are."""
    ratio, in_all = config.ratio or 0.5, sum(group.size for group in groups)
    count = round(ratio * in_all)
    if count > most:
        raise PruningError(
            f"ratio={ratio:g} of {in_all:,} channels is more than can go: with floor="
            f"{config.floor:g} that are {most:,}. Remove fewer, or lower the floor."
        )
    return count


def _rounded(
    groups: Sequence[ChannelGroup], gone: Sequence[tuple[str, int]], round_to: int
) -> Removed:
    """Give back the units that went last, where their group would keep no multiple."""
    removed = {}
    for group in groups:
        step = round_to // math.gcd(round_to, group.parts)
        units = [unit for layer, unit in gone if layer == group.layer]
        kept = min(math.ceil((group.size - len(units)) / step) * step, group.size)
        removed[group.layer] = sorted(units[: group.size - kept])
    return removed
