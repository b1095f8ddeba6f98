"""Pruning in steps: what is left is scored again before more of it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch_pruning as tp
from torch import Tensor, nn

from ..channels.coupled import ChannelGroup
from ..recipe import PruneConfig
from .choice import wanted
from .subject import Choice, Removed, Subject, scored_groups


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
        last = wanted(subject, groups, subject.scores, config)
        left = {group.layer: torch.arange(group.size) for group in groups}
        scores = dict(subject.scores)
        for step in range(1, config.iterative_steps + 1):
            for group in groups:
                gone = (group.size - last[group.layer]) * step // config.iterative_steps
                more = gone - (group.size - len(left[group.layer]))
                order = scores[group.layer].argsort(stable=True)
                left[group.layer] = left[group.layer][order[more:].sort().values]
            if step < config.iterative_steps:
                slim = subject.slim(_removed(groups, left), subject.model)
                scores |= scored_groups(slim, subject.example, importance).scores
        return _removed(groups, left)

    return choose


def _removed(groups: Sequence[ChannelGroup], left: dict[str, Tensor]) -> Removed:
    return {g.layer: sorted({*range(g.size)} - {*left[g.layer].tolist()}) for g in groups}
