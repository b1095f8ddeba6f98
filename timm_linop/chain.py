r"""LinearChain: one layer's weight as a product of linear layers (1x1 -> kxk -> 1x1), exactly.

A convolution with ``n`` outputs, ``m`` inputs, ``g`` groups (``n' = n/g``, ``m' = m/g``) and
expansion rate ``r`` has three factors per group, with ``p = ceil(r m')`` and ``q = ceil(r n')``:

=======  ==================  =================  ==============================================
factor   per group           stored as          the real layer it would be
=======  ==================  =================  ==============================================
``A``    ``p x m'``          ``g*p x m'``       first 1x1, no bias
``C``    ``q x p x kernel``  ``g*q x p x ...``  middle kxk: stride, padding, dilation
``B``    ``n' x q``          ``n x q``          last 1x1, carries the original bias
=======  ==================  =================  ==============================================

Contract (Eq. 1, 3)    ``W[o,i] = sum_{s,t} B[o,s] C[s,t] A[t,i]``, kernel position by position
Expand (Eq. 4)         ``C = B+ W A+`` with ``B B+ = I`` and ``A+ A = I``
Linear (Eq. 5, 6)      ``W = B A`` with hidden width ``p``; ``A`` is drawn, ``B = W A+``

Nothing non-linear stands between the factors, so the network composes ``W`` first and runs ONE
layer: the chain is a `torch.nn.utils.parametrize` parametrization, ``right_inverse`` expands and
``forward`` contracts. Source: Qian et al., "Boosting Pruned Networks with Linear
Over-parameterization", arXiv 2204.11444, 2022.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .errors import ExpansionError
from .initialise import draw
from .kept import KeptProduct, can_be_kept


class LinearChain(nn.Module, ABC):
    """The algebra of one layer: ``right_inverse`` expands its weight, ``forward`` contracts.

    Args:
        rate: Expansion rate ``r >= 1``: how many times wider the inner layers are.
        init: How ``A`` and ``B`` are drawn, one of `initialise.INITS`.
        seed: Seed of the draw; the same seed gives the same factors on every device.
        compact: Square outer factors, which move the weight as the wide ones under SGD.
    """

    def __init__(self, rate: float, init: str, seed: int, compact: bool = False) -> None:
        super().__init__()
        self.rate, self.init, self.seed, self.compact = rate, init, seed, compact
        self.slim_loader: RemovableHandle  # set by expand_layer
        self.shared_product: Tensor | None = None  # set within composed_once
        self._kept = KeptProduct()

    def forward(self, *factors: Tensor) -> Tensor:
        """Contract: the factors' product, in eval mode kept while they do not change."""
        if self.shared_product is not None:
            return self.shared_product
        if self.training or not can_be_kept(factors):
            return self.compose(*factors)
        return self._kept.of(factors, self.compose)

    def train(self, mode: bool = True) -> LinearChain:
        """Forget what eval mode kept."""
        self._kept.forget()
        return super().train(mode)

    compose: Callable[..., Tensor]  # multiplies the factors, first layer first

    @abstractmethod
    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Expand: factors whose product is ``weight``, first layer first."""

    @staticmethod
    def shape_of(a: Tensor, *others: Tensor) -> tuple[int, ...]:
        """The composed weight's shape, without composing it."""
        *middle, b = others
        kernel = [size for c in middle for size in c.shape[2:]]
        return b.shape[0], a.shape[1], *kernel

    def extra_repr(self) -> str:
        """Show the settings where PyTorch prints the module."""
        return f"rate={self.rate}, init={self.init!r}"

    def _width(self, channels: int) -> int:
        """Rows of a drawn factor; a compact one is drawn as the wide one, then cut down to it."""
        return math.ceil(round(self.rate * channels, 9))  # 1.1 * 50 is 55.00000000000001

    def _solving(self, weight: Tensor) -> torch.dtype:
        """Where the inverses are orthonormal, float32 loses no more than storing the factors."""
        exact = torch.promote_types(weight.dtype, torch.float32)
        return exact if self.init == "orthogonal" else torch.float64

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


