"""A timm model of which every part shows in its outputs, its images, and runs of it.

A fresh model would make a comparison blind: its biases are zero, its layer scales 1e-6, its
residual gains and heads zero, its batch statistics neutral. `lively` therefore draws every bias and
running mean from N(0, 0.1), every other vector (gains, layer scales, temperatures) and running
variance from U(0.5, 1.5), and every matrix that is all zeros from N(0, 1/fan_in).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from timm_linop.expanded import chain_of, factors_of

SIZES = (64, 96, 128, 160, 192, 224, 256)
LARGEST = 512  # attention over two images of 1024 pixels takes more than 20 GB to train


def build(name: str) -> nn.Module:
    """Build a timm model; one of a fixed image size above `LARGEST` is built for that size.

    Args:
        name: A timm architecture.
    """
    model: Any = timm.create_model(name)
    cfg = model.pretrained_cfg
    if cfg.get("fixed_input_size") and cfg["input_size"][-1] > LARGEST:
        model = timm.create_model(name, img_size=LARGEST)
    return model


def lively(model: nn.Module) -> nn.Module:
    """Give every weight and statistic a say in the outputs; the module's docstring tells how.

    Args:
        model: A fresh model, changed in place.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            vector = parameter.numel() == max(parameter.shape, default=1)
            if name.endswith("bias") and vector:
                parameter.normal_(0, 0.1)
            elif vector:
                parameter.uniform_(0.5, 1.5)
            elif not parameter.any():
                parameter.normal_(0, parameter[0].numel() ** -0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model


def smallest_images(model: nn.Module) -> Tensor:
    """Draw two images of the smallest size the model takes.

    Below 64 pixels batch statistics would be over one or two numbers. Models of a fixed size get
    that size.

    Args:
        model: A timm model.
    """
    cfg: Any = model.pretrained_cfg
    channels, size = cfg["input_size"][0], min(cfg["input_size"][-1], LARGEST)
    smaller = [] if cfg.get("fixed_input_size") else [s for s in SIZES if s < size]
    for side in smaller:
        images = torch.randn(2, channels, side, side)
        try:
            outputs_of(model.eval(), images)
        except (RuntimeError, AssertionError, ValueError, IndexError):
            continue  # not a multiple of a window or patch, or smaller than the network reduces
        return images
    return torch.randn(2, channels, size, size)


def relative_error(expected: list[Tensor], found: list[Tensor]) -> float:
    """Return the largest ``max|a-b| / max|a|`` over a model's outputs.

    Raises:
        ValueError: If an output says nothing: all zeros, NaN or infinite.
    """
    errors = []
    for a, b in zip(expected, found, strict=True):
        largest = a.abs().max()
        if not largest.isfinite() or largest == 0:
            raise ValueError(f"an output of the dense model is {largest} at most")
        errors.append(((a - b).abs().max() / largest).item())
    return max(errors)


def rounded(model: nn.Module) -> nn.Module:
    """Move every parameter by about one rounding of float32, relatively."""
    eps = torch.finfo(torch.float32).eps
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + eps * torch.randn_like(parameter))
    return model


def training_step(model: nn.Module, images: Tensor, seed: int) -> tuple[list[Tensor], set[str]]:
    """Run one forward and backward in train mode; the model is left as it was.

    Returns:
        The outputs, and the names of the layers' weights that a gradient reached: finite
        everywhere, and not all zeros. A chain's weight is reached where every factor is.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    reached = set()

    def note(name: str) -> None:
        parameter: Any = model.get_parameter(name)
        if parameter.grad.isfinite().all() and parameter.grad.any():
            reached.add(name)
        parameter.grad = None  # the gradients of a large model would not fit beside it

    hooks = [
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: note(name))
        for name, parameter in model.named_parameters()
    ]
    torch.manual_seed(seed)  # dropout and stochastic depth draw the same numbers both times
    outputs = _floating(model.train()(images))
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    for hook in hooks:
        hook.remove()
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    return [output.detach() for output in outputs], reached | set(_whole_chains(model, reached))


def _whole_chains(model: nn.Module, reached: set[str]) -> Iterator[str]:
    for name, layer in model.named_modules():
        if chain_of(layer) is not None:
            factors = range(len(factors_of(layer)))
            if all(f"{name}.parametrizations.weight.original{i}" in reached for i in factors):
                yield f"{name}.weight"


def outputs_of(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Collect a model's floating-point outputs, whatever they are nested in."""
    with torch.no_grad():
        return _floating(model(images))


def _floating(outputs: object) -> list[Tensor]:
    leaves = tree_leaves(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
