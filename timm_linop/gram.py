"""Gram matrices of activations: which images of a batch look alike to a layer (Eq. 8-10)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_NOTHING = 1e-12  # a norm below this is that of an image without activations
_PIECE = 8192  # numbers of a row, where rows are long
_SAFE = 1e-18, 1e30  # a largest Gram entry within leaves room for the smaller ones in float32


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
        if q.device.type == "cpu" and not torch.compiler.is_compiling():
            grams: Tensor = _Gram.apply(q)
            if _SAFE[0] < grams.detach().diagonal(dim1=1, dim2=2).amax().item() < _SAFE[1]:
                return grams
        # A scaled copy costs more than the Gram matrix and is rarely needed; but to see that it is
        # not, an accelerator would have to be waited for, or a compiled graph to be left. One scale
        # for all rows leaves G as it is.
        return _Gram.apply(q / _at_least_tiny(q.detach().abs().amax()))


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
    """``Q Q^T``, whose gradient ``(dG + dG^T) Q`` reads ``Q`` once, not twice."""

    @staticmethod
    def forward(q: Tensor) -> Tensor:
        return _inner_products(q)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (q,) = ctx.saved_tensors
        return (grad + grad.mT) @ q


def _inner_products(q: Float[Tensor, "parts b d"]) -> Float[Tensor, "parts b b"]:
    """``Q Q^T``; long rows in pieces, which cores share better than one long sum."""
    if q.shape[2] < 2 * _PIECE:
        return q @ q.mT
    cut = q.shape[2] // _PIECE * _PIECE
    pieces = (rows[:, :cut].unflatten(1, (-1, _PIECE)).transpose(0, 1) for rows in q)
    rest = q[..., cut:]
    return torch.stack([(p @ p.mT).sum(0) for p in pieces]) + rest @ rest.mT


def _at_least_tiny(peaks: Tensor) -> Tensor:
    return peaks.clamp_min(torch.finfo(peaks.dtype).tiny)
