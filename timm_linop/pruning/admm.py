r"""Filter-wise ADMM: training pulls whole filters to zero, so that cutting them changes little.

Source: Zhang et al., ECCV 2018 (arXiv:1804.03294), for filters instead of single weights.

Minimise ``f(W)`` with at most ``alpha_l`` nonzero filters in each layer. Copies ``Z`` hold the
constraint, scaled duals ``U`` remember by how much ``W`` missed it:

    W <- a number of steps on  f(W) + sum_l rho/2 ||W_l - Z_l + U_l||_F^2
    Z <- Proj(W + U)           the alpha filters of largest norm stay, the others are zero
    U <- U + W - Z

Filters that are tied (a residual stream, a depthwise convolution) are one ``W_l``: they have one
norm and go together. Filters alone decide which, but their biases and norms belong to ``W_l``, too,
and are zeroed with them. Without that a BatchNorm undoes the penalty: it gives the same outputs
whatever a filter's norm, so what is to go becomes small and never silent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from ..channels.coupled import ChannelGroup
from ..errors import CheckpointError, PruningError, RecipeError, close_names
from ..recipe import ADMMConfig
from .projection import project, zeroed

__all__ = ["ADMM", "CONVERGED", "check_stable", "project"]

# Residual under which the method has converged.
CONVERGED = 1e-2


def check_stable(settings: ADMMConfig, lr: float, momentum: float = 0.0) -> None:
    """Refuse a penalty that SGD at this learning rate would overshoot, to ask before long work.

    On ``rho/2 w^2`` SGD diverges once ``lr rho`` is over 2, with momentum ``m`` over ``2 (1 + m)``,
    with Nesterov's over ``2 (1 + m) / (1 + 2 m)``, which is the least. Half of that is allowed,
    since the loss bends, too.

    Args:
        settings: Its last stage is the steepest.
        lr: The largest learning rate.
        momentum: Of SGD, of either kind. Adam and its like never step further than ``lr`` a number;
            they need no check.

    Raises:
        RecipeError: If the last stage is too steep.

    Example:
        >>> check_stable(ADMMConfig(), lr=0.01, momentum=0.9)
        >>> check_stable(ADMMConfig(), lr=0.1, momentum=0.9)
        Traceback (most recent call last):
        timm_linop.errors.RecipeError: rho grows to 10, ... take a rho of 0.067 or less, ...
    """
    limit = (1 + momentum) / (1 + 2 * momentum) / lr
    if settings.last_rho > limit:
        first = 0.99 * limit / settings.last_rho * settings.rho  # still within when it is rounded
        raise RecipeError(
            f"rho grows to {settings.last_rho:g}, but at lr={lr:g} with momentum {momentum:g} the "
            f"penalty may overshoot above {limit:.3g}; take a rho of {first:.2g} or less, fewer "
            "stages, or a smaller learning rate."
        )


class ADMM:
    """Filter-wise ADMM as a `timm_linop.regulariser.Regulariser`.

    Args:
        model: In training, on its device.
        groups: Coupled channels of the model.
        kept: How many units stay, by the layer that names the group; groups that are not named
            stay whole.
        steps: Steps of the optimiser in the whole training.
        settings: How it goes on; see `check_stable` for what suits a learning rate.

    Attributes:
        rho: Weight of the penalty now.
        history: A row for each iteration: ``step``; ``rho`` of the steps before it; ``residual``
            ``||W - Z|| / ||W||``; ``dual_residual`` ``||Z - Z_before|| / ||Z||``; ``changed``, the
            share of groups that now keep other units than before.

    Raises:
        PruningError: If ``kept`` is out of range, names no group, or leaves every group whole.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> group = ChannelGroup("0", 4, {("0.weight", 0): torch.arange(4)})
        >>> admm = ADMM(model, [group], {"0": 1}, steps=200)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        >>> for step in range(1, 201):
        ...     optimizer.zero_grad()
        ...     (model(torch.eye(2)).square().mean() + admm.penalty()).backward()
        ...     optimizer.step()
        ...     admm.after_step(step)
        >>> len(admm.removed()["0"]), admm.converged
        (3, True)
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        kept: Mapping[str, int],
        steps: int,
        settings: ADMMConfig | None = None,
    ) -> None:
        self.settings, self.steps = settings or ADMMConfig(), steps
        self.iterations = min(self.settings.admm_iterations, steps)
        self.history: list[dict[str, float]] = []
        self._constraints = _constraints_of(model, groups, kept)
        names = dict.fromkeys(n for each in self._constraints for n in each.filters | each.others)
        self._weights = {name: model.get_parameter(name) for name in names}
        self._done = 0
        self._z, self._kept = self._project(self._w())
        self._u = {name: torch.zeros_like(z) for name, z in self._z.items()}
        self._aim()

    @property
    def rho(self) -> float:
        """Weight of the penalty in the steps to come; the last stage has no end."""
        stages = self.settings.rho_stages
        stage = min(self._done * stages // self.iterations, stages - 1)
        return self.settings.rho * self.settings.rho_factor**stage

    @property
    def converged(self) -> bool:
        """Whether the last residual is under `CONVERGED`."""
        return bool(self.history) and self.history[-1]["residual"] < CONVERGED

    def penalty(self) -> Tensor:
        """``sum_l rho/2 ||W_l - Z_l + U_l||_F^2``, a scalar with a graph."""
        squares = [mse_loss(w, self._target[n], reduction="sum") for n, w in self._weights.items()]
        return self.rho / 2 * torch.stack(squares).sum()

    def after_step(self, updates: int) -> None:
        """Renew ``Z`` and ``U`` if an iteration ends with this step; the last ends with the last.

        Args:
            updates: Steps of the optimiser done so far.
        """
        due = min(updates, self.steps) * self.iterations // self.steps
        if due > self._done:
            self._iterate(updates, due)

    def removed(self) -> dict[str, list[int]]:
        """Units that are to go: those that are zero in ``Proj(W)`` of the weights as they are now.

        ``Proj(W)`` and not ``Z = Proj(W + U)``: what is cut is ``W``, and no other choice takes
        less from its filters. The two agree once converged; before that, ``U`` may speak for units
        that the network has done without for long.
        """
        _, kept = self._project(self._w())
        return {layer: (~stays).nonzero().flatten().tolist() for layer, stays in kept.items()}

    def state_dict(self) -> dict[str, Any]:
        """Copies, duals, kept units, history and the count of iterations."""
        state = {"z": self._z, "u": self._u, "kept": self._kept, "done": self._done}
        return state | {"history": [*self.history]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave, on the device of the weights.

        Raises:
            CheckpointError: If it is of other filters.
        """
        for name, w in self._weights.items():
            if name not in state["z"] or state["z"][name].shape != w.shape:
                raise CheckpointError(
                    f"the saved ADMM state has no copy of {name} ({list(w.shape)}); resume with "
                    "the model and the groups that it was saved of."
                )
        self._z = {name: state["z"][name].to(w) for name, w in self._weights.items()}
        self._u = {name: state["u"][name].to(w) for name, w in self._weights.items()}
        self._kept = {layer: stays.cpu() for layer, stays in state["kept"].items()}
        self._done, self.history = state["done"], [*state["history"]]
        self._aim()

    def _w(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self._weights.items()}

    def _project(self, point: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Project all groups; a tensor may hold rows of several."""
        point, kept = dict(point), {}
        for layer, filters, others, keep, size in self._constraints:
            tied = [point[name] for name in filters]
            tensors, kept[layer] = project(tied, list(filters.values()), keep, size)
            point.update(zip(filters, tensors, strict=True))
            for name, units in others.items():
                point[name] = zeroed(point[name], units, kept[layer])
        return point, kept

    @torch.no_grad()
    def _iterate(self, updates: int, due: int) -> None:
        w, before, kept_before, rho = self._w(), self._z, self._kept, self.rho
        sums = {name: w[name] + self._u[name] for name in w}
        self._z, self._kept = self._project(sums)
        changed = [not torch.equal(self._kept[layer], kept_before[layer]) for layer in self._kept]
        self.history.append(
            {
                "step": updates,
                "rho": rho,
                "residual": _norm(w[n] - self._z[n] for n in w) / _norm(w.values()),
                "dual_residual": _norm(self._z[n] - before[n] for n in w) / _norm(self._z.values()),
                "changed": sum(changed) / len(changed),
            }
        )
        self._done = due
        # rho U, the unscaled dual, is to stay what it is when rho grows.
        self._u = {name: (sums[name] - self._z[name]) * (rho / self.rho) for name in w}
        self._aim()

    def _aim(self) -> None:
        self._target = {name: z - self._u[name] for name, z in self._z.items()}


class _Constraint(NamedTuple):
    layer: str
    filters: dict[str, Tensor]
    others: dict[str, Tensor]
    keep: int
    size: int


def _constraints_of(
    model: nn.Module, groups: Sequence[ChannelGroup], kept: Mapping[str, int]
) -> list[_Constraint]:
    sizes = {group.layer: group.size for group in groups}
    for layer, keep in kept.items():
        if layer not in sizes:
            raise PruningError(
                f"kept names {layer!r}, which is no group of channels." + close_names(layer, sizes)
            )
        if not 1 <= keep <= sizes[layer]:
            raise PruningError(
                f"{layer} is to keep {keep} of {sizes[layer]} units; keep at least 1, and no more "
                "than there are."
            )
    found = [
        _Constraint(
            group.layer,
            group.filters(model),
            group.biases(model) | group.scales(model),
            kept[group.layer],
            group.size,
        )
        for group in groups
        if kept.get(group.layer, group.size) < group.size
    ]
    if not found:
        raise PruningError("every group is to stay whole; keep fewer units of one at least.")
    return found


def _norm(tensors: Iterable[Tensor]) -> float:
    """Frobenius norm of all of them together."""
    return float(torch.stack([tensor.norm() for tensor in tensors]).norm())
