"""What a pruning method adds to training: a penalty, and something done after each step."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Regulariser(Protocol):
    """A pruning method that trains, as the training loop sees it.

    Attributes:
        history: Rows of its convergence, in order; each has the column ``step``, and the same ones
            as every other row. They are part of its state.
    """

    history: list[dict[str, float]]

    def penalty(self) -> Tensor:
        """What is added to the loss of each batch, a scalar with a graph."""
        ...

    def after_step(self, updates: int) -> None:
        """Called after each step of the optimiser, with the number of steps done so far."""
        ...

    def removed(self) -> dict[str, list[int]]:
        """Units that are to go, by group, once training has ended."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on: tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        ...
