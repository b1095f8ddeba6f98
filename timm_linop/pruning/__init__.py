"""Dense to slim: one door, `prune`, over coupled channel groups."""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.models import get_model_input_config
from torch import Tensor, nn

from ..architecture import base_of, model_args_of
from ..errors import LinOPError, PruningError
from ..expand import is_expanded
from ..registry import build
from ..structure import Structure
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

    Example:
        >>> import timm
        >>> slim = prune(timm.create_model("test_resnet", num_classes=10), ratio=0.5)
        >>> slim.fc
        Linear(in_features=48, out_features=10, bias=True)
    """
    _check(model, ratio, round_to)
    slim = copy.deepcopy(model).eval()
    device = next(slim.parameters()).device
    if example is None:
        example = torch.randn(1, *get_model_input_config(slim)["input_size"])
    example = example.to(device)
    try:
        prune_by_magnitude(slim, example, ratio, round_to)
        structure = Structure.of(slim)
        rebuilt = build(structure.base, pruned=slim, rate=0, **model_args_of(model)).to(device)
        _check_same(slim, rebuilt.eval(), example)
    except LinOPError as error:
        raise PruningError(
            f"pruning {base_of(model)} left a model that cannot be rebuilt: {error} "
            "The model is as it was."
        ) from error
    except Exception as error:  # torch-pruning fails in many ways on graphs it cannot follow
        raise PruningError(
            f"{base_of(model)} cannot be pruned: its graph could not be followed "
            f"({type(error).__name__}: {str(error)[:200]}). The model is as it was."
        ) from error
    return rebuilt


def _check(model: Any, ratio: float, round_to: int | None) -> None:
    if not 0 < ratio < 1:
        raise PruningError(
            f"ratio={ratio}: the fraction of channels to remove lies between 0 and 1; 0.5 removes "
            "half of them."
        )
    if round_to is not None and round_to < 1:
        raise PruningError(f"round_to={round_to}: channels come in multiples of 1 or more.")
    if is_expanded(model):
        raise PruningError("the model is expanded; contract(model) it before pruning.")


@torch.no_grad()
def _check_same(slim: nn.Module, rebuilt: nn.Module, example: Tensor) -> None:
    expected, got = slim(example), rebuilt(example)
    if not torch.equal(expected, got):
        off = (expected - got).abs().max().item()
        raise PruningError(f"logits differ by {off:.2g} after the rebuild.")
