"""A second stage of training, in which the labels are refined along with the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

from timm_linop.recipe.checks import check_numbers


@dataclass(frozen=True)
class RefineConfig:
    """Label refinement after the training proper, for few images (Luo & Wu 2020).

    Attributes:
        refine_epochs: Passes over six versions of each training image, at the end of the run, in
            which their labels are refined; 0 leaves it out.
        refine_lr: Learning rate of the weights in these; it falls to 0 by a cosine.
        refine_weight: Weight of the refined labels, and rate at which they move; the true classes
            have what is left of 1.
    """

    refine_epochs: int = 0
    refine_lr: float = 1e-4
    refine_weight: float = 0.7

    def __post_init__(self) -> None:
        check_numbers(self, lambda x: x >= 0, "0 or more", ("refine_epochs",))
        check_numbers(self, lambda x: 0 < x < math.inf, "a number above 0", ("refine_lr",))
        check_numbers(self, lambda x: 0 < x <= 1, "one above 0, at most 1", ("refine_weight",))
