"""What a channel is worth, by name: the criteria that torch-pruning ships."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

from ..errors import PruningError
from ..recipe.pruning import BY_GRADIENT

Batch = tuple[Tensor, Tensor]

# A criterion is the mean over everything tied to a channel (its filter, its norm's scale, the next
# layers' inputs), divided by the group's mean, so that groups can be compared.
_BY_WEIGHT: dict[str, Callable[[], Any]] = {
    "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
    "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "bn_scale": lambda: tp.importance.BNScaleImportance(),
    "lamp": lambda: tp.importance.LAMPImportance(p=2),
    "fpgm": lambda: tp.importance.FPGMImportance(p=2),
    "random": lambda: tp.importance.RandomImportance(),
}


def importance_of(
    criterion: str, model: nn.Module, images: Sequence[Batch]
) -> tp.importance.Importance:
    """Make a criterion ready to score a model's groups.

    Args:
        criterion: One of `timm_linop.recipe.pruning.CRITERIA`: norms of weights (l1, l2; Li et al.
            2017), BatchNorm scales (bn_scale; Liu et al. 2017), lamp (Lee et al. 2021), distance
            to the other filters (fpgm; He et al. 2019), random, or by the loss of images: first
            order (taylor; Molchanov et al. 2019), or the diagonal of the empirical Fisher matrix
            in place of the Hessian's (hessian; LeCun et al. 1990). torch-pruning's OBD-C is left
            out: it reads convolutions without bias and groups only.
        model: The copy whose groups are scored, in eval mode; it is given gradients.
        images: Batches of ``(images b x c x h x w, labels b)``, for those that ask the loss.

    Raises:
        PruningError: If images are needed and there are none.

    Example:
        >>> type(importance_of("lamp", nn.Linear(2, 2), [])).__name__
        'LAMPImportance'
    """
    if criterion not in BY_GRADIENT:
        return _BY_WEIGHT[criterion]()
    if not images:
        raise PruningError(
            f"criterion={criterion!r} asks what images do to the loss; pass batches= of them."
        )
    first = next(model.parameters())
    images = [(x.to(first), y.to(first.device)) for x, y in images]
    with torch.enable_grad():
        return _taylor(model, images) if criterion == "taylor" else _hessian(model, images)


def _taylor(model: nn.Module, images: Sequence[Batch]) -> Any:
    in_all = sum(len(labels) for _, labels in images)
    model.zero_grad()
    for x, labels in images:
        (F.cross_entropy(model(x), labels, reduction="sum") / in_all).backward()
    return tp.importance.GroupTaylorImportance()


def _hessian(model: nn.Module, images: Sequence[Batch]) -> Any:
    importance = tp.importance.GroupHessianImportance()
    squares: dict[nn.Parameter, Tensor] = {}
    for x, labels in images:
        for image, label in zip(x.split(1), labels.split(1), strict=True):
            model.zero_grad()
            F.cross_entropy(model(image), label).backward()
            for parameter in model.parameters():
                if parameter.grad is not None:
                    square = parameter.grad.square()
                    squares[parameter] = squares.get(parameter, 0) + square
    # torch-pruning 1.6 would keep the last image's gradient only: it looks parameters up by name.
    importance._accu_grad = squares
    importance._counter = dict.fromkeys(squares, sum(len(labels) for _, labels in images))
    return importance
