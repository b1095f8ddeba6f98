r"""Similarity-preserving distillation (SP-KD): the student keeps which images look alike.

Sources: Tung & Mori, ICCV 2019; Qian et al. 2022, Eq. 8-12.

For each pair of layers, with the activations of ``b`` images flattened to ``Q`` (``b x D``):

    G~ = Q Q^T                                  who resembles whom          (Eq. 8, 9)
    G[i,:] = G~[i,:] / ||G~[i,:]||_2            row by row, L2              (Eq. 10)
    L_SP = 1/b^2 sum_pairs ||G_T - G_S||_F^2                                (Eq. 11)
    L = L_task + gamma L_SP,  gamma = 3000                                  (Eq. 12)

Grams are taken in sub-batches, as the paper's data parallelism does (8 x 32): the cost grows with
the batch, not with its square, and ``gamma`` keeps its meaning when the batch grows.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from timm_linop.errors import RecipeError, close_names
from timm_linop.gram import gram, rows_to_norm_1

Grams = Mapping[str, tuple[Tensor, ...]]  # by layer
PAIRS = ("all", "blocks", "stages", "last")


class SimilarityPreservingLoss(nn.Module):
    """``L_SP`` over pairs of same-named layers (Eq. 11).

    Args:
        pairs: Which layers are paired: ``all`` convolutions and linear layers, the last one of each
            of timm's ``blocks`` or ``stages``, the ``last`` before the classifier, or names.
        reduction: ``mean`` over the pairs, or the paper's ``sum``.
        sub_batch: Images per Gram matrix, at most; a batch is cut into even parts.

    Raises:
        RecipeError: If an argument is out of range.

    Example:
        >>> loss = SimilarityPreservingLoss()
        >>> student, teacher = torch.randn(8, 16), torch.randn(8, 64)
        >>> loss({"fc": student}, {"fc": teacher}) > 0
        tensor(True)
        >>> loss({"fc": teacher * 5}, {"fc": teacher}) < 1e-9  # scale does not matter
        tensor(True)
    """

    def __init__(
        self,
        pairs: str | Sequence[str] = "blocks",
        reduction: str = "mean",
        sub_batch: int = 32,
    ) -> None:
        super().__init__()
        if isinstance(pairs, str) and pairs not in PAIRS:
            raise RecipeError(
                f"pairs={pairs!r} is no choice of layers; use one of {', '.join(PAIRS)}, or a list "
                "of layer names." + close_names(pairs, PAIRS)
            )
        if reduction not in ("mean", "sum"):
            raise RecipeError(f"reduction={reduction!r}: use 'mean' over the pairs, or 'sum'.")
        if sub_batch < 2:
            raise RecipeError(f"sub_batch={sub_batch}: a Gram matrix needs 2 images or more.")
        self.pairs, self.reduction, self.sub_batch = pairs, reduction, sub_batch

    def forward(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]
    ) -> Float[Tensor, ""]:
        """Compare activations of the same images.

        Args:
            student: Layer name to activations, ``b x ...``; gradients flow into these.
            teacher: The same names, the same ``b``.

        Returns:
            A scalar in float32 (float64 for float64 activations).

        Raises:
            RecipeError: If there are no pairs or no images, or the two sides differ in their names
                or their numbers of images.
        """
        grams = [{name: self.grams(each) for name, each in s.items()} for s in (student, teacher)]
        return self.compare(*grams)

    def grams(self, activation: Float[Tensor, "b *rest"]) -> tuple[Tensor, ...]:
        """Take the Gram matrices ``G~`` of a batch's sub-batches (Eq. 8, 9).

        A hook that does so lets go of the activation, which is thousands of times larger.

        Args:
            activation: What a layer gave for ``b`` images, of any shape after the first axis.

        Returns:
            Sub-batches of one size stacked, ``parts x c x c``; two stacks where ``b`` is uneven.
        """
        if not len(activation):
            raise RecipeError("SP-KD got a batch of no images; leave it out.")
        parts = math.ceil(len(activation) / self.sub_batch)
        size, longer = divmod(len(activation), parts)
        if not longer:
            return (gram(activation.unflatten(0, (parts, size))),)
        cut = longer * (size + 1)
        stacks = activation[:cut].unflatten(0, (longer, size + 1)), activation[cut:]
        return gram(stacks[0]), gram(stacks[1].unflatten(0, (-1, size)))

    def compare(self, student: Grams, teacher: Grams) -> Float[Tensor, ""]:
        """Compare what `grams` took of both sides (Eq. 10, 11); see `forward`."""
        if not student:
            raise RecipeError("SP-KD has no pairs of layers; choose other pairs, or gamma=0.")
        _check_same_images(student, teacher)
        # Matrices of one size are compared at once, as they are small.
        stacks = defaultdict(list)
        for name in student:
            parts = sum(map(len, student[name]))
            for s, t in zip(student[name], teacher[name], strict=True):
                stacks[s.shape[-1]].append((s, t, s.new_full((len(s),), 1 / parts)))
        total = torch.stack([_stack_loss(*zip(*stack, strict=True)) for stack in stacks.values()])
        return total.sum() / len(student) if self.reduction == "mean" else total.sum()


def _check_same_images(student: Grams, teacher: Grams) -> None:
    if student.keys() != teacher.keys():
        unpaired = ", ".join(map(repr, sorted(student.keys() ^ teacher.keys())))
        raise RecipeError(
            f"SP-KD compares layers of the same name, but {unpaired} stands on one side only."
        )
    for name in student:
        rows = [sum(g.shape[0] * g.shape[1] for g in side[name]) for side in (student, teacher)]
        if rows[0] != rows[1]:
            raise RecipeError(
                f"SP-KD compares the same images, but {name!r} holds {rows[0]} rows of "
                f"the student and {rows[1]} of the teacher; give both one batch."
            )


def _stack_loss(
    student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], weights: tuple[Tensor, ...]
) -> Tensor:
    """Sum ``||G_T - G_S||_F^2 / c^2`` over sub-batches of ``c`` images, each by its weight."""
    s, t = rows_to_norm_1(torch.cat(student)), rows_to_norm_1(torch.cat(teacher))
    return (torch.cat(weights) * (t - s).square().mean((1, 2))).sum()
