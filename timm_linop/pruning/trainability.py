"""How trainable a network is, and OrthP, which makes a pruned one trainable again.

Signals and gradients pass a network at their own length where all singular values of its
input-output Jacobian are 1 (dynamical isometry; Saxe et al., ICLR 2014). Their mean, the mean JSV,
falls when a network is pruned, and with it the pace of further training (Wang & Fu, ICLR 2023).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from ..errors import DataError, PruningError
from ..expand import is_expanded

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


@torch.no_grad()
def mean_jacobian_singular_value(model: nn.Module, images: Tensor, chunk: int = 16) -> float:
    """Mean singular value of ``d logits / d input``, over all of an image's and over images.

    Args:
        model: Gives logits, ``b x classes``; it is measured in eval mode and left as it was.
        images: A batch, ``b x ...``, of ``D`` numbers each.
        chunk: Images at a time; an image's Jacobian holds ``classes x D`` numbers.

    Returns:
        The mean JSV; for a linear network that of the product of its weights.

    Raises:
        DataError: If there are no images.
        PruningError: If the model does not give logits.
        RuntimeError: torch's own, where an operation of the model cannot be run by
            `torch.func.vmap`, such as one that reads numbers out of tensors.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 0, 0], [0, 1, 0]]))
        >>> mean_jacobian_singular_value(model, torch.randn(5, 3))
        2.0
    """
    if not len(images):
        raise DataError("the mean JSV is one over images, but there are none; give some.")

    def logits(image: Tensor) -> Any:
        output = model(image[None])
        if not isinstance(output, Tensor) or output.ndim != 2:
            raise PruningError(
                "the Jacobian is that of logits, images x classes, but the model gives something "
                "else; measure the whole classifier."
            )
        return output[0]

    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        jacobians = (vmap(jacrev(logits))(part) for part in images.split(chunk))
        values = torch.cat([torch.linalg.svdvals(each.flatten(2)) for each in jacobians])
    finally:
        for module, training in modes.items():
            module.training = training
    return values.mean().item()


@torch.no_grad()
def orthogonalize(model: nn.Module, gain: float = 1.0) -> nn.Module:
    """OrthP: replace each weight of convolutions and linear layers by an orthogonal one near it.

    A weight ``W``, flattened to ``N x D``, becomes ``gain Q`` with ``Q R`` the QR factorisation of
    ``W`` (of ``W^T`` where ``N < D``) and the diagonal of ``R`` positive: orthonormal filters in
    the order of the old ones, or orthonormal columns where there are more filters than numbers.

    Args:
        model: A pruned model; it is changed.
        gain: That of its activations, ``nn.init.calculate_gain("relu")``; 1 for none.

    Returns:
        The model.

    Raises:
        PruningError: If the model is expanded: its weights are products then, and cannot be set.

    Example:
        >>> layer = orthogonalize(nn.Linear(6, 3))
        >>> torch.allclose(layer.weight @ layer.weight.T, torch.eye(3), atol=1e-6)
        True
    """
    if is_expanded(model):
        raise PruningError("the model is expanded; contract(model) it before orthogonalising.")
    for module in model.modules():
        if isinstance(module, _LAYERS):
            module.weight.copy_(gain * _orthogonal(module.weight.flatten(1)).view_as(module.weight))
    return model


def _orthogonal(rows: Tensor) -> Tensor:
    """The Q of a matrix, or its transpose's; with a sign for each column that leaves Q unique."""
    wide = rows.shape[0] < rows.shape[1]
    q, r = torch.linalg.qr(rows.T if wide else rows)
    q = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
    return q.T if wide else q
