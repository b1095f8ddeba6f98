"""The mask check: a slim model must compute what the dense one does with the channels masked."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LinOPError
from .cut import Cut, Kept, cut_tensors, kept_by

_CONV = nn.modules.conv._ConvNd
_BATCH_NORM = nn.modules.batchnorm._NormBase
# In float64 a right cut differs by about 1e-15, a wrong one by 1e-3 and more.
TOLERANCE = 1e-9


class MaskCheck:
    """Compares slim models with masked dense ones, on numbers that hide nothing.

    The numbers are drawn anew: a fresh or trained network may have scales of zero, and behind one
    of those any channel could be missing unseen. What is proved is which channels belong together,
    and that holds for every weight.

    Args:
        model: The dense model.
        example: A batch of images, ``b x c x h x w``.
        settle: Cuts a copy of the model to given shapes and makes its modules agree.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        settle: Callable[[nn.Module, dict[str, tuple[int, ...]]], None],
    ) -> None:
        self.dense = with_lively_numbers(copy.deepcopy(model).cpu().double().eval())
        self.example = example.cpu().double()
        self.settle = settle

    def passes(self, cuts: Sequence[Cut]) -> bool:
        """Tell whether the slim model that the cuts make computes what the masked one does."""
        return self.error(cuts) < TOLERANCE

    @torch.no_grad()
    def error(self, cuts: Sequence[Cut]) -> float:
        """Relative difference of the two outputs; infinite where the slim model cannot run."""
        kept = kept_by(cuts, self.dense)
        slim = copy.deepcopy(self.dense)
        try:
            self.settle(slim, {name: tuple(map(len, axes)) for name, axes in kept.items()})
            _load(slim, cut_tensors(self.dense, kept))
            got = first_tensor(slim(self.example))
            expected = first_tensor(masked(self.dense, slim, kept)(self.example))
        except (LinOPError, RuntimeError, ValueError, IndexError, AttributeError, TypeError):
            return math.inf  # views, splits and norms fail in their own ways on wrong widths
        if got.shape != expected.shape:
            return math.inf
        error = ((got - expected).abs().max() / expected.abs().max()).item()
        return error if math.isfinite(error) else math.inf


def first_tensor(output: Any) -> Tensor:
    """A model with several heads returns several tensors."""
    return output if isinstance(output, Tensor) else first_tensor(output[0])


def _load(model: nn.Module, state: dict[str, Tensor]) -> None:
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensor.copy_(state[name])


@torch.no_grad()
def with_lively_numbers(model: nn.Module) -> nn.Module:
    """Draw every number of a float64 model anew, so that no channel is silent or saturated.

    Args:
        model: Changed in place.

    Returns:
        ``model`` itself.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)

    for module in model.modules():
        layer = isinstance(module, nn.Linear | _CONV)
        for name, tensor in module._parameters.items():
            if tensor is None:
                continue
            if layer and tensor.ndim > 1:
                tensor.copy_(normal(tensor) * math.prod(tensor.shape[1:]) ** -0.5)
            elif tensor.ndim <= 1 and name != "bias":
                tensor.copy_(1 + normal(tensor) / 4)  # scales of norms and layers
            else:
                tensor.copy_(normal(tensor) / 5)
        statistics: Any = module
        if isinstance(module, _BATCH_NORM) and module.running_mean is not None:
            statistics.running_mean.copy_(normal(statistics.running_mean) / 10)
            statistics.running_var.copy_(0.5 + normal(statistics.running_var).abs())
    return model


def masked(dense: nn.Module, slim: nn.Module, kept: Kept) -> nn.Module:
    """Copy a dense model with all but the kept channels silenced.

    Args:
        dense: The dense model.
        slim: The slim one, which lends the layers that count their channels (norms).
        kept: What stays of each tensor.

    Returns:
        A model of the dense shapes: what was removed is zero, and norms over channels see the kept
        ones only.
    """
    model = copy.deepcopy(dense)
    narrow = dict(slim.named_modules())
    for name in dict.fromkeys(tensor.rpartition(".")[0] for tensor in kept):
        module = model.get_submodule(name)
        if _counts_channels(module):
            _replace(model, name, _Narrow(module, narrow[name], kept, name))
        else:
            _silence(module, name, kept)
    for name, module in model.named_modules():
        if isinstance(getattr(module, "scale", None), float) and name in narrow:
            module.scale = narrow[name].scale  # of the slim head's width
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # the fused one takes the scale from the dense width
    return model


def _counts_channels(module: nn.Module) -> bool:
    """Norms over channels, and convolutions that standardise their weight over the inputs."""
    if isinstance(module, _CONV):
        return "Std" in type(module).__name__
    norm = "Norm" in type(module).__name__ and isinstance(getattr(module, "weight", None), Tensor)
    return norm and not isinstance(module, _BATCH_NORM)


def _silence(module: nn.Module, name: str, kept: Kept) -> None:
    for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
        positions = kept.get(f"{name}.{key}" if name else key)
        if tensor is not None and positions is not None:
            mask = torch.zeros_like(tensor)
            mask[torch.meshgrid(*positions, indexing="ij")] = 1
            tensor.data = tensor.data * mask


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, key = name.rpartition(".")
    setattr(model.get_submodule(parent), key, module)


class _Narrow(nn.Module):
    """A slim layer in a dense model: it is given the kept channels, and the others become zero."""

    def __init__(self, dense: Any, slim: Any, kept: Kept, name: str) -> None:
        super().__init__()
        self.slim = slim
        axes = kept[f"{name}.weight"]
        self.outputs, self.width = axes[0], dense.weight.shape[0]
        self.inputs, self.input_width = self.outputs, self.width
        self.axis = 1
        if isinstance(dense, _CONV):
            self.input_width = dense.in_channels
            if slim.groups == dense.groups:
                starts = torch.arange(slim.groups)[:, None] * dense.weight.shape[1]
                self.inputs = (axes[1] + starts).flatten()
        elif not (isinstance(dense, nn.GroupNorm) or "2d" in type(dense).__name__):
            self.axis = getattr(dense, "channel_dim", -1)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        axis = self.axis % x.ndim
        y = self.slim(x.index_select(axis, self.inputs), *args, **kwargs)
        wide = y.new_zeros(*y.shape[:axis], self.width, *y.shape[axis + 1 :])
        return wide.index_copy(axis, self.outputs, y)
