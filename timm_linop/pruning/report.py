"""What pruning found: for pruning.json, figures and cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..recipe import PruneConfig
from .subject import Removed, Subject


@dataclass(frozen=True)
class GroupReport:
    """One coupled group of channels.

    Attributes:
        layers: Those whose outputs the channels are, norms among them.
        units: How many there were.
        kept: How many stay.
        removed: Those that went.
        scores: Of all units, where the method scores them; the lowest go first.
    """

    layers: tuple[str, ...]
    units: int
    kept: int
    removed: tuple[int, ...]
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class PruningReport:
    """What `prune` found.

    Attributes:
        config: What was asked for.
        groups: Each group that can be cut soundly, by the layer that names it.
        left_whole: Layers of groups that cannot, as the result would not be the masked model's.
        unread: Layers whose channels have no score, or cannot be told apart; they are whole.
        not_followed: Layers whose coupled channels could not be found; they are whole, too.
        mask_error: Relative difference between slim and masked model, in float64.
        history: How the method converged, if it trains: one row each time it looked.
    """

    config: PruneConfig
    groups: Mapping[str, GroupReport]
    left_whole: tuple[str, ...]
    unread: tuple[str, ...]
    not_followed: tuple[str, ...]
    mask_error: float
    history: Sequence[Mapping[str, float]] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """All but the history and the scores, of which the range is told, as JSON-ready data."""
        groups = {}
        for name, group in self.groups.items():
            told = asdict(group)
            scores = sorted(told.pop("scores"))
            if scores:
                middle = scores[len(scores) // 2]
                told["scores"] = {"least": scores[0], "median": middle, "most": scores[-1]}
            groups[name] = told
        return {
            "method": self.config.method,
            "options": asdict(self.config),
            "groups": groups,
            "left_whole": self.left_whole,
            "unread": self.unread,
            "not_followed": self.not_followed,
            "mask_error": self.mask_error,
        }


class Pruned(NamedTuple):
    """A slim model, and what was found on the way to it."""

    model: nn.Module
    report: PruningReport


def report_of(
    subject: Subject,
    config: PruneConfig,
    removed: Removed,
    scores: Mapping[str, Tensor],
    history: Sequence[Mapping[str, float]],
) -> PruningReport:
    """Gather what was found of a subject whose units were chosen."""
    groups = {}
    for group in subject.groups:
        gone = tuple(removed.get(group.layer, ()))
        own = tuple(scores[group.layer].tolist()) if not config.trains else ()
        layers = tuple(group.layers())
        groups[group.layer] = GroupReport(layers, group.size, group.size - len(gone), gone, own)
    return PruningReport(
        config,
        groups,
        tuple(subject.left_whole),
        subject.unread,
        subject.not_followed,
        subject.error(removed),
        history,
    )
