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
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float
from timm.models import group_modules
from torch import Tensor, nn

from .errors import RecipeError, UnknownLayerError, close_names
from .gram import gram, rows_to_norm_1

Grams = Mapping[str, tuple[Tensor, ...]]  # by layer
PAIRS = ("all", "blocks", "stages", "last")
_SHORTCUTS = ("downsample", "shortcut")
# timm's channel gates, which stand after a block's last convolution and are not its output.
_GATES = ("SEModule", "SqueezeExcite", "EffectiveSEModule", "EcaModule", "CecaModule")


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


def paired_layers(student: nn.Module, teacher: nn.Module, pairs: str | Sequence[str]) -> list[str]:
    """Choose the layers that SP-KD compares: same-named in student and teacher.

    Args:
        student: Slim or expanded.
        teacher: The dense model it was pruned from.
        pairs: One of `PAIRS`, or layer names.

    Returns:
        Names of convolutions and linear layers, in the teacher's order.

    Raises:
        RecipeError: If the teacher does not say where its blocks or stages are.
        UnknownLayerError: If a chosen layer is missing on either side.

    Example:
        >>> import timm
        >>> model = timm.create_model("test_resnet")
        >>> paired_layers(model, model, "stages")
        ['conv1.6', 'layer1.0.conv2', 'layer2.0.conv2', 'layer3.0.conv3', 'layer4.0.conv2']
    """
    kinds = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
    layers = [name for name, module in teacher.named_modules() if isinstance(module, kinds)]
    names = _choose(teacher, layers, pairs) if isinstance(pairs, str) else list(pairs)
    for side, model in (("teacher", teacher), ("student", student)):
        known = dict(model.named_modules())
        for name in names:
            if name not in known:
                raise UnknownLayerError(
                    f"SP-KD pairs {name!r}, which the {side} has not; name the dense model this "
                    "one was pruned from as --teacher, or other layers, or set --gamma 0."
                    + close_names(name, known)
                )
    return names


def _choose(teacher: Any, layers: list[str], pairs: str) -> list[str]:
    if pairs == "all":
        return layers
    heads = (getattr(teacher, "pretrained_cfg", None) or {}).get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    gates = tuple(f"{n}." for n, m in teacher.named_modules() if type(m).__name__ in _GATES)
    aside = [n for n in layers if n.startswith(gates) or any(s in n for s in _SHORTCUTS)]
    trunk = [n for n in layers if n not in heads and n not in aside]
    if pairs == "last":
        return trunk[-1:]
    if not hasattr(teacher, "group_matcher"):
        raise RecipeError(
            f"{type(teacher).__name__} does not say where its {pairs} are (it has no "
            "group_matcher), so SP-KD cannot pair them; use pairs='all', 'last', or layer names."
        )
    groups = group_modules(teacher, teacher.group_matcher(coarse=pairs == "stages"))
    members = [[name for name in trunk if name in group] for group in map(set, groups.values())]
    ends = {layers[-1] for layers in members if layers}
    return [name for name in trunk if name in ends]


class Taps:
    """Collect the outputs of named layers while the context is open.

    Args:
        model: Any model; under DistributedDataParallel, the module inside.
        names: Names of its layers.
        see: What is kept of an output; None keeps it whole.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> with Taps(model, ["0"]) as activations:
        ...     _ = model(torch.randn(2, 4))
        >>> activations["0"].shape
        torch.Size([2, 3])
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], see: Callable[[Tensor], Any] | None = None
    ) -> None:
        self.model, self.names, self.see = model, names, see
        self.seen: dict[str, Any] = {}

    def __enter__(self) -> dict[str, Any]:
        modules = [self.model.get_submodule(name) for name in self.names]  # all known, or no hook
        self._handles = [
            module.register_forward_hook(self._keep(name))
            for name, module in zip(self.names, modules, strict=True)
        ]
        return self.seen

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self.seen[name] = output if self.see is None else self.see(output)

        return hook


class Teacher(nn.Module):
    """A dense model that only looks: frozen, in eval mode, with its own input normalisation.

    Args:
        model: The dense teacher.
        mean: Per-channel mean that the student's images were normalised with.
        std: Per-channel standard deviation, likewise.
        own_mean: The teacher's own mean.
        own_std: The teacher's own standard deviation.

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
    ) -> None:
        super().__init__()
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
        return self.model(x * self.scale + self.shift)
