"""CURL's criterion: how far the predictions move when a unit is silenced.

Source: Luo, Wu, "Neural Network Pruning with Residual-Connections and Limited-Data", CVPR 2020,
arXiv 1911.08114, section 3.2.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence, Set

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn import functional as F

from ..channels.coupled import ChannelGroup
from ..errors import PruningError
from .rerun import called_modules, reruns


def kl_scores(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    images: Tensor,
    *,
    batch_size: int = 256,
    done: Mapping[str, Tensor] | None = None,
    after_group: Callable[[str, Tensor], object] | None = None,
    accelerator: Accelerator | None = None,
) -> dict[str, Tensor]:
    """Score each unit by ``1/b sum_images sum_c p~_c (log p~_c - log p_c)``.

    ``p`` are the model's probabilities and ``p~`` those with the unit silenced behind every layer
    and norm that it is tied to: on a residual stream in every block, within an inverted residual
    block behind the expanding and the depthwise convolution. The lower, the less a unit matters.

    A pass computes only what comes behind the group's first layers, so all scores take about::

        sum over groups of (units * images * MACs behind the group + images * MACs of the model)

    Args:
        model: It is left as it is; a copy is scored, in eval mode, in the model's own dtype.
        groups: Coupled groups of its channels.
        images: A fixed batch as the model is evaluated on, ``b x c x h x w``; the paper takes 256
            of the training set. Every process needs the same.
        batch_size: Images that pass through the model at once; fewer take less memory.
        done: Scores that are known, by layer; those groups are not computed again.
        after_group: Called with the layer and the scores of each group that was computed.
        accelerator: Shares the units of each group out between its processes; None scores them all
            here.

    Returns:
        For each group's layer one score a unit, float64 on the CPU, the same on every process.

    Raises:
        PruningError: If there are no images, known scores are of another group, or predictions are
            not finite.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> with torch.no_grad():
        ...     _ = model[2].weight[:, 1].zero_()  # nobody listens to this unit
        >>> group = ChannelGroup("0", 3, {("0.weight", 0): torch.arange(3)})
        >>> kl_scores(model, [group], torch.eye(2))["0"][1].item()
        0.0
    """
    if not len(images) or batch_size < 1:
        raise PruningError(
            f"{len(images)} images in batches of {batch_size} tell nothing of a model's units; "
            "pass at least one image, and take 1 or more at once."
        )
    model, images, called = as_scored(model, images)
    scores: dict[str, Tensor] = {}
    for group in groups:
        if done is not None and group.layer in done:
            scores[group.layer] = _known(done[group.layer], group)
            continue
        mine: Sequence[int] = range(group.size)
        if accelerator is not None:
            mine = mine[accelerator.process_index :: accelerator.num_processes]
        own = _score(model, group, images.split(batch_size), mine, called) / len(images)
        scores[group.layer] = _gathered(own, mine, group.size, accelerator)
        if not scores[group.layer].isfinite().all():
            raise PruningError(
                f"the model's predictions are not finite with units of {group.layer} silenced, so "
                "they cannot be ranked; check its weights and the images."
            )
        if after_group is not None:
            after_group(group.layer, scores[group.layer])
    return scores


def _score(
    model: nn.Module,
    group: ChannelGroup,
    batches: Sequence[Tensor],
    mine: Sequence[int],
    called: Set[nn.Module],
) -> Tensor:
    """Sum the divergences over all images: one number for each of my units."""
    total = torch.zeros(len(mine), dtype=torch.float64)
    for batch in batches:
        with reruns(model, group, batch, called) as (logits, without):
            p = F.log_softmax(logits.double(), dim=-1)  # a score may be as small as 1e-8
            divergences = [_divergence(without(unit), p) for unit in mine]
        if divergences:
            total += torch.stack(divergences).cpu()
    return total


def _divergence(masked: Tensor, log_p: Tensor) -> Tensor:
    """``sum p~ (log p~ - log p)`` over classes and images."""
    masked = F.log_softmax(masked.double(), dim=-1)
    return F.kl_div(log_p, masked, reduction="sum", log_target=True)


def _gathered(
    own: Tensor, mine: Sequence[int], size: int, accelerator: Accelerator | None
) -> Tensor:
    """Put the shares of all processes together."""
    pairs = list(zip(mine, own.tolist(), strict=True))
    if accelerator is not None and accelerator.num_processes > 1:
        pairs = gather_object(pairs)
    together = torch.empty(size, dtype=torch.float64)
    for unit, score in pairs:
        together[unit] = score
    return together


def _known(scores: Tensor, group: ChannelGroup) -> Tensor:
    if scores.shape != (group.size,):
        raise PruningError(
            f"scores of {group.layer} are known for {list(scores.shape)} units, but it has "
            f"{group.size}: they are of another model; score it anew."
        )
    return scores.double().cpu()


class _Pointwise(nn.Conv2d):
    """A 1x1 convolution as the product of matrices that it is, for maps with channels last."""

    def forward(self, maps: Tensor) -> Tensor:
        last = F.linear(maps.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
        return last.permute(0, 3, 1, 2)


def with_quick_convolutions(model: nn.Module) -> nn.Module:
    """Let a model's 1x1 convolutions be products of matrices.

    On maps of few places, where most units of a network are, that is faster on a CPU.

    Args:
        model: Changed in place.

    Returns:
        ``model`` itself.

    Example:
        >>> model = nn.Conv2d(3, 4, 1)
        >>> images = torch.randn(2, 3, 5, 5)
        >>> before = model(images)
        >>> torch.allclose(with_quick_convolutions(model)(images), before, atol=1e-6)
        True
    """
    for module in model.modules():
        if type(module) is nn.Conv2d and _is_pointwise(module):
            module.__class__ = _Pointwise
    return model


def _is_pointwise(layer: nn.Conv2d) -> bool:
    one, none = (1, 1), ((0, 0), "valid")
    return layer.kernel_size == layer.stride == one and layer.padding in none and layer.groups == 1


def as_scored(model: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor, set[nn.Module]]:
    """Make a copy of a model that is quick to run, and lay out its images.

    Channels come last in memory where the model takes images so.

    Args:
        model: It is left as it is.
        images: A batch, ``b x c x h x w``.

    Returns:
        The copy in eval mode, the images where it is and in its dtype, and the modules it calls.

    Example:
        >>> model, images, called = as_scored(nn.Conv2d(3, 4, 1), torch.ones(1, 3, 2, 2))
        >>> len(called)
        1
    """
    model = with_quick_convolutions(copy.deepcopy(model)).eval()
    images = images.to(next(model.parameters()))
    if images.ndim == 4:
        last = images.contiguous(memory_format=torch.channels_last)
        try:
            return model, last, called_modules(model, last[:1])
        except RuntimeError:  # some models view their maps as if channels came first
            pass
    return model, images.contiguous(), called_modules(model, images[:1])
