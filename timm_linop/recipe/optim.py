"""Optimiser, loss, mixing of images and the moving average: timm's flags."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from timm.optim import list_optimizers

from timm_linop.errors import RecipeError, close_names
from timm_linop.recipe.checks import check_choice, check_numbers


@dataclass(frozen=True)
class OptimConfig:
    """Loss and optimiser, under timm's names.

    Attributes:
        opt: Any optimiser of timm.optim: sgd (Nesterov's), momentum (classical SGD), adamw...
        lr: Learning rate.
        momentum: Momentum, where the optimiser has one.
        opt_eps: Its epsilon, where it has one; None takes the optimiser's own.
        opt_betas: Its betas, where it has them; None takes the optimiser's own.
        opt_kwargs: Further arguments of the optimiser, such as ``nesterov=false``.
        weight_decay: Weight decay; biases and norms have none.
        chain_decay: Weight decay of expanded layers: on their factors, or none (docs/training.md).
        layer_decay: Factor on the learning rate from each layer to the one before; None has none.
        clip_grad: Gradients are clipped at this; None does not clip.
        clip_mode: How: norm (of all together), value (of each number) or agc (of each unit).
        smoothing: Label smoothing.
        bce_loss: Binary cross-entropy of each class instead of cross-entropy.
        bce_target_thresh: Targets above it count as 1, others as 0, after mixing and smoothing.
        mixup: Mixup alpha; 0 leaves it out.
        cutmix: CutMix alpha; 0 leaves it out.
        cutmix_minmax: Smallest and largest side of what is cut, as parts of the image; turns
            CutMix on.
        mixup_prob: Probability that a batch is mixed at all.
        mixup_switch_prob: Probability of CutMix, where both are on.
        mixup_mode: What gets its own mixing: each batch, pair or elem.
        mixup_off_epoch: Mixing ends after this many epochs; 0 never ends it.
        model_ema: Keep and ship an exponential moving average of the weights.
        model_ema_decay: Its decay per step.
        model_ema_warmup: Let that decay grow from 0 in the first steps.
    """

    opt: str = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    opt_eps: float | None = None
    opt_betas: tuple[float, ...] | None = None
    opt_kwargs: dict[str, Any] = field(default_factory=dict)
    weight_decay: float = 2e-5
    chain_decay: str = "factors"
    layer_decay: float | None = None
    clip_grad: float | None = None
    clip_mode: str = "norm"
    smoothing: float = 0.0
    bce_loss: bool = False
    bce_target_thresh: float | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    cutmix_minmax: tuple[float, float] | None = None
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    mixup_mode: str = "batch"
    mixup_off_epoch: int = 0
    model_ema: bool = False
    model_ema_decay: float = 0.999
    model_ema_warmup: bool = False

    def __post_init__(self) -> None:
        known = list_optimizers()
        if self.opt.lower().removeprefix("lookahead_") not in known:
            raise RecipeError(
                f"opt={self.opt!r} is no optimiser of timm; timm.optim.list_optimizers() lists "
                "them." + close_names(self.opt, known)
            )
        check_choice("chain_decay", self.chain_decay, ("factors", "none"))
        check_choice("clip_mode", self.clip_mode, ("norm", "value", "agc"))
        check_choice("mixup_mode", self.mixup_mode, ("batch", "pair", "elem"))
        self._check_ranges()
        self._check_pairs()

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, so that targets are no classes but shares of them."""
        return self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None

    def _check_ranges(self) -> None:
        at_least_0 = ("weight_decay", "momentum", "mixup", "cutmix", "mixup_off_epoch")
        check_numbers(self, lambda x: 0 <= x < math.inf, "a number not below 0", at_least_0)
        check_numbers(self, lambda x: 0 < x < math.inf, "one above 0", ("opt_eps", "clip_grad"))
        below_1 = ("smoothing", "bce_target_thresh")
        check_numbers(self, lambda x: 0 <= x < 1, "one from 0 to below 1", below_1)
        parts = ("mixup_prob", "mixup_switch_prob", "model_ema_decay")
        check_numbers(self, lambda x: 0 <= x <= 1, "one from 0 to 1", parts)
        check_numbers(self, lambda x: 0 < x <= 1, "one above 0, at most 1", ("layer_decay",))
        betas = ("opt_betas",)
        check_numbers(self, lambda x: all(0 <= b < 1 for b in x), "each from 0 to below 1", betas)

    def _check_pairs(self) -> None:
        if self.cutmix_minmax and not 0 <= self.cutmix_minmax[0] < self.cutmix_minmax[1] <= 1:
            raise RecipeError(
                f"cutmix_minmax={self.cutmix_minmax} is no range of parts of an image; give "
                "0 <= smallest < largest <= 1."
            )
        # Alone they would do nothing, in silence.
        if self.bce_target_thresh is not None and not self.bce_loss:
            raise RecipeError(
                f"bce_target_thresh={self.bce_target_thresh} is of binary cross-entropy; set "
                "--bce-loss, or leave it out."
            )
        if self.clip_mode != "norm" and self.clip_grad is None:
            raise RecipeError(
                f"clip_mode={self.clip_mode!r} needs to know where to clip; set --clip-grad, or "
                "leave it out."
            )
