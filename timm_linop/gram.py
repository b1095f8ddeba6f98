"""Gram matrices of activations: which images of a batch look alike to a layer (Eq. 8-10)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

_NOTHING = 1e-12  # a norm below this is that of an image without activations
_SAFE = 1e-9, 1e15  # squares of such peaks, summed over an activation, stay within float32


def similarity(activation: Float[Tensor, "b *rest"]) -> Float[Tensor, "b b"]:
    """Row-normalised Gram matrix ``G`` of a batch of activations (Eq. 8-10).

    Args:
        activation: What a layer gave for ``b`` images, of any shape after the first axis.

    Returns:
        ``G``, whose rows have L2 norm 1.

    Example:
        >>> similarity(torch.eye(2))
        tensor([[1., 0.],
                [0., 1.]])
    """
    return rows_to_norm_1(gram(activation[None]))[0]


def gram(activations: Float[Tensor, "parts b *rest"]) -> Float[Tensor, "parts b b"]:
    """Gram matrices ``G~`` of several batches of one size, up to a scale (Eq. 8, 9).

    In float32 or better, outside autocast, and at a scale that fits: the Gram matrix of
    half-precision activations overflows (float16) or loses the loss in its rounding (bfloat16).

    Args:
        activations: What a layer gave for ``parts`` batches of ``b`` images.

    Returns:
        ``G~``, divided by the square of one number where squares would not fit.

    Example:
        >>> gram(torch.ones(4, 32, 8, 7, 7)).shape
        torch.Size([4, 32, 32])
    """
    with torch.autocast(activations.device.type, enabled=False):
        q = activations.to(torch.promote_types(activations.dtype, torch.float32)).flatten(2)
        return _Gram.apply(q, _scale(q.detach()))


def rows_to_norm_1(grams: Float[Tensor, "parts b b"]) -> Float[Tensor, "parts b b"]:
    """Divide every row of Gram matrices by its L2 norm (Eq. 10).

    Example:
        >>> rows_to_norm_1(torch.tensor([[[3.0, 4.0], [4.0, 3.0]]]))
        tensor([[[0.6000, 0.8000],
                 [0.8000, 0.6000]]])
    """
    grams = grams / _at_least_tiny(grams.detach().abs().amax((1, 2), keepdim=True))
    norms = grams.norm(dim=2, keepdim=True)
    # An image that activates nothing has no likeness to move: its row and gradient are zero.
    return grams / norms.where(norms > _NOTHING, torch.inf)


class _Gram(torch.autograd.Function):
    """``Q Q^T`` of ``Q / scale``; its gradient ``(dG + dG^T) Q`` reads ``Q`` once, not twice."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, scale: Tensor | None) -> Tensor:
        ctx.save_for_backward(q, scale)
        scaled = q if scale is None else q / scale
        return scaled @ scaled.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        q, scale = ctx.saved_tensors
        both = grad + grad.mT
        # Divided on either side of the product: the scale's square need not fit into float32.
        return (both @ q if scale is None else (both / scale) @ q / scale), None


def _scale(q: Tensor) -> Tensor | None:
    """Find what brings the largest number to 1; None if the numbers are fine as they are.

    ``G`` does not change with one scale for all rows, so neither does its gradient. A scaled copy
    costs more than the Gram matrix, but to know that none is needed an accelerator would have to
    be waited for.
    """
    lowest, highest = q.aminmax()
    peak = torch.maximum(-lowest, highest)
    if q.device.type == "cpu" and _SAFE[0] < peak.item() < _SAFE[1]:
        return None
    return _at_least_tiny(peak)


def _at_least_tiny(peaks: Tensor) -> Tensor:
    return peaks.clamp_min(torch.finfo(peaks.dtype).tiny)