class ConvChain(LinearChain):
    """Three factors of a convolution's weight, per group.

    Args:
        rate: Expansion rate ``r >= 1``.
        init: One of `initialise.INITS`.
        seed: Seed of the draw.
        groups: The convolution's number of groups ``g``.

    Example:
        >>> chain = ConvChain(rate=3, init="orthogonal", seed=0, groups=1)
        >>> weight = torch.randn(4, 2, 3, 3)
        >>> [tuple(factor.shape) for factor in chain.right_inverse(weight)]
        [(6, 2), (12, 6, 3, 3), (4, 12)]
        >>> torch.allclose(chain(*chain.right_inverse(weight)), weight, atol=1e-5)
        True
    """

    def __init__(
        self, rate: float, init: str, seed: int, groups: int, compact: bool = False
    ) -> None:
        super().__init__(rate, init, seed, compact)
        self.groups = groups

    def compose(
        self,
        a: Float[Tensor, "gp m"],
        c: Float[Tensor, "gq p *kernel"],
        b: Float[Tensor, "n q"],
    ) -> Float[Tensor, "n m *kernel"]:
        """Contract (Eq. 1, 3): ``W[o,i] = sum_{s,t} B[o,s] C[s,t] A[t,i]``."""
        flat = a, c.flatten(2), b
        a_, c_, b_ = (_exact(_shaped(f, self.groups, -1, *f.shape[1:])) for f in flat)
        with _no_autocast(a.device):
            weight = _product(b_, c_, a_)
        return _shaped(weight, b.shape[0], a.shape[1], *c.shape[2:]).to(a.dtype)

    @torch.no_grad()
    def right_inverse(self, weight: Float[Tensor, "n m *kernel"]) -> tuple[Tensor, ...]:
        """Expand (Eq. 4): draw ``A`` and ``B``, solve ``C = B+ W A+``."""
        n, m, *kernel = weight.shape
        p, q = self._width(m), self._width(n // self.groups)
        if weight.is_meta:
            p, q = (m, n // self.groups) if self.compact else (p, q)
            shapes = (self.groups * p, m), (self.groups * q, p, *kernel), (n, q)
            return tuple(weight.new_empty(shape) for shape in shapes)
        w = weight.detach().to("cpu", torch.float64).reshape(self.groups, -1, m, math.prod(kernel))
        inputs, outputs = w.transpose(1, 2).flatten(2), w.flatten(2)  # g x m' x .., g x n' x ..
        options: Any = {"share": 1 / 3, "compact": self.compact, "generator": self._generator()}
        a, a_inverse = draw(self.init, inputs, p, fan_in=m, **options)
        b_t, b_inverse_t = draw(self.init, outputs, q, fan_in=q, **options)
        b, b_inverse = b_t.transpose(1, 2), b_inverse_t.transpose(1, 2)
        c = _product(*(factor.to(self._solving(weight)) for factor in (b_inverse, w, a_inverse)))
        factors = a.flatten(0, 1), c.reshape(-1, a.shape[1], *kernel), b.flatten(0, 1)
        return tuple(_like(factor, weight) for factor in factors)


class DenseChain(LinearChain):
    """Two factors of a linear layer's weight (Eq. 5, 6).

    Example:
        >>> chain = DenseChain(rate=2, init="orthogonal", seed=0)
        >>> [tuple(factor.shape) for factor in chain.right_inverse(torch.randn(10, 4))]
        [(8, 4), (10, 8)]
    """

    def compose(self, a: Float[Tensor, "p m"], b: Float[Tensor, "n p"]) -> Float[Tensor, "n m"]:
        """Contract: ``W = B A``."""
        with _no_autocast(a.device):
            weight = _exact(b) @ _exact(a)
        return weight.to(a.dtype)

    @torch.no_grad()
    def right_inverse(self, weight: Float[Tensor, "n m"]) -> tuple[Tensor, ...]:
        """Expand: draw ``A`` with ``A+ A = I``, solve ``B = W A+``."""
        n, m = weight.shape
        p = self._width(m)
        if weight.is_meta:
            p = m if self.compact else p
            return weight.new_empty(p, m), weight.new_empty(n, p)
        w = weight.detach().to("cpu", torch.float64)[None]
        options: Any = {"share": 1 / 2, "compact": self.compact, "generator": self._generator()}
        a, a_inverse = draw(self.init, w.mT, p, fan_in=m, **options)
        solving = self._solving(weight)
        return _like(a[0], weight), _like((w.to(solving) @ a_inverse.to(solving))[0], weight)


def chain_for(
    module: nn.Module, rate: float, init: str, seed: int, compact: bool = False
) -> LinearChain:
    """Choose the chain of a convolution or linear layer.

    Args:
        module: A `torch.nn.Conv1d`, `Conv2d`, `Conv3d` or `Linear`, or a subclass of one whose
            forward is a function of ``weight`` (timm's ``Conv2dSame``, ``ScaledStdConv2d``...).
        rate: Expansion rate ``r >= 1``.
        init: One of `initialise.INITS`.
        seed: Seed of the draw.
        compact: Square outer factors, see `LinearChain`.

    Returns:
        The chain, not yet registered.

    Raises:
        ExpansionError: If the module is of another kind.

    Example:
        >>> type(chain_for(nn.Linear(4, 2), rate=3, init="orthogonal", seed=0)).__name__
        'DenseChain'
    """
    if isinstance(module, nn.Linear):
        return DenseChain(rate, init, seed, compact)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return ConvChain(rate, init, seed, module.groups, compact)
    raise ExpansionError(
        f"{type(module).__name__} has no linear chain: only Conv1d/2d/3d and Linear layers have "
        "one. Leave it out with exclude=[...]."
    )


def _exact(factor: Tensor) -> Tensor:
    """Raise half precision to float32, which is what the identity holds in; keep float64."""
    return factor.to(torch.promote_types(factor.dtype, torch.float32))


def _no_autocast(device: torch.device) -> torch.autocast:
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)


def _shaped(tensor: Tensor, *shape: int) -> Tensor:
    """Reshape through one flat axis, so that even axes of size 1 have the plain strides.

    DistributedDataParallel copies buckets where a stride differs; safetensors refuses the weight.
    """
    return tensor.reshape(-1).view(shape)


def _product(
    b: Float[Tensor, "g n q"], c: Float[Tensor, "g q p k"], a: Float[Tensor, "g p m"]
) -> Float[Tensor, "g n m k"]:
    """Multiply ``B C A`` per kernel position ``k``, the cheaper pair first."""
    (_, n, q), (_, p, m), k = b.shape, a.shape, c.shape[3]
    if n * p * (q + m) <= m * q * (p + n):
        return _times_inputs((b @ c.flatten(2)).view(-1, n, p, k), a)
    return (b @ _times_inputs(c, a).flatten(2)).view(-1, n, m, k)


def _times_inputs(
    x: Float[Tensor, "g o p k"], a: Float[Tensor, "g p m"]
) -> Float[Tensor, "g o m k"]:
    """Multiply by ``A`` per kernel position; pointwise and depthwise kernels need no permuting."""
    if x.shape[3] == 1:
        return (x.squeeze(3) @ a).unsqueeze(3)
    if x.shape[1] == 1:
        return (a.mT @ x.squeeze(1)).unsqueeze(1)
    return torch.einsum("gotk,gti->goik", x, a)


def _like(factor: Tensor, weight: Tensor) -> Tensor:
    return _shaped(factor.to(device=weight.device, dtype=weight.dtype), *factor.shape)
