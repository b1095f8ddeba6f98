"""Pruning in steps: what is left is scored again before more of it goes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch_pruning as tp
from torch import Tensor, nn

from ..channels.coupled import ChannelGroup
from ..channels.groups import find_groups, least
from ..recipe import PruneConfig
from .amount import counts
from .subject import Choice, Removed, Subject


def step_by_step(
    subject: Subject,
    importance: Callable[[nn.Module], tp.importance.Importance],
    config: PruneConfig,
) -> Choice:
    """Choose the lowest scores of each group in equal steps, with new scores in between.

    A channel's score counts the inputs of the layers behind it, so it changes as those shrink.

    Args:
        subject: What is pruned.
        importance: Scores a copy of a model.
        config: Its amount, iterative_steps and round_to are read.

    Returns:
        What takes groups to the units that are to go.
    """

    def choose(groups: Sequence[ChannelGroup]) -> Removed:
        def lowest(kept: dict[str, int]) -> Removed:
            return {g.layer: least(subject.scores[g.layer], g.size - kept[g.layer]) for g in groups}

        last = counts(groups, config, lambda kept: subject.cost(lowest(kept)))
        left = {group.layer: torch.arange(group.size) for group in groups}
        scores = dict(subject.scores)
        for step in range(1, config.iterative_steps + 1):
            for group in groups:
                gone = (group.size - last[group.layer]) * step // config.iterative_steps
                more = gone - (group.size - len(left[group.layer]))
                order = scores[group.layer].argsort(stable=True)
                left[group.layer] = left[group.layer][order[more:].sort().values]
            if step < config.iterative_steps:
                removed = _removed(groups, left)
                scores |= _scores(subject.slim(removed, subject.model), subject.example, importance)
        return _removed(groups, left)

    return choose


def _removed(groups: Sequence[ChannelGroup], left: dict[str, Tensor]) -> Removed:
    return {g.layer: sorted({*range(g.size)} - {*left[g.layer].tolist()}) for g in groups}


def _scores(
    slim: nn.Module,
    example: Tensor,
    importance: Callable[[nn.Module], tp.importance.Importance],
) -> dict[str, Tensor]:
    with torch.enable_grad():
        spoilt = copy.deepcopy(slim).cpu().double().eval().requires_grad_(True)
        return find_groups(spoilt, example.cpu().double(), importance(spoilt)).scores
