"""Ways to expand that the package does not offer, by the names of their arms in the study."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from benchmarks.recovery_branches import branch
from benchmarks.recovery_chains import (
    Make,
    as_wide_as_dense,
    branched,
    decaying,
    expand_by,
    gained,
    half_std,
)

# Expands a slim model in place, by a seed and some images, b x c x h x w.
Trial = Callable[[nn.Module, int, Tensor], None]


def _chains(make: Make) -> Trial:
    return lambda model, seed, _: expand_by(make, model, seed)


def _as_wide_as_dense(model: nn.Module, seed: int, images: Tensor) -> None:
    del images
    expand_by(as_wide_as_dense(model), model, seed)


def _normalised(model: nn.Module, seed: int, images: Tensor) -> None:
    del seed  # nothing is drawn
    branch(model, images)


TRIALS: dict[str, Trial] = {
    "expanded, gain, kappa 0.1": _chains(gained(0.1)),
    "expanded, gain, kappa 1": _chains(gained(1.0)),
    "expanded, branches": _chains(branched),
    "expanded, as wide as dense": _as_wide_as_dense,
    "expanded, normal, half the std": _chains(half_std),
    "expanded, decay of the product": _chains(decaying),
    "normalised branches": _normalised,
    "normalised branches + KD": _normalised,
}
