"""TPP: trainability-preserving pruning (Wang & Fu, ICLR 2023).

A network that loses filters at once can be hard to train on: what stays was learnt together with
what went. TPP marks the filters of smallest weights, then trains on while it takes them apart from
the others and shrinks them. With ``W`` (``N x D``) a layer's filters, one a row, ``K = W W^T`` and
``m_i = 1`` for filters that stay:

    L_gram  = 1/N^2 sum_ij (1 - m_i m_j) K_ij^2
    penalty = lambda_t (1000 sum_layers L_gram + 1/2 ||all that is marked||^2)

where the last norm is over marked filters, their biases and the scale and shift of their norms.
``lambda_t`` grows step by step from 0 to 1. Then all that is marked is set to zero, and the others
go on for a while without it, until it is removed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..channels.coupled import ChannelGroup
from ..errors import CheckpointError, PruningError
from ..recipe import TPPConfig

_REFRESHES = 10_000  # lambda grows by 1e-4 of its top at a time, as in the paper
_ROWS = 200  # of the history, over a whole run


def gram_penalty(weight: Tensor, kept: Tensor) -> Tensor:
    """``L_gram``: how much filters that go have in common with others, and with themselves.

    Its gradient is ``4/N^2 [(1 - m m^T) * K] W``; filters that stay are not pushed apart from each
    other.

    Args:
        weight: One filter a row, ``N x ...``; it is flattened to ``N x D``.
        kept: True for rows that stay, ``N``, boolean.

    Returns:
        A scalar, differentiable. It is 0 where nothing goes, or where all that goes is zero.

    Example:
        >>> weight = torch.tensor([[1.0, 0.0], [2.0, 1.0]])
        >>> gram_penalty(weight, torch.tensor([True, False]))  # (2^2 + 2^2 + 5^2) / 2^2
        tensor(8.2500)
    """
    return _gram_penalty(weight, (~kept).nonzero().flatten(), kept)


def _gram_penalty(weight: Tensor, gone: Tensor, kept: Tensor) -> Tensor:
    """The same from the indices of rows that go, too: a GPU would have to be waited for to tell."""
    rows = weight.flatten(1)
    products = rows.index_select(0, gone) @ rows.T
    # K is symmetric: a pair of one that goes and one that stays is in it twice, and here once.
    return (products.square() * (1 + kept.to(rows.dtype))).sum() / len(rows) ** 2


def marked_units(model: nn.Module, group: ChannelGroup, kept: int) -> list[int]:
    """Mark the units of a group that are to go: those of smallest mean ``|w|``.

    Args:
        model: What the group was found in.
        group: Its units are compared by all filters tied to them, in whichever layers, as one.
        kept: How many units stay.

    Returns:
        The others, in order. Of equal ones those of lowest index go.

    Raises:
        PruningError: If ``kept`` is not between 1 and the group's size, or no filter belongs to it.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> _ = nn.init.constant_(model[0].weight, 1.0)
        >>> group = ChannelGroup("0", 3, {("0.weight", 0): torch.arange(3)})
        >>> marked_units(model, group, kept=1)
        [0, 1]
    """
    if not 1 <= kept <= group.size:
        raise PruningError(
            f"{kept} of {group.size} channels of {group.layer} cannot stay; keep 1 or more of them."
        )
    filters = group.filters(model)
    if not filters:
        raise PruningError(f"{group.layer} has no filters to compare its channels by; leave it.")
    total = torch.zeros(2, group.size + 1, dtype=torch.float64)  # sum of |w|, count of w
    for name, units in filters.items():
        rows = model.get_parameter(name).detach().cpu().double().abs().flatten(1)
        each = torch.stack([rows.sum(1), torch.full((len(rows),), rows.shape[1]).double()])
        total.index_add_(1, units.cpu() % (group.size + 1), each)  # -1, no unit's, to the last
    means = (total[0] / total[1])[:-1]
    return sorted(means.argsort(stable=True)[: group.size - kept].tolist())


@dataclass(frozen=True)
class _Part:
    """A tensor of a layer or norm, indices of its rows that go, and a mask of those that stay."""

    rows: nn.Parameter
    gone: Tensor
    kept: Tensor


class TrainabilityPreserving:
    """TPP as a `Regulariser`: what is marked leaves step by step while the model trains.

    Marks are made once, from the weights as they are.

    Args:
        model: A dense model, on the device that it trains on.
        groups: Coupled channels of it.
        kept: How many units stay, for each group by its layer.
        steps: Steps of the optimiser, all of them.
        settings: How hard and how long it presses.

    Attributes:
        history: Beside ``step``: ``coefficient`` (lambda), ``gram`` (sum of ``L_gram`` over
            layers), ``marked`` and ``kept`` (mean ``|w|`` of the filters that go and stay).

    Raises:
        PruningError: If ``kept`` names other groups, keeps a number that cannot be or everything,
            or there are no steps.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> units = torch.arange(3)
        >>> axes = {("0.weight", 0): units, ("0.bias", 0): units, ("1.weight", 1): units}
        >>> tpp = TrainabilityPreserving(model, [ChannelGroup("0", 3, axes)], {"0": 1}, steps=10)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> for step in range(10):
        ...     optimizer.zero_grad()
        ...     (model(torch.ones(1, 2)).sum() + tpp.penalty()).backward()
        ...     optimizer.step()
        ...     tpp.after_step(step + 1)
        >>> model[0].weight[tpp.removed()["0"]]
        tensor([[0., 0.],
                [0., 0.]], grad_fn=<IndexBackward0>)
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        kept: Mapping[str, int],
        steps: int,
        settings: TPPConfig | None = None,
    ) -> None:
        _check(groups, kept, steps)
        self.settings = settings or TPPConfig()
        self.history: list[dict[str, float]] = []
        self._model, self._groups, self._steps, self._updates = model, tuple(groups), steps, 0
        self._growth = max(1, steps - round(self.settings.tpp_stabilise * steps))
        self._mark({group.layer: marked_units(model, group, kept[group.layer]) for group in groups})

    def coefficient(self, step: int) -> float:
        """``lambda`` of a step, counted from 1.

        It is refreshed 10,000 times while it grows (every 10 of 100,000 steps, as in the paper), or
        at each step where there are fewer.
        """
        refreshes = min(_REFRESHES, self._growth)
        return self.settings.tpp_top * min(1.0, step * refreshes // self._growth / refreshes)

    def penalty(self) -> Tensor:
        """What is added to the next step's loss."""
        if self._updates >= self._growth:  # all that is marked is zero, and so is its gradient
            return torch.zeros((), device=self._parts[0].rows.device, requires_grad=True)
        with torch.autocast(self._parts[0].rows.device.type, enabled=False):
            norms = [part.rows.index_select(0, part.gone).square().sum() for part in self._parts]
            total = self.settings.tpp_gram * self._gram() + torch.stack(norms).sum() / 2
            return self.coefficient(self._updates + 1) * total

    @torch.no_grad()
    def after_step(self, updates: int) -> None:
        """Set to zero what is marked once ``lambda`` is at its top, and note how it stands."""
        self._updates = updates
        if updates >= self._growth:
            for part in self._parts:
                part.rows.index_fill_(0, part.gone, 0)
        if updates % math.ceil(self._steps / _ROWS) == 0 or updates == self._steps:
            self.history.append(self._row())

    @property
    def left(self) -> float:
        """What marked filters had of the others' mean ``|w|`` before they were held at zero."""
        ramp = [row for row in self.history if row["step"] < self._growth]
        return ramp[-1]["marked"] / ramp[-1]["kept"] if ramp else 0.0

    def removed(self) -> dict[str, list[int]]:
        """The marked units of each group, by its layer."""
        return {layer: list(units) for layer, units in self._marked.items()}

    def state_dict(self) -> dict[str, Any]:
        """Marks, steps done and history; plain values."""
        history = [dict(row) for row in self.history]
        return {"updates": self._updates, "marked": self.removed(), "history": history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave; its marks replace the ones made from the weights.

        Raises:
            CheckpointError: If it marks other groups, or other numbers of units.
        """
        marked = {layer: list(units) for layer, units in state["marked"].items()}
        told, own = ({name: len(each[name]) for name in each} for each in (marked, self._marked))
        if told != own:
            raise CheckpointError(
                f"the state of TPP marks {told} channels, and this run {own}; resume with the "
                "model and the pruning ratio that it began with."
            )
        self._updates = int(state["updates"])
        self.history = [dict(row) for row in state["history"]]
        self._mark(marked)

    def _mark(self, marked: dict[str, list[int]]) -> None:
        """Find the rows of all tensors that marked units lie on."""
        self._marked = marked
        self._filters = self._find(ChannelGroup.filters)
        others = self._find(ChannelGroup.biases) + self._find(ChannelGroup.scales)
        self._parts = self._filters + others

    def _find(self, kind: Callable[[ChannelGroup, nn.Module], dict[str, Tensor]]) -> list[_Part]:
        """Tensors of a kind that marked units have rows of.

        Rows of one tensor can belong to several groups, such as queries and values made together.
        """
        masks: dict[str, Tensor] = {}
        for group in self._groups:
            gone = torch.zeros(group.size + 1, dtype=torch.bool)
            gone[self._marked[group.layer]] = True  # the last one stands for -1
            for name, units in kind(group, self._model).items():
                masks[name] = gone[units.cpu()] | masks.get(name, torch.tensor(False))
        found = {self._model.get_parameter(name): mask for name, mask in masks.items()}
        return [
            _Part(rows, mask.nonzero().flatten().to(rows.device), ~mask.to(rows.device))
            for rows, mask in found.items()
            if mask.any()
        ]

    def _gram(self) -> Tensor:
        layers = [_gram_penalty(part.rows, part.gone, part.kept) for part in self._filters]
        return torch.stack(layers).sum()

    def _row(self) -> dict[str, float]:
        marked = torch.cat([part.rows[~part.kept].flatten() for part in self._filters])
        kept = torch.cat([part.rows[part.kept].flatten() for part in self._filters])
        return {
            "step": self._updates,
            "coefficient": self.coefficient(self._updates),
            "gram": self._gram().item(),
            "marked": marked.abs().mean().item(),
            "kept": kept.abs().mean().item(),
        }


def _check(groups: Sequence[ChannelGroup], kept: Mapping[str, int], steps: int) -> None:
    layers = {group.layer for group in groups}
    if layers ^ kept.keys():
        odd = ", ".join(sorted(layers ^ kept.keys()))
        raise PruningError(
            f"TPP needs a number of channels to keep for each of its {len(layers)} groups and no "
            f"other, but these have only one of both: {odd}; give both alike."
        )
    if all(kept[group.layer] == group.size for group in groups):
        raise PruningError("TPP was told to keep every channel; take a higher pruning ratio.")
    if steps < 1:
        raise PruningError(f"TPP prunes while training, but got {steps} steps; give 1 or more.")
