"""A layer whose weight is a `LinearChain`: put in place, looked at, taken away.

The chain is a `torch.nn.utils.parametrize` parametrization: ``right_inverse`` expands the weight
that is there, and whoever reads ``module.weight`` gets the factors' product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .chain import LinearChain


def chain_of(module: nn.Module) -> LinearChain | None:
    """Return the chain a module's weight is made by, or None.

    Example:
        >>> chain_of(nn.Linear(4, 2)) is None
        True
    """
    if not parametrize.is_parametrized(module, "weight"):
        return None
    first = module.parametrizations["weight"][0]  # type: ignore[index]
    return first if isinstance(first, LinearChain) else None


def factors_of(module: nn.Module) -> tuple[Tensor, ...]:
    """Return an expanded module's factors, first layer first: ``(A, C, B)`` or ``(A, B)``.

    Args:
        module: A module that `chain_of` knows.

    Returns:
        The parameters themselves, not copies.

    Example:
        >>> from timm_linop.expand import expand
        >>> [tuple(factor.shape) for factor in factors_of(expand(nn.Linear(4, 2), rate=2))]
        [(8, 4), (2, 8)]
    """
    originals: Any = module.parametrizations["weight"]  # type: ignore[index]
    return tuple(getattr(originals, f"original{i}") for i in range(originals.ntensors))


def slim_shape(module: nn.Module) -> tuple[int, ...]:
    """The shape of an expanded module's weight, without composing it.

    Example:
        >>> from timm_linop.expand import expand
        >>> slim_shape(expand(nn.Conv2d(4, 2, 3)))
        (2, 4, 3, 3)
    """
    chain = chain_of(module)
    assert chain is not None
    return chain.shape_of(*factors_of(module))


def expand_layer(module: nn.Module, chain: LinearChain) -> None:
    """Let ``chain`` make the module's weight, starting from the weight it has.

    Args:
        module: A plain convolution or linear layer.
        chain: Its chain, from `chain_for`.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> from timm_linop.chain import chain_for
        >>> expand_layer(layer, chain_for(layer, rate=2, init="orthogonal", seed=0))
        >>> sorted(name for name, _ in layer.named_parameters())
        ['bias', 'parametrizations.weight.original0', 'parametrizations.weight.original1']
    """
    with torch.inference_mode(False):  # a tensor born in inference mode could never be trained
        # unsafe: torch's check of shapes would compose every weight once more.
        parametrize.register_parametrization(module, "weight", chain, unsafe=True)
    chain.slim_loader = module.register_load_state_dict_pre_hook(_factor_incoming_weight)


def contract_layer(module: Any) -> None:
    """Put the factors' product in the chain's place; the module is as it was before `expand_layer`.

    Args:
        module: An expanded layer.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> from timm_linop.chain import chain_for
        >>> expand_layer(layer, chain_for(layer, rate=2, init="orthogonal", seed=0))
        >>> contract_layer(layer)
        >>> list(layer.state_dict())
        ['weight', 'bias']
    """
    chain = chain_of(module)
    assert chain is not None
    chain.slim_loader.remove()
    trainable = any(factor.requires_grad for factor in factors_of(module))
    chain.eval()  # which composes once and keeps the product for torch's own removal
    with torch.inference_mode(False), torch.no_grad():
        weight = nn.Parameter(module.weight, requires_grad=trainable)
    # torch takes the property off the class, which deep copies share: a class of its own first.
    cls = type(module)
    module.__class__ = type(cls.__name__, cls.__bases__, dict(vars(cls)))
    with torch.no_grad():
        parametrize.remove_parametrizations(module, "weight")
    del module.weight
    module.weight = weight
    # It was appended, but slim state dicts begin with the weight.
    for name in [key for key in module._parameters if key != "weight"]:
        module._parameters[name] = module._parameters.pop(name)


def _factor_incoming_weight(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any
) -> None:
    """Let an expanded layer load a slim checkpoint: factor the weight that comes in."""
    chain = chain_of(module)
    weight = state_dict.get(f"{prefix}weight")
    if chain is None or weight is None or tuple(weight.shape) != slim_shape(module):
        return
    del state_dict[f"{prefix}weight"]
    for i, factor in enumerate(chain.right_inverse(weight)):
        state_dict[f"{prefix}parametrizations.weight.original{i}"] = factor
