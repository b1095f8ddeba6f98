"""Distillation of logits: the student predicts what the teacher does, softened (KD).

Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def distill_logits(
    student: Float[Tensor, "b classes"], teacher: Float[Tensor, "b classes"], temperature: float
) -> Float[Tensor, ""]:
    """``T^2 KL(softmax(teacher / T) || softmax(student / T))``, mean over the batch.

    ``T^2`` keeps the gradient's size when the temperature changes (section 2 of the paper).

    Args:
        student: Its logits; gradients flow into these.
        teacher: Logits of the same images and classes.
        temperature: ``T > 0``; above 1 it brings out which wrong classes are close.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> distill_logits(logits, logits + 3, temperature=4.0)
        tensor(0.)
    """
    own, soft = (F.log_softmax(each.float() / temperature, dim=1) for each in (student, teacher))
    return temperature**2 * F.kl_div(own, soft, reduction="batchmean", log_target=True)
