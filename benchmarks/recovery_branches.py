"""Branches that are normalised while training and folded at the end, as RepVGG and DBB have them.

They are no parametrization: a batch norm sees what a branch puts out, so every branch runs.
Sources: Ding et al., "RepVGG", CVPR 2021; Ding et al., "Diverse Branch Block", CVPR 2021.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks.recovery_chains import centre_of, in_centre


class NormalisedBranches(nn.Module):
    """``BN(k x k convolution) + BN(1 x 1 convolution)`` in place of one k x k convolution.

    The 1 x 1 branch begins with half of the kernel's centre, and both norms as what changes
    nothing in eval mode; `calibrate` then makes that hold in training mode, too.

    Args:
        conv: An odd kernel of more than 1 x 1, without bias.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        options: Any = {"stride": conv.stride, "groups": conv.groups, "bias": False}
        reach = [d * (size // 2) for d, size in zip(conv.dilation, conv.kernel_size, strict=True)]
        around: Any = tuple(p - r for p, r in zip(conv.padding, reach, strict=True))  # type: ignore[operator]
        point = centre_of(conv.weight.detach()) / 2
        wide = conv.weight.detach() - in_centre(point, conv.weight)
        self.wide = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            padding=conv.padding,
            dilation=conv.dilation,  # type: ignore[arg-type]
            **options,
        )
        self.point = nn.Conv2d(conv.in_channels, conv.out_channels, 1, padding=around, **options)
        self.wide.weight.data.copy_(wide)
        self.point.weight.data.copy_(point)
        self.norms = nn.ModuleList(_unnoticed(conv.out_channels) for _ in range(2))
        self.to(conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Add up the branches."""
        total: Tensor = self.norms[0](self.wide(x)) + self.norms[1](self.point(x))
        return total

    def folded(self) -> nn.Conv2d:
        """Make one convolution of it; the norm that follows can take its bias."""
        wide = fuse_conv_bn_eval(self.wide, self.norms[0].eval())  # type: ignore[type-var]
        point = fuse_conv_bn_eval(self.point, self.norms[1].eval())  # type: ignore[type-var]
        assert wide.bias is not None and point.bias is not None
        wide.weight.data += in_centre(point.weight.data, wide.weight)
        wide.bias.data += point.bias.data
        return wide


def _unnoticed(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    nn.init.constant_(norm.weight, math.sqrt(1 + norm.eps))
    return norm


def branch(model: nn.Module, images: Tensor) -> None:
    """Put normalised branches in the place of every k x k convolution, in place.

    Args:
        model: The slim model; its outputs do not change.
        images: b x c x h x w, what the norms' statistics are taken from.
    """
    for name, conv in list(model.named_modules()):
        if type(conv) is nn.Conv2d and min(conv.kernel_size) > 1 and conv.bias is None:
            model.set_submodule(name, NormalisedBranches(conv))
    calibrate(model, images)


@torch.no_grad()
def calibrate(model: nn.Module, images: Tensor) -> None:
    """Let each norm know its branch's statistics, and undo what it does with them.

    Args:
        model: With branches that nobody notices yet.
        images: b x c x h x w.
    """

    def learn(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        (x,) = inputs
        norm.running_mean.copy_(x.mean((0, 2, 3)))
        norm.running_var.copy_(x.var((0, 2, 3), correction=0))
        norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        norm.bias.copy_(norm.running_mean)

    branches = [each for each in model.modules() if isinstance(each, NormalisedBranches)]
    norms = [norm for each in branches for norm in each.norms]
    hooks = [norm.register_forward_pre_hook(learn) for norm in norms]
    training = model.training
    model.eval()(images)
    model.train(training)
    for hook in hooks:
        hook.remove()


def fold(model: nn.Module) -> nn.Module:
    """Put one convolution in the place of all branches, in place.

    Args:
        model: After training.

    Returns:
        The model itself.
    """
    for name, each in list(model.named_modules()):
        if isinstance(each, NormalisedBranches):
            model.set_submodule(name, each.folded())
    return model
