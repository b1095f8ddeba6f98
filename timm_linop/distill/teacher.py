"""The dense teacher: frozen, and shown its own kind of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class Teacher(nn.Module):
    """A dense model that only looks: frozen, in eval mode, with its own input normalisation.

    Args:
        model: The dense teacher.
        mean: Per-channel mean that the student's images were normalised with.
        std: Per-channel standard deviation, likewise.
        own_mean: The teacher's own mean.
        own_std: The teacher's own standard deviation.
        size: Height and width of the images it is to see; None takes the student's.

    Example:
        >>> teacher = Teacher(nn.Flatten(), (0.0,), (1.0,), (0.5,), (0.5,))
        >>> teacher(torch.full((1, 1, 1, 1), 0.5))
        tensor([[0.]])
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        own_mean: Sequence[float],
        own_std: Sequence[float],
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.size = size
        self.num_classes = getattr(model, "num_classes", None)
        self.model = model.eval().requires_grad_(False)
        m, s, m_, s_ = (torch.tensor(v).view(-1, 1, 1) for v in (mean, std, own_mean, own_std))
        # (x s + m - m') / s' undoes the student's normalisation and applies the teacher's.
        self.register_buffer("scale", s / s_, persistent=False)
        self.register_buffer("shift", (m - m_) / s_, persistent=False)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode: the teacher's statistics are not to move."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "b c h w"]) -> Tensor:
        """Return the teacher's logits of the student's input."""
        if self.size is not None and self.size != tuple(x.shape[2:]):
            x = F.interpolate(x, self.size, mode="bicubic", antialias=True)
        return self.model(x * self.scale + self.shift)
