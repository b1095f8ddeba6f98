"""How much is pruned, by which method, and how that method works."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from timm_linop.errors import RecipeError
from timm_linop.recipe.checks import check_choice, check_numbers

METHODS = ("magnitude", "admm", "tpp", "curl")
CRITERIA = ("l1", "l2", "bn_scale", "lamp", "fpgm", "taylor", "hessian", "random")
# Criteria that ask what images do to the loss.
BY_GRADIENT = ("taylor", "hessian")
_AMOUNTS = ("ratio", "target_params", "target_macs", "ratios")


@dataclass(frozen=True)
class PruneConfig:
    """What to remove, and how it is chosen.

    Attributes:
        method: magnitude (one look at the weights, seconds), curl (what each channel's absence
            does to the output, a forward pass each), or admm or tpp, which train towards the slim
            net first: all settings of loss, optimiser, schedule, augmentation and checkpoints
            below are for these two. docs/pruning.md tells which to take.
        ratio: Fraction of each layer's channels to remove; with --scope global, of all channels.
            0.5 where no other amount is given.
        target_params: Parameters that may stay, as a fraction of the dense model's or a number.
        target_macs: Multiply-adds of one image that may stay, likewise.
        ratios: YAML file of layer names or patterns, each with its ratio; others stay whole.
        round_to: Keep a multiple of this many channels in each layer; 1 keeps any number.
        keep: Names or patterns of layers that keep all their outputs.
        criterion: Score of --method magnitude: l1, l2, bn_scale, lamp, fpgm, random, or by the
            gradient of training images taylor, hessian.
        scope: Where scores are compared: local (in each group) or global (among all groups);
            curl is always global.
        floor: Fraction of its channels below which no group is taken down by global scores.
        iterative_steps: Remove in so many steps, with new scores in between (magnitude).
        score_images: Training images that taylor, hessian and curl look at.
        recalibrate: Batches of training images to take BatchNorm statistics from afterwards.
    """

    method: str = "magnitude"
    ratio: float | None = None
    target_params: float | None = None
    target_macs: float | None = None
    ratios: str | Mapping[str, float] | None = None
    round_to: int = 8
    keep: tuple[str, ...] = ()
    criterion: str = "l2"
    scope: str = "local"
    floor: float = 0.3
    iterative_steps: int = 1
    score_images: int = 256
    recalibrate: int = 0

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        check_choice("criterion", self.criterion, CRITERIA)
        check_choice("scope", self.scope, ("local", "global"))
        self._check_amount()
        whole = ("round_to", "iterative_steps", "score_images")
        check_numbers(self, lambda x: _is_count(x) and x >= 1, "a whole number from 1 on", whole)
        check_numbers(
            self, lambda x: _is_count(x) and x >= 0, "a whole number, not below 0", ("recalibrate",)
        )
        check_numbers(self, lambda x: 0 <= x < 1, "a fraction from 0 to below 1", ("floor",))
        self._check_method()

    @property
    def is_global(self) -> bool:
        """Whether scores are compared among all groups."""
        return self.scope == "global" or self.method == "curl"

    @property
    def trains(self) -> bool:
        """Whether the method trains before anything is removed."""
        return self.method in ("admm", "tpp")

    @property
    def scores_images(self) -> bool:
        """Whether scores are of what training images do."""
        by_gradient = self.method == "magnitude" and self.criterion in BY_GRADIENT
        return by_gradient or self.method == "curl"

    def _check_amount(self) -> None:
        given = [name for name in _AMOUNTS if getattr(self, name) is not None]
        if len(given) > 1:
            raise RecipeError(
                f"{' and '.join(given)} both say how much is to go; give one of them."
            )
        if self.ratio is not None and not (_is_number(self.ratio) and 0 < self.ratio < 1):
            raise RecipeError(
                f"ratio={self.ratio!r}: the fraction of channels to remove lies between 0 and 1; "
                "0.5 removes half of them."
            )
        above_0 = ("target_params", "target_macs")
        check_numbers(
            self,
            lambda x: _is_number(x) and 0 < x < math.inf,
            "a fraction of the dense model's, or a number of them",
            above_0,
        )

    def _check_method(self) -> None:
        """Refuse options that the method would not heed."""
        usual = {each.name: each.default for each in fields(self)}
        only = {"criterion": "magnitude", "scope": "magnitude", "iterative_steps": "magnitude"}
        for name, method in only.items():
            if self.method != method and getattr(self, name) != usual[name]:
                raise RecipeError(
                    f"{name}={getattr(self, name)!r} is of --method {method}; {self.method} does "
                    "not heed it, so leave it out."
                )
        if self.iterative_steps > 1 and self.is_global:
            raise RecipeError(
                "iterative_steps compare channels within each group; use --scope local."
            )
        if self.is_global and self.ratios is not None:
            raise RecipeError(
                "ratios say how much each layer loses, and a global ranking decides that itself; "
                "use --ratio, --target-params or --target-macs, or --scope local."
            )


@dataclass(frozen=True)
class ADMMConfig:
    """How --method admm goes on.

    Attributes:
        rho: Weight of the penalty in the first stage of ADMM.
        rho_factor: It grows by this factor from each stage to the next.
        rho_stages: Number of stages, equally long.
        admm_iterations: How often the copies and duals are renewed in the whole training.

    Raises:
        RecipeError: If a field is out of range.

    Example:
        >>> ADMMConfig().last_rho
        10.0
    """

    rho: float = 0.1
    rho_factor: float = 10.0
    rho_stages: int = 3
    admm_iterations: int = 15

    def __post_init__(self) -> None:
        check_numbers(self, lambda x: 0 < x < math.inf, "a number above 0", ["rho"])
        check_numbers(self, lambda x: 1 <= x < math.inf, "1 or more", ["rho_factor"])
        check_numbers(self, lambda x: x >= 1, "1 or more", ["rho_stages"])
        enough = f"at least one for each of the {self.rho_stages} stages"
        check_numbers(self, lambda x: x >= self.rho_stages, enough, ["admm_iterations"])

    @property
    def last_rho(self) -> float:
        """Weight of the penalty in the last stage."""
        return self.rho * self.rho_factor ** (self.rho_stages - 1)


@dataclass(frozen=True)
class TPPConfig:
    """How hard and how long --method tpp presses; these three are the paper's for CIFAR.

    Momentum SGD of learning rate ``lr`` shrinks marked filters by about
    ``exp(-lr / (1 - momentum) * top * steps / 2)`` by their norm alone: with the paper's 1e-3, 0.9
    and 100,000 steps to nothing, with 1,000 steps to a hundredth. A run of few steps needs a larger
    learning rate or top, else much is left when it is set to zero.

    Attributes:
        tpp_gram: Weight of the Gram penalty beside the marked filters' norm.
        tpp_top: What the penalty's coefficient grows to.
        tpp_stabilise: Share of the steps after that, with marked filters held at zero; the paper
            has 1/11 on CIFAR, 40/90 on ImageNet.

    Raises:
        RecipeError: If a field is out of range.
    """

    tpp_gram: float = 1000.0
    tpp_top: float = 1.0
    tpp_stabilise: float = 1 / 11

    def __post_init__(self) -> None:
        check_numbers(self, lambda x: 0 <= x < math.inf, "a number not below 0", ["tpp_gram"])
        check_numbers(self, lambda x: 0 < x < math.inf, "a number above 0", ["tpp_top"])
        check_numbers(self, lambda x: 0 <= x < 1, "a share below 1", ["tpp_stabilise"])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
