"""Gradient accumulation: several passes over weights that are composed once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .chain import LinearChain
from .expanded import chain_of, factors_of


@contextmanager
def composed_once(model: nn.Module) -> Iterator[None]:
    """Compose every expanded layer's weight once for all passes within, forward and backward.

    The passes' gradients add up at the composed weights; leaving hands their sums on to the
    factors. So a step over many small batches composes as seldom as a step over a large one:
    clip and step the optimizer outside.

    Args:
        model: Any model; layers that are not expanded, and factors that want no gradient, are as
            ever. Do not change factors within.

    Yields:
        Nothing. After an error within, no factor gets a gradient from these passes.

    Example:
        >>> from timm_linop.expand import expand
        >>> model = expand(nn.Linear(4, 2))
        >>> with composed_once(model):
        ...     for images in torch.randn(8, 2, 4):
        ...         model(images).square().mean().backward()
        >>> [tuple(factor.grad.shape) for factor in factors_of(model)]
        [(12, 4), (2, 12)]
    """
    chains = {m: chain for m in model.modules() if (chain := chain_of(m)) is not None}
    before = [chain.shared_product for chain in chains.values()]
    products = [chain.compose(*factors_of(module)) for module, chain in chains.items()]
    leaves = [product.detach().requires_grad_(product.requires_grad) for product in products]
    try:
        _share(chains.values(), leaves)
        yield
    finally:
        _share(chains.values(), before)
    used = [
        (p, leaf.grad) for p, leaf in zip(products, leaves, strict=True) if leaf.grad is not None
    ]
    torch.autograd.backward([p for p, _ in used], [grad for _, grad in used])


def _share(chains: Iterable[LinearChain], products: Iterable[Tensor | None]) -> None:
    for chain, product in zip(chains, products, strict=True):
        chain.shared_product = product
