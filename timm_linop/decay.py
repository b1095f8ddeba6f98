"""Which parameters have weight decay, and how fast each layer learns."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from .expanded import chain_of, factors_of, slim_shape
from .recipe import OptimConfig


def parameter_groups(model: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """Divide a model's parameters by weight decay and, with ``layer_decay``, by depth.

    timm's own division: biases, norms and what the model names in ``no_weight_decay()`` have no
    weight decay. A factor counts as the weight it stands for.

    Args:
        model: Expanded or not.
        optim: Its weight_decay, chain_decay and layer_decay are read.

    Returns:
        One group a combination, for an optimiser; each parameter is in one of them.

    Example:
        >>> from timm_linop.expand import expand
        >>> decay = OptimConfig(weight_decay=0.1, chain_decay="none")
        >>> [group["weight_decay"] for group in parameter_groups(expand(nn.Linear(4, 2)), decay)]
        [0.0]
    """
    chains = dict(_chains(model))
    exempt = {_slim_name(name) for name in getattr(model, "no_weight_decay", set)()}
    exempt |= set(chains) if optim.chain_decay == "none" else set()
    settings = {"weight_decay": optim.weight_decay, "no_weight_decay_list": exempt}
    stand_ins = {name: _stand_in(chain) for name, chain in chains.items()}
    hidden = {id(factor) for chain in chains.values() for factor in factors_of(chain)}
    slim = _seen_slim(model, stand_ins, hidden)
    groups: list[dict[str, Any]]
    if optim.layer_decay is None:
        groups = param_groups_weight_decay(slim, **settings)
    else:
        groups = param_groups_layer_decay(slim, layer_decay=optim.layer_decay, **settings)
    factors = {id(stand_ins[name]): factors_of(chain) for name, chain in chains.items()}
    for group in groups:
        own = [factors.get(id(parameter), (parameter,)) for parameter in group["params"]]
        group["params"] = [p for several in own for p in several if p.requires_grad]
    return groups


# The parts of a timm model that its grouping reads.
_READ = ("group_matcher", "pretrained_cfg")


def _chains(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Expanded layers by the slim name of their weight."""
    for name, module in model.named_modules():
        if chain_of(module) is not None:
            yield f"{name}.weight" if name else "weight", module


def _stand_in(chain: nn.Module) -> nn.Parameter:
    """A weight of the slim shape, without numbers."""
    trained = any(factor.requires_grad for factor in factors_of(chain))
    return nn.Parameter(torch.empty(slim_shape(chain), device="meta"), requires_grad=trained)


def _seen_slim(
    model: nn.Module, stand_ins: Mapping[str, nn.Parameter], hidden: Container[int]
) -> SimpleNamespace:
    """What timm reads of a model for groups, under the names and in the order of the slim one.

    timm would nearly do with the expanded model. But where a model has no ``group_matcher``, it
    takes twelve parameters a layer, and factors are more than weights.
    """
    named = {}
    for prefix, module in model.named_modules():
        start = f"{prefix}." if prefix else ""
        if f"{start}weight" in stand_ins:
            named[f"{start}weight"] = stand_ins[f"{start}weight"]
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in hidden:
                named[f"{start}{name}"] = parameter
    own = {key: getattr(model, key) for key in _READ if hasattr(model, key)}
    first = {id(parameter): name for name, parameter in reversed(named.items())}  # if shared
    kept = [(name, p) for name, p in named.items() if first[id(p)] == name]
    return SimpleNamespace(named_parameters=lambda: iter(kept), **own)


def _slim_name(name: str) -> str:
    """What a factor's weight is called; models that list their names list those of factors."""
    return re.sub(r"parametrizations\.weight\.original\d+$", "weight", name)
