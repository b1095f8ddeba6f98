"""Coupled channels as plain data: which positions of which tensors belong to one channel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .cut import Axis, Cut

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels of a model that stay or go one by one, each with all that is tied to it.

    A unit is the least that can go: one channel, or one in each head, group or part of a split,
    where those must stay equally wide. It takes a filter, its bias and norm, the inputs of every
    layer behind it, and on a residual stream the same of every block.

    Attributes:
        layer: The layer they are outputs of first; it names the group.
        size: Number of units.
        units: For each axis of each tensor they lie on, the unit that each position belongs to;
            -1 belongs to none.
        parts: Channels of that layer that one unit takes: the number of heads, groups or parts.

    Example:
        >>> outputs, inputs = torch.arange(4), torch.arange(4)
        >>> group = ChannelGroup("0", 4, {("0.weight", 0): outputs, ("1.weight", 1): inputs})
        >>> group.cut([1, 3]).removed["1.weight", 1]
        frozenset({1, 3})
    """

    layer: str
    size: int
    units: Mapping[Axis, Tensor]
    parts: int = 1

    def cut(self, gone: Iterable[int]) -> Cut:
        """What leaves the model with some units."""
        wanted = torch.zeros(self.size + 1, dtype=torch.bool)
        wanted[list(gone)] = True  # the last one stands for -1
        removed = {
            axis: frozenset(wanted[units].nonzero().flatten().tolist())
            for axis, units in self.units.items()
        }
        return Cut(
            self.layer, {axis: positions for axis, positions in removed.items() if positions}
        )

    def layers(self) -> list[str]:
        """Names of all modules that give these channels out, norms among them."""
        return list(dict.fromkeys(name.rpartition(".")[0] for name, _ in self._rows()))

    def filters(self, model: nn.Module) -> dict[str, Tensor]:
        """Weights of the convolutions and linear layers whose outputs the channels are.

        Returns:
            Tensor name to the unit of each of its rows (axis 0).
        """
        return {
            name: units
            for name, units in self._rows()
            if name.endswith("weight") and isinstance(_owner(model, name), _LAYERS)
        }

    def biases(self, model: nn.Module) -> dict[str, Tensor]:
        """Biases of those layers: tensor name to the unit of each number."""
        return {
            name: units
            for name, units in self._rows()
            if name.endswith("bias") and isinstance(_owner(model, name), _LAYERS)
        }

    def scales(self, model: nn.Module) -> dict[str, Tensor]:
        """All other parameters of one number a channel: weights and biases of norms, layer scales.

        Returns:
            Tensor name to the unit of each number.
        """
        parameters = dict(model.named_parameters())
        return {
            name: units
            for name, units in self._rows()
            if name in parameters
            and parameters[name].ndim == 1
            and not isinstance(_owner(model, name), _LAYERS)
        }

    def _rows(self) -> list[tuple[str, Tensor]]:
        return [(name, units) for (name, axis), units in self.units.items() if axis == 0]


def _owner(model: nn.Module, name: str) -> Any:
    return model.get_submodule(name.rpartition(".")[0])
