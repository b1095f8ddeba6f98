"""A dense model that is to be pruned: its groups of channels, and slim copies, proved."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence

import torch
import torch_pruning as tp
from torch import Tensor, nn

from ..architecture import model_args_of
from ..bench import Cost
from ..channels.coupled import ChannelGroup
from ..channels.cut import Cut, cut_tensors, kept_by
from ..channels.groups import Found, describe, find_groups
from ..channels.masked import MaskCheck, first_tensor
from ..channels.units import passing
from ..errors import PruningError
from ..patterns import matched
from ..registry import build
from ..structure import Structure

_log = logging.getLogger(__name__)

# Units that go, by group.
Removed = Mapping[str, Sequence[int]]
Choice = Callable[[Sequence[ChannelGroup]], Removed]


class Subject:
    """A dense model, seen as groups of channels that can go.

    Args:
        model: A dense timm model; it is left as it is.
        structure: The model's own.
        example: A batch of images to trace with, ``b x c x h x w``.
        importance: Makes, of the copy that is traced, torch-pruning's score of a group's channels.
        keep: Names or patterns of layers that keep all their outputs.

    Attributes:
        groups: What can go; those that turn out not to be cut soundly are taken away.
        scores: Of each group's units, by its layer.
        left_whole: Layers of groups taken away.
        unread: Layers of groups that are not scored, or cannot be told apart; they are whole.
        not_followed: Layers whose coupled channels could not be found.

    Raises:
        UnknownLayerError: If ``keep`` names no layer.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        example: Tensor,
        importance: Callable[[nn.Module], tp.importance.Importance],
        keep: Sequence[str] = (),
    ) -> None:
        self.model, self.structure, self.example = model, structure, example
        found = scored_groups(model, example, importance)
        self.scores, self.unread, self.not_followed = found.scores, found.unread, found.not_followed
        self.groups = self._without_kept(found.groups, keep)
        self.left_whole: list[str] = []
        self._check = MaskCheck(model, example, self.structure.narrow)
        self._hollow = copy.deepcopy(model).to("meta")
        self._warn_of_not_followed()

    def settle(self, choose: Choice, time_limit: float) -> Removed:
        """Choose what goes, until all of it can go soundly.

        Args:
            choose: Takes groups to the units that are to go.
            time_limit: Seconds to look for groups that pass; those not tried are left whole.

        Returns:
            The units that go, by group.

        Raises:
            PruningError: If nothing can go.
        """
        while True:
            removed = choose(self.groups)
            cuts = self._cuts(removed)
            if not cuts:
                raise PruningError(
                    "nothing was removed; remove more, or take a smaller round_to or floor."
                )
            sound = _agreed([cut.layer for cut in passing(cuts, self._check.passes, time_limit)])
            left = [cut for cut in cuts if cut.layer not in sound]
            if not sound:
                raise PruningError(
                    f"no group of channels passes the mask check ({describe(left)})."
                )
            if not left:
                return removed
            self._leave_whole(left, len(cuts))

    def error(self, removed: Removed) -> float:
        """Relative difference between the slim and the masked model, in float64."""
        return self._check.error(self._cuts(removed))

    def cost(self, removed: Removed) -> Cost:
        """Parameters and multiply-adds of the slim model, without making it."""
        slim = copy.deepcopy(self._hollow)
        self._narrow(slim, removed)
        return Cost.of(slim, self._input_size())

    def slim(self, removed: Removed, source: nn.Module) -> nn.Module:
        """Make the slim model, rebuilt by name.

        Args:
            removed: Units that go, by group.
            source: Where the weights come from: the model itself, or a copy that was trained.

        Returns:
            It, in eval mode; its logits are those of the cut model, bit for bit.

        Raises:
            PruningError: If they are not.
        """
        cut = copy.deepcopy(source).eval()
        kept = self._narrow(cut, removed)
        cut.load_state_dict(cut_tensors(source, kept))
        base, example = self.structure.base, self.example.to(next(source.parameters()))
        rebuilt = build(base, pruned=cut, rate=0, **model_args_of(source)).to(example)
        rebuilt.load_state_dict(cut.state_dict())  # build goes through float32
        _check_same(cut, rebuilt.eval(), example)
        return rebuilt

    def _narrow(self, model: nn.Module, removed: Removed) -> dict[str, tuple[Tensor, ...]]:
        kept = kept_by(self._cuts(removed), self.model)
        self.structure.narrow(model, {name: tuple(map(len, axes)) for name, axes in kept.items()})
        return kept

    def _cuts(self, removed: Removed) -> list[Cut]:
        by_layer = {group.layer: group for group in self.groups}
        return [by_layer[layer].cut(units) for layer, units in removed.items() if len(units)]

    def _input_size(self) -> tuple[int, int, int]:
        channels, height, width = self.example.shape[1:]
        return channels, height, width

    def _without_kept(
        self, groups: Sequence[ChannelGroup], keep: Sequence[str]
    ) -> list[ChannelGroup]:
        layers = [name for name, _ in self.model.named_modules() if name]
        kept = {f"{name}.weight" for name in matched(layers, keep, "keep")}
        return [group for group in groups if not kept & group.filters(self.model).keys()]

    def _leave_whole(self, left: Sequence[Cut], of: int) -> None:
        names = {cut.layer for cut in left}
        self.groups = [group for group in self.groups if group.layer not in names]
        self.left_whole += [cut.layer for cut in left]
        _log.warning(
            "%d of %d groups of channels of %s are left whole, as the slim model would not compute "
            "what the masked one does: %s",
            len(left),
            of,
            self.structure.base,
            describe(list(left)),
        )

    def _warn_of_not_followed(self) -> None:
        if self.not_followed:
            _log.warning(
                "%d groups of channels of %s are left whole, as the graph could not be followed "
                "from these layers: %s",
                len(self.not_followed),
                self.structure.base,
                ", ".join(self.not_followed),
            )


def scored_groups(
    model: nn.Module,
    example: Tensor,
    importance: Callable[[nn.Module], tp.importance.Importance],
) -> Found:
    """Find the groups of a model, and their scores, on a copy of it.

    Args:
        model: It is left as it is.
        example: A batch of images to trace with, ``b x c x h x w``.
        importance: Makes, of the copy, torch-pruning's score of a group's channels.
    """
    with torch.enable_grad():  # torch-pruning reads autograd's graph
        spoilt = copy.deepcopy(model).cpu().double().eval().requires_grad_(True)
        return find_groups(spoilt, example.cpu().double(), importance(spoilt))


def _agreed(layers: list[str]) -> set[str]:
    """Let all processes go by what the first one found; time limits may differ between them."""
    told = [layers]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(told)
    return set(told[0])


@torch.no_grad()
def _check_same(slim: nn.Module, rebuilt: nn.Module, example: Tensor) -> None:
    expected, got = first_tensor(slim(example)), first_tensor(rebuilt(example))
    if not torch.equal(expected, got):
        off = (expected - got).abs().max().item()
        raise PruningError(f"logits differ by {off:.2g} after the rebuild.")
