"""Dense to slim: one door, `prune`, over coupled channel groups."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..architecture import base_of, forget_caches, model_args_of
from ..channels.cut import Cut, cut_tensors, kept_by
from ..channels.groups import describe
from ..channels.masked import MaskCheck, first_tensor
from ..channels.units import passing
from ..errors import LinOPError, PruningError
from ..expand import is_expanded
from ..probing import image_size
from ..registry import build
from ..structure import Structure
from .magnitude import cuts_by_magnitude

__all__ = ["PruningReport", "last_report", "prune"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PruningReport:
    """What `prune` found.

    Attributes:
        groups: Coupled groups of channels that were to lose some.
        left_whole: Layers of those that could not, as the result would not be the masked model's.
        not_followed: Layers whose coupled channels could not be found; they are whole, too.
        mask_error: Relative difference between slim and masked model, in float64.
    """

    groups: int
    left_whole: tuple[str, ...]
    not_followed: tuple[str, ...]
    mask_error: float


_reports: WeakKeyDictionary[nn.Module, PruningReport] = WeakKeyDictionary()


def last_report(slim: nn.Module) -> PruningReport:
    """Tell what `prune` found when it made a slim model.

    Args:
        slim: What it returned.

    Raises:
        PruningError: If `prune` did not make it in this process.
    """
    if slim not in _reports:
        raise PruningError("prune() did not make this model in this process; prune it again.")
    return _reports[slim]


def prune(
    model: nn.Module,
    example: Tensor | None = None,
    *,
    ratio: float,
    round_to: int | None = 8,
    time_limit: float = 300,
) -> nn.Module:
    """Remove channels from a timm model, and prove that nothing else changed.

    Channels that belong together go together, as torch-pruning's dependency graph couples them. The
    result must compute what the dense model does with those channels masked, and must be rebuilt by
    name with the same logits bit for bit. Groups of channels for which that does not hold are left
    whole, and a warning names them.

    Args:
        model: A dense timm model; it is left as it is.
        example: A batch of images to trace with, ``b x c x h x w``; None makes one of the model's
            own input size.
        ratio: Fraction of each layer's channels to remove, between 0 and 1.
        round_to: Keep a multiple of this many channels in each layer, which hardware likes; None
            keeps any number.
        time_limit: Seconds to look for groups that pass; those not tried by then are left whole.

    Returns:
        A slim copy of the model, in eval mode. The classifier keeps its outputs.

    Raises:
        PruningError: If ``ratio`` is out of range, or no channels can be removed safely.
        StructureError: If the model was not made by timm.

    Example:
        >>> import timm
        >>> slim = prune(timm.create_model("test_resnet", num_classes=10), ratio=0.5)
        >>> slim.fc
        Linear(in_features=48, out_features=10, bias=True)
    """
    base = _check(model, ratio, round_to)
    structure = Structure.of(forget_caches(model), base)
    example = _example(model, example)
    try:
        cuts, report = _sound_cuts(model, structure, example, ratio, round_to, time_limit)
        slim = _apply(model, structure, cuts)
        rebuilt = build(base, pruned=slim, rate=0, **model_args_of(model)).to(example)
        rebuilt.load_state_dict(slim.state_dict())  # build goes through float32
        _check_same(slim, rebuilt.eval(), example)
        _reports[rebuilt] = report
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


def _example(model: nn.Module, example: Tensor | None) -> Tensor:
    if example is None:
        example = torch.randn(1, *image_size(model))
    if example.numel() == 0:
        raise PruningError(
            f"example holds no image ({list(example.shape)}), so nothing could be compared; pass a "
            "batch of at least one, or None."
        )
    return example.to(next(model.parameters()))


def _sound_cuts(
    model: nn.Module,
    structure: Structure,
    example: Tensor,
    ratio: float,
    round_to: int | None,
    time_limit: float,
) -> tuple[list[Cut], PruningReport]:
    """Propose cuts, and keep those that pass the mask check together."""
    with torch.enable_grad():  # torch-pruning reads autograd's graph
        spoilt = copy.deepcopy(model).cpu().double().eval().requires_grad_(True)
        cuts, lost = cuts_by_magnitude(spoilt, example.cpu().double(), ratio, round_to)
    if not cuts:
        raise PruningError(
            f"nothing was removed; take a higher ratio or a smaller round_to (now {round_to})."
        )
    check = MaskCheck(model, example, structure.narrow)
    sound = passing(cuts, check.passes, time_limit)
    left = [cut for cut in cuts if cut not in sound]
    if not sound:
        raise PruningError(f"no group of channels passes the mask check ({describe(left)}).")
    if left:
        _log.warning(
            "%d of %d groups of channels of %s are left whole, as the slim model would not compute "
            "what the masked one does: %s",
            len(left),
            len(cuts),
            structure.base,
            describe(left),
        )
    if lost:
        _log.warning(
            "%d groups of channels of %s are left whole, as the graph could not be followed from "
            "these layers: %s",
            len(lost),
            structure.base,
            ", ".join(lost),
        )
    layers = tuple(cut.layer for cut in left)
    return sound, PruningReport(len(cuts), layers, lost, check.error(sound))


def _apply(model: nn.Module, structure: Structure, cuts: list[Cut]) -> nn.Module:
    slim = copy.deepcopy(model).eval()
    kept = kept_by(cuts, model)
    structure.narrow(slim, {name: tuple(map(len, axes)) for name, axes in kept.items()})
    slim.load_state_dict(cut_tensors(model, kept))
    return slim


@torch.no_grad()
def _check_same(slim: nn.Module, rebuilt: nn.Module, example: Tensor) -> None:
    expected, got = first_tensor(slim(example)), first_tensor(rebuilt(example))
    if not torch.equal(expected, got):
        off = (expected - got).abs().max().item()
        raise PruningError(f"logits differ by {off:.2g} after the rebuild.")
