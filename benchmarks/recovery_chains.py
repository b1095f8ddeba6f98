"""Ways to expand that the package does not offer: the recovery study asks whether any would pay.

All of them are `LinearChain`s, so they are composed before the convolution runs, begin exactly at
the pruned network and contract back into it. What one step of SGD does to a weight ``W`` with
gradient ``G`` is what tells them apart; for orthogonal outer factors it is, to first order,
``dW = -lr [G + W W^T G + G W^T W]`` (docs/recovery.md).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from timm_linop.architecture import base_of, dense_model, model_args_of
from timm_linop.chain import ConvChain, DenseChain, LinearChain, chain_for
from timm_linop.expanded import expand_layer
from timm_linop.layers import layers_of, reasons_of

RATE = 3
DECAY = 1e-4  # the study's weight decay
Make = Callable[[str, nn.Module, int], LinearChain]


class GainedConvChain(ConvChain):
    """``W = B C A / g^2`` with ``A = g Q_A``, ``B = g Q_B``, and ``g^2 = sigma_max^2 / kappa``.

    A step moves ``W`` by ``-lr [G + (W W^T G + G W^T W) / g^2]``: however large the weight is,
    what is added to plain SGD amplifies a direction by ``kappa`` a side at most.

    Args:
        kappa: That bound; towards 0 the chain is plain SGD.
        options: Those of ConvChain.
    """

    def __init__(self, kappa: float, **options: Any) -> None:
        super().__init__(**options)
        self.kappa, self.gain = kappa, 1.0

    def compose(self, a: Tensor, c: Tensor, b: Tensor) -> Tensor:
        """Contract."""
        return super().compose(a, c, b) / self.gain**2

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Expand."""
        self.gain = _gain(weight, self.kappa)
        a, c, b = super().right_inverse(weight)
        return a * self.gain, c, b * self.gain


class GainedDenseChain(DenseChain):
    """``W = B A / g`` with ``A = g Q_A``: a step moves it by ``-lr [G + W W^T G / g^2]``."""

    def __init__(self, kappa: float, **options: Any) -> None:
        super().__init__(**options)
        self.kappa, self.gain = kappa, 1.0

    def compose(self, a: Tensor, b: Tensor) -> Tensor:
        """Contract."""
        return super().compose(a, b) / self.gain

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Expand."""
        self.gain = _gain(weight, self.kappa)
        a, b = super().right_inverse(weight)
        return a * self.gain, b


def _gain(weight: Tensor, kappa: float) -> float:
    """From the largest singular value of the weight, its outputs or inputs against the rest."""
    outputs = weight.detach().flatten(1)
    inputs = weight.detach().transpose(0, 1).flatten(1)
    largest = max(float(torch.linalg.matrix_norm(each, 2)) for each in (outputs, inputs))
    return largest / math.sqrt(kappa) if largest > 0 else 1.0


class BranchedConvChain(ConvChain):
    """A k x k chain and beside it a 1 x 1 chain that makes half of the kernel's centre.

    An identity branch would not be trained, and is left out.
    """

    def compose(self, *factors: Tensor) -> Tensor:
        """Contract: the sum of both branches."""
        wide, point = super().compose(*factors[:3]), super().compose(*factors[3:])
        return wide + in_centre(point, wide)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Expand."""
        point = centre_of(weight.detach()) / 2
        wide = super().right_inverse(weight.detach() - in_centre(point, weight))
        return *wide, *super().right_inverse(point)

    @staticmethod
    def shape_of(a: Tensor, *others: Tensor) -> tuple[int, ...]:
        """The composed weight's shape."""
        return LinearChain.shape_of(a, *others[:2])


def centre_of(kernel: Tensor) -> Tensor:
    """The centre of an odd kernel, ``n x m x 1 x 1``."""
    height, width = (size // 2 for size in kernel.shape[2:])
    return kernel[:, :, height : height + 1, width : width + 1]


def in_centre(point: Tensor, kernel: Tensor) -> Tensor:
    """Pad a 1 x 1 kernel with zeros to the size of an odd one."""
    height, width = (size // 2 for size in kernel.shape[2:])
    return nn.functional.pad(point, (width, width, height, height))


class RescaledConvChain(ConvChain):
    """A chain whose outer factors are smaller by a factor, and ``C`` larger by its square."""

    def __init__(self, scale: float, **options: Any) -> None:
        super().__init__(**options)
        self.scale = scale

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Expand."""
        a, c, b = super().right_inverse(weight)
        return a * self.scale, c / self.scale**2, b * self.scale


class DecayedConvChain(ConvChain):
    """A chain whose product has the weight decay, as the slim weight would."""

    def compose(self, *factors: Tensor) -> Tensor:
        """Contract."""
        return decayed(super().compose(*factors))


class DecayedDenseChain(DenseChain):
    """Likewise."""

    def compose(self, *factors: Tensor) -> Tensor:
        """Contract."""
        return decayed(super().compose(*factors))


def decayed(weight: Tensor) -> Tensor:
    """Add weight decay to the gradient that comes back to a weight."""
    if weight.requires_grad:
        value = weight.detach()  # the weight itself would be held by its own graph
        weight.register_hook(lambda gradient: gradient + DECAY * value)
    return weight


def _orthogonal(conv: Callable[..., ConvChain], dense: Callable[..., DenseChain]) -> Make:
    """Orthogonal chains of other classes than the package's."""

    def make(name: str, layer: nn.Module, seed: int) -> LinearChain:
        del name
        options: dict[str, Any] = {"rate": RATE, "init": "orthogonal", "seed": seed}
        if isinstance(layer, nn.Linear):
            return dense(**options)
        return conv(groups=cast(nn.Conv2d, layer).groups, **options)

    return make


def gained(kappa: float) -> Make:
    """An orthogonal chain with a gain per layer."""
    return _orthogonal(partial(GainedConvChain, kappa), partial(GainedDenseChain, kappa))


# An orthogonal chain with the weight decay on its product.
decaying = _orthogonal(DecayedConvChain, DecayedDenseChain)


def branched(name: str, layer: nn.Module, seed: int) -> LinearChain:
    """Parallel branches wherever a kernel has a centre to divide."""
    if isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1:
        return BranchedConvChain(RATE, "orthogonal", seed, layer.groups)
    return chain_for(layer, RATE, "orthogonal", seed)


def half_std(name: str, layer: nn.Module, seed: int) -> LinearChain:
    """The paper's init at half the standard deviation."""
    if isinstance(layer, nn.Conv2d):
        options: dict[str, Any] = {"rate": RATE, "init": "normal", "seed": seed}
        return RescaledConvChain(0.5, groups=layer.groups, **options)
    return chain_for(layer, RATE, "normal", seed)


def as_wide_as_dense(model: nn.Module) -> Make:
    """The paper's init with a rate per layer: as much wider as the dense layer is."""
    dense = dict(layers_of(dense_model(base_of(model), **model_args_of(model))))

    def make(name: str, layer: nn.Module, seed: int) -> LinearChain:
        wide, slim = (cast(Tensor, each.weight).shape[0] for each in (dense[name], layer))
        return chain_for(layer, max(1.0, wide / slim), "normal", seed)

    return make


def expand_by(make: Make, model: nn.Module, seed: int) -> None:
    """Expand every layer that can be expanded, in place.

    Args:
        make: Gives the chain of a layer by its name.
        model: The slim model.
        seed: Of the draws, told apart by layer.
    """
    reasons = reasons_of(model)
    for name, layer in list(layers_of(model)):
        if not reasons[name]:
            expand_layer(layer, make(name, layer, seed + zlib.crc32(name.encode())))
