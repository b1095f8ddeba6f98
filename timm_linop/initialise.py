"""How a chain's outer factors are drawn: orthogonal, normal (the paper's), balanced.

All draws are ``U diag(s) V^T`` with orthonormal ``U`` and ``V``, so each left inverse is
written down, ``V diag(1/s) U^T``, rather than solved for:

==============  ==============  ==================================  ====================
init            ``U``           ``s``                               ``V``
==============  ==============  ==================================  ====================
``orthogonal``  Haar, by QR     ones: conditioning 1                identity
``normal``      of a Gaussian   of the same Gaussian                of the same Gaussian
``balanced``    Haar, by QR     the weight's own, to the share      of the weight
==============  ==============  ==================================  ====================
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
    generator: torch.Generator,
) -> tuple[Float[Tensor, "g width c"], Float[Tensor, "g c width"]]:
    """Draw a tall factor ``F`` and its left inverse, ``F+ F = I_c``, in float64.

    ``A`` is such a factor of the input channels, ``B`` the transpose of one of the output channels.

    Args:
        init: One of `INITS`.
        unfolded: The weight with the factor's channels as rows.
        width: Rows of the factor, at least ``c``.
        fan_in: Inputs of the layer the factor stands for; ``normal`` draws with variance 1/fan_in.
        share: Power of the weight's singular values that ``balanced`` gives to this factor.
        generator: Where the noise comes from.

    Returns:
        ``F`` and ``F+``.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> weight = torch.ones(1, 2, 5, dtype=torch.float64)
        >>> f, inverse = draw("normal", weight, 6, fan_in=2, share=1 / 3, generator=generator)
        >>> torch.allclose(inverse @ f, torch.eye(2, dtype=torch.float64))
        True
    """
    groups, channels, _ = unfolded.shape
    here: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}  # whatever the default device
    noise = torch.randn(groups, width, channels, generator=generator, **here)
    if init == "normal":
        u, s, vh = torch.linalg.svd(noise / math.sqrt(fan_in), full_matrices=False)
    else:
        u, vh = torch.linalg.qr(noise).Q, torch.eye(channels, **here)
        s = torch.ones(groups, channels, **here)
    if init == "balanced":
        squares, vectors = torch.linalg.eigh(unfolded @ unfolded.mT)
        s, vh = squares.clamp(min=0).sqrt() ** share, vectors.mT
    s = _well_conditioned(s)[:, None]
    return (u * s) @ vh, vh.mT @ (u / s).mT


def _well_conditioned(s: Float[Tensor, "g c"]) -> Float[Tensor, "g c"]:
    """Raise the smallest singular values to 1/`MAX_CONDITION` of the largest; all zeros to one."""
    largest = s.amax(dim=1, keepdim=True)
    floored = torch.maximum(s, largest / MAX_CONDITION)
    return torch.where(largest > 0, floored, torch.ones_like(s))
