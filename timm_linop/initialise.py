"""How a chain's outer factors are drawn: orthogonal, normal (the paper's), balanced.

All draws are ``U diag(s) V^T`` with orthonormal ``U`` and ``V``, so each left inverse is
written down, ``V diag(1/s) U^T``, rather than solved for:

==============  ===============  ==================================  ====================
init            ``U``            ``s``                               ``V``
==============  ===============  ==================================  ====================
``orthogonal``  Hartley, mixed   ones: conditioning 1                identity
``normal``      of a Gaussian    of the same Gaussian                of the same Gaussian
``balanced``    Hartley, mixed   the weight's own, to the share      of the weight
==============  ===============  ==================================  ====================

``U`` turns the chain's inner space, and SGD does not see such a turn: it moves the composed weight
as if ``U`` were ``V``, whatever the rate. A compact chain leaves it out (`docs/cost.md`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

INITS = ("orthogonal", "normal", "balanced")

# A factor may be no worse conditioned than this, or float32 would not hold the identity: square
# Gaussians (r = 1) and rank-deficient weights would be.
MAX_CONDITION = 10.0


def draw(
    init: str,
    unfolded: Float[Tensor, "g c rest"],
    width: int,
    *,
    fan_in: int,
    share: float,
    compact: bool,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "g rows c"], Float[Tensor, "g c rows"]]:
    """Draw a tall factor ``F`` and its left inverse, ``F+ F = I_c``, in float64.

    ``A`` is such a factor of the input channels, ``B`` the transpose of one of the output channels.

    Args:
        init: One of `INITS`.
        unfolded: The weight with the factor's channels as rows.
        width: Rows of the factor, at least ``c``.
        fan_in: Inputs of the layer the factor stands for; ``normal`` draws with variance 1/fan_in.
        share: Power of the weight's singular values that ``balanced`` gives to this factor.
        compact: Leave out ``U``: ``V diag(s) V^T``, with as few rows as columns.
        generator: Where the noise comes from.

    Returns:
        ``F`` and ``F+``.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> weight = torch.ones(1, 2, 5, dtype=torch.float64)
        >>> options = {"fan_in": 2, "share": 1 / 3, "compact": False, "generator": generator}
        >>> f, inverse = draw("normal", weight, 6, **options)
        >>> torch.allclose(inverse @ f, torch.eye(2, dtype=torch.float64))
        True
    """
    groups, channels, _ = unfolded.shape
    here: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}  # whatever the default device
    if init == "orthogonal":
        eye = torch.eye(channels, **here).repeat(groups, 1, 1)
        f = eye if compact else _orthonormal(groups, width, channels, generator)
        return f, f.mT
    if init == "normal":
        noise = torch.randn(groups, width, channels, generator=generator, **here)
        u, s, vh = torch.linalg.svd(noise / math.sqrt(fan_in), full_matrices=False)
    else:
        squares, vectors = torch.linalg.eigh(unfolded @ unfolded.mT)
        s, vh = squares.clamp(min=0).sqrt() ** share, vectors.mT
        u = _orthonormal(groups, width, channels, generator)
    u = vh.mT if compact else u
    s = _well_conditioned(s)[:, None]
    return (u * s) @ vh, vh.mT @ (u / s).mT


def _orthonormal(
    groups: int, width: int, columns: int, generator: torch.Generator
) -> Float[Tensor, "g width columns"]:
    """Draw orthonormal columns: those of Hartley's transform, their signs and the rows' mixed.

    A QR of a Gaussian, which is as orthonormal, takes minutes for the widest layers.
    """
    here: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    angles = torch.arange(width, **here) * (2 * math.pi / width)
    places = torch.arange(width, device="cpu")
    values = (angles.cos() + angles.sin()) / math.sqrt(width)
    hartley = values[places[:, None] * places[:columns] % width]
    mixed = torch.rand(groups, width, generator=generator, device="cpu").argsort(dim=1)
    signs = torch.randn(groups, width + columns, generator=generator, **here).sign()
    return hartley[mixed] * signs[:, :width, None] * signs[:, None, width:]


def _well_conditioned(s: Float[Tensor, "g c"]) -> Float[Tensor, "g c"]:
    """Raise the smallest singular values to 1/`MAX_CONDITION` of the largest; all zeros to one."""
    largest = s.amax(dim=1, keepdim=True)
    floored = torch.maximum(s, largest / MAX_CONDITION)
    return torch.where(largest > 0, floored, torch.ones_like(s))
