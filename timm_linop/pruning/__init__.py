"""Dense to slim: one door, `prune`, over coupled channel groups."""

from __future__ import annotations

import copy
from numbers import Integral, Real
from typing import Any

import torch
from timm.models import get_model_input_config
from torch import Tensor, nn

from ..architecture import base_of, model_args_of
from ..errors import LinOPError, PruningError
from ..expand import is_expanded
from ..registry import build
from .magnitude import prune_by_magnitude

__all__ = ["prune"]


def prune(
    model: nn.Module,
    example: Tensor | None = None,
    *,
    ratio: float,
    round_to: int | None = 8,
) -> nn.Module:
    """Remove channels from a timm model, and prove that the result can be rebuilt by name.

    Args:
        model: A dense timm model; it is left as it is.
        example: A batch of images to trace with, ``b x c x h x w``; None makes one of the model's
            own input size.
        ratio: Fraction of each layer's channels to remove, between 0 and 1.
        round_to: Keep a multiple of this many channels in each layer, which hardware likes; None
            keeps any number.

    Returns:
        A slim copy of the model, in eval mode. The classifier keeps its outputs.

    Raises:
        PruningError: If ``ratio`` is out of range, or the channels cannot be removed safely.
        StructureError: If the model was not made by timm.

    Example:
        >>> import timm
        >>> slim = prune(timm.create_model("test_resnet", num_classes=10), ratio=0.5)
        >>> slim.fc
        Linear(in_features=48, out_features=10, bias=True)
    """
    base = _check(model, ratio, round_to)
    slim = copy.deepcopy(model).eval()
    weight = next(slim.parameters())
    if example is None:
        example = torch.randn(1, *get_model_input_config(slim)["input_size"])
    if example.numel() == 0:
        raise PruningError(
            f"example holds no image ({list(example.shape)}), so nothing could be compared; pass a "
            "batch of at least one, or None."
        )
    example = example.to(weight)
    try:
        prune_by_magnitude(slim, example, ratio, round_to)
        rebuilt = build(base, pruned=slim, rate=0, **model_args_of(model)).to(weight)
        rebuilt.load_state_dict(slim.state_dict())  # build goes through float32
        _check_same(slim, rebuilt.eval(), example)
        _check_smaller(model, rebuilt, round_to)
    except LinOPError as error:
        raise PruningError(
            f"pruning {base} at ratio={ratio} gives no usable slim model: {error} "
            "The model is as it was."
        ) from error
    except Exception as error:  # torch-pruning fails in many ways on graphs it cannot follow
        raise PruningError(
            f"{base} cannot be pruned: its graph could not be followed "
            f"({type(error).__name__}: {str(error)[:200]}). The model is as it was."
        ) from error
    return rebuilt


def _check(model: Any, ratio: float, round_to: int | None) -> str:
    if not isinstance(ratio, Real) or not 0 < ratio < 1:
        raise PruningError(
            f"ratio={ratio!r}: the fraction of channels to remove lies between 0 and 1; 0.5 "
            "removes half of them."
        )
    whole = isinstance(round_to, Integral) and not isinstance(round_to, bool)
    if round_to is not None and (not whole or round_to < 1):
        raise PruningError(
            f"round_to={round_to!r}: channels come in whole multiples of 1 or more; 8 suits most "
            "hardware, None keeps any number."
        )
    if is_expanded(model):
        raise PruningError("the model is expanded; contract(model) it before pruning.")
    return base_of(model)


@torch.no_grad()
def _check_same(slim: nn.Module, rebuilt: nn.Module, example: Tensor) -> None:
    expected, got = slim(example), rebuilt(example)
    if not torch.equal(expected, got):
        off = (expected - got).abs().max().item()
        raise PruningError(f"logits differ by {off:.2g} after the rebuild.")


def _check_smaller(model: nn.Module, slim: nn.Module, round_to: int | None) -> None:
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, slim))
    if after >= before:
        raise PruningError(
            f"nothing was removed; take a higher ratio or a smaller round_to (now {round_to})."
        )
