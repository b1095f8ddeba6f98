"""The moving average of a model in training: of its slim weights, not of the factors."""

from __future__ import annotations

import copy
import warnings

from timm.utils import ModelEmaV3
from torch import Tensor, nn

from .expand import contract, contracted_state, is_expanded
from .recipe import OptimConfig


class WeightAverage:
    """timm's moving average, kept of the weights that a contraction would give.

    Averaged factors multiply to something else than the average of their products: factors may
    turn against each other while the weight stands still. What is averaged, evaluated, and shipped
    is therefore the slim model itself.

    Args:
        model: Expanded or not; not changed.
        optim: Tells the decay and its warm-up.

    Attributes:
        module: The average, a slim model.
    """

    def __init__(self, model: nn.Module, optim: OptimConfig) -> None:
        slim = copy.deepcopy(model)
        if is_expanded(slim):
            contract(slim)
        decay, warmup = optim.model_ema_decay, optim.model_ema_warmup
        self._ema = ModelEmaV3(slim, decay, use_warmup=warmup)
        self.module: nn.Module = self._ema.module

    def update(self, model: nn.Module, updates: int) -> None:
        """Move towards ``model`` after so many steps of the optimiser."""
        self._ema.update(_Slim(contracted_state(model), self.module), updates)


def warn_of_short_run(optim: OptimConfig, updates: int) -> None:
    """Warn of an average that would still be near where it began at the end of a run.

    Args:
        optim: Tells the decay and its warm-up.
        updates: Steps of the whole run.

    Example:
        >>> warn_of_short_run(OptimConfig(model_ema_decay=0.9), updates=100)
    """
    reach = 1 / max(1 - optim.model_ema_decay, 1e-12)
    if updates < reach and not optim.model_ema_warmup:
        warnings.warn(
            f"--model-ema averages over about {reach:,.0f} steps (decay {optim.model_ema_decay}), "
            f"but the run has {updates:,}, so what is shipped stays near the start; set a smaller "
            "--model-ema-decay, or --model-ema-warmup.",
            stacklevel=2,
        )


class _Slim:
    """What timm's average reads of a model: its state, in the slim model's order."""

    def __init__(self, state: dict[str, Tensor], slim: nn.Module) -> None:
        self._state = {name: state[name] for name in slim.state_dict()}

    def state_dict(self) -> dict[str, Tensor]:
        return self._state
