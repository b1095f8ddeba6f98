"""Expand, contract and audit a whole model: the same three verbs for every timm model."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from .chain import chain_for
from .errors import ExpansionError, close_names
from .expanded import chain_of, contract_layer, expand_layer
from .initialise import INITS
from .layers import Audit, layers_of, reasons_of, rows_of
from .patterns import matched


def expand(
    model: nn.Module,
    rate: float = 3,
    init: str = "orthogonal",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    seed: int | None = None,
    compact: bool = False,
) -> nn.Module:
    """Replace each layer's weight by an equivalent chain of linear layers, in place.

    The outputs stay what they were (relative error at most 1e-5 in float32, 1e-12 in float64, where
    the network does not amplify rounding), the modules keep their classes and names; only the
    trainable parameters change: the chain's factors instead of the weight. Create the optimizer
    after this call. Source: Qian et al. 2022, Eq. 1-6.

    Args:
        model: Any model; convolutions and linear layers are expanded, `audit` tells what is not.
        rate: Expansion rate ``r >= 1``; the paper's 3 is the default.
        init: How the outer factors are drawn: ``orthogonal`` (conditioning 1, the default),
            ``normal`` (the paper's; variance 1/fan_in), ``balanced`` (sharing the weight's singular
            values).
        include: Names or patterns (``"blocks.*.conv_pw"``) of the only layers to expand; a module's
            name stands for all layers in it.
        exclude: Names or patterns of layers to leave alone.
        seed: Seed of the draw; None takes one from torch's global generator.
        compact: Square outer factors: with SGD (momentum, Nesterov, weight decay, clipping by the
            norm) the composed weights move exactly as those of the wide chain; composing them takes
            a sixth of its multiply-adds (rate 3, as many inputs as outputs). Other optimizers,
            such as AdamW, tell the two apart.

    Returns:
        ``model`` itself.

    Raises:
        ExpansionError: If the model is expanded already, ``rate`` or ``init`` is out of range, or
            ``include`` names a layer that cannot be expanded (a pattern passes over it).
        UnknownLayerError: If a name in ``include`` or ``exclude`` matches no layer.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))
        >>> x = torch.randn(1, 3, 8, 8)
        >>> y = model(x)
        >>> print(audit(expand(model, rate=3, exclude=["2"])))
        0  Conv2d  8x3x3x3  -> 9x3, 24x9x3x3, 8x24  216 -> 2,163
        2  Conv2d  2x8x1x1  plain  16 -> 16
        1 of 2 layers expanded; weights 232 -> 2,179 numbers
        >>> torch.allclose(model(x), y, atol=1e-5)
        True
    """
    check_settings(rate, init)
    layers = dict(layers_of(model))
    expanded = [name for name, layer in layers.items() if chain_of(layer) is not None]
    if expanded:
        raise ExpansionError(
            f"{type(model).__name__} is expanded already ({len(expanded)} layers, from "
            f"{expanded[0]!r} on); contract(model) first, or keep it as it is."
        )
    _check_named(model, include)
    chosen = _chosen(layers, include, exclude)
    reasons = reasons_of(model)
    if seed is None:
        seed = int(torch.randint(2**31, (), device="cpu"))
    for name in chosen:
        if not reasons[name]:
            layer_seed = seed + zlib.crc32(name.encode())
            expand_layer(layers[name], chain_for(layers[name], rate, init, layer_seed, compact))
    return model


def contract(model: nn.Module) -> nn.Module:
    """Multiply every chain back into its slim weight, in place.

    Args:
        model: An expanded model.

    Returns:
        ``model`` itself, with exactly the slim model's state-dict keys, shapes and classes.

    Raises:
        ExpansionError: If nothing in the model is expanded.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 2))
        >>> list(contract(expand(model)).state_dict())
        ['0.weight', '0.bias']
    """
    layers = [layer for _, layer in layers_of(model) if chain_of(layer) is not None]
    if not layers:
        raise ExpansionError(
            f"{type(model).__name__} holds no expanded layer, so there is nothing to contract; "
            "call expand(model) first."
        )
    for layer in layers:
        contract_layer(layer)
    return model


@torch.no_grad()
def contracted_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict that `contract` would leave, while the model stays expanded.

    Args:
        model: Expanded or not.

    Returns:
        Name to tensor, in no order to rely on; products are new tensors.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 2))
        >>> sorted(contracted_state(expand(model)))
        ['0.bias', '0.weight']
    """
    state = {k: t for k, t in model.state_dict().items() if "parametrizations.weight." not in k}
    for name, module in model.named_modules(remove_duplicate=False):
        if chain_of(module) is not None:
            state[f"{name}.weight" if name else "weight"] = module.weight.detach()
    return state


def audit(model: nn.Module) -> Audit:
    """List every layer with a weight: its chain, its parameters, and why it is left alone.

    A matrix that no layer calls its weight (of an LSTM, a fused ``in_proj_weight``, a position
    table) is listed too: nobody can tell from outside what the model does with it.

    Args:
        model: Expanded or not.

    Returns:
        One `LayerReport` a layer, in the model's order, then one a bare parameter (its ``kind`` is
        ``Parameter``); ``print`` shows a table.

    Example:
        >>> audit(nn.Sequential(nn.Linear(4, 2), nn.ConvTranspose2d(2, 2, 1)))[1].reason
        'ConvTranspose2d is no Conv1d/2d/3d or Linear layer'
    """
    return rows_of(model)


def is_expanded(model: nn.Module) -> bool:
    """Tell whether any layer of the model is a chain.

    Example:
        >>> is_expanded(expand(nn.Linear(4, 2)))
        True
    """
    return any(chain_of(module) is not None for module in model.modules())


def check_settings(rate: float, init: str) -> None:
    """Refuse an expansion rate or init that has no meaning, before any work.

    Args:
        rate: Expansion rate.
        init: Name of the draw.

    Raises:
        ExpansionError: If ``rate`` is not a finite number of at least 1, or ``init`` is unknown.

    Example:
        >>> check_settings(0.5, "orthogonal")
        Traceback (most recent call last):
        ...
        timm_linop.errors.ExpansionError: rate=0.5: an expansion rate is a number >= 1, ...
    """
    number = isinstance(rate, int | float) and not isinstance(rate, bool)
    if not number or not math.isfinite(rate) or rate < 1:
        raise ExpansionError(
            f"rate={rate!r}: an expansion rate is a number >= 1, or a chain could not hold every "
            "weight; use 3 (the paper's), or rate=0 in timm.create_model and train.py for the slim "
            "model itself."
        )
    if init not in INITS:
        raise ExpansionError(
            f"init={init!r} is no way to draw factors; choose one of {', '.join(INITS)}."
            + close_names(str(init), INITS)
        )


def _check_named(model: nn.Module, include: Sequence[str] | None) -> None:
    """Refuse a layer asked for by its own name that has no chain; patterns pass over such."""
    named = {include} if isinstance(include, str) else set(include or ())
    for row in rows_of(model) if named else ():
        if row.name in named and row.reason:
            raise ExpansionError(
                f"include=[{row.name!r}] cannot be expanded: {row.reason}. Leave it out of "
                "include; timm_linop.audit(model) gives every layer's reason."
            )


def _chosen(
    layers: Iterable[str], include: Sequence[str] | None, exclude: Sequence[str] | None
) -> list[str]:
    names = list(layers)
    included = matched(names, include, "include") if include is not None else set(names)
    excluded = matched(names, exclude, "exclude") if exclude is not None else set()
    return [name for name in names if name in included and name not in excluded]
