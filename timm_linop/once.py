"""Gradient accumulation: several passes over weights that are composed once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .chain import LinearChain
from .errors import ExpansionError
from .expanded import chain_of, factors_of


@contextmanager
def composed_once(model: nn.Module) -> Iterator[None]:
    """Compose every expanded layer's weight once for all passes within, forward and backward.

    The passes' gradients add up at the composed weights; leaving hands their sums on to the
    factors, which have no gradient before. So a step over many small batches composes as seldom as
    a step over a large one. Within it run forward and backward, both; zero the gradients before,
    and clip them, unscale them and step the optimizer after it.

    Args:
        model: Any model; layers that are not expanded, and factors that want no gradient, are as
            ever.

    Yields:
        Nothing. After an error within, factors get no gradient from these passes; what other
        parameters got is still there.

    Raises:
        ExpansionError: If factors changed within, or a backward pass comes after leaving.

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
    factors = [factors_of(module) for module in chains]
    before = [chain.shared_product for chain in chains.values()]
    with torch.enable_grad():
        products = [c.compose(*each) for c, each in zip(chains.values(), factors, strict=True)]
    leaves = [product.detach().requires_grad_(product.requires_grad) for product in products]
    versions = _versions(factors)
    try:
        _share(chains.values(), leaves)
        yield
    finally:
        _share(chains.values(), before)
        for leaf in leaves:
            if leaf.requires_grad:
                leaf.register_hook(_too_late)
    if _versions(factors) != versions:
        raise ExpansionError(
            "factors changed within composed_once, whose weights were composed before; load states "
            "and step the optimizer outside of it."
        )
    used = [
        (p, leaf.grad) for p, leaf in zip(products, leaves, strict=True) if leaf.grad is not None
    ]
    torch.autograd.backward([p for p, _ in used], [grad for _, grad in used])


def _share(chains: Iterable[LinearChain], products: Iterable[Tensor | None]) -> None:
    for chain, product in zip(chains, products, strict=True):
        chain.shared_product = product


def _versions(factors: Iterable[tuple[Tensor, ...]]) -> list[int]:
    return [factor._version for each in factors for factor in each]


def _too_late(_grad: Tensor) -> Tensor:
    raise ExpansionError(
        "a backward pass came after composed_once was left, so no gradient would reach the "
        "factors; call backward within it."
    )
