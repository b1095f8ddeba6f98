"""Which layers of student and teacher SP-KD compares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from timm.models import group_modules
from torch import nn

from timm_linop.distill.loss import PAIRS
from timm_linop.errors import RecipeError, UnknownLayerError, close_names

_SHORTCUTS = ("downsample", "shortcut")
# timm's channel gates, which stand after a block's last convolution and are not its output.
_GATES = ("SEModule", "SqueezeExcite", "EffectiveSEModule", "EcaModule", "CecaModule")


def pair_up(student: nn.Module, teacher: nn.Module, pairs: Sequence[str]) -> dict[str, str]:
    """Choose the layers that SP-KD compares, also between two architectures.

    Args:
        student: Slim or expanded.
        teacher: The dense model it was pruned from, or another one.
        pairs: One of `PAIRS`, or layer names, or ``student=teacher`` where the names differ.
            ``stages`` of two architectures are the last modules at each resolution that both have,
            as timm's ``feature_info`` tells them.

    Returns:
        Layer of the student to layer of the teacher.

    Raises:
        RecipeError: If no stages can be paired.
        UnknownLayerError: If a chosen layer is missing on either side.

    Example:
        >>> import timm
        >>> student, teacher = timm.create_model("test_efficientnet"), timm.create_model("resnet18")
        >>> pair_up(student, teacher, ["stages"])
        {'blocks.0': 'act1', 'blocks.1': 'layer1', 'blocks.2': 'layer2', ...}
        >>> pair_up(student, teacher, ["conv_head=layer4.1.conv2"])
        {'conv_head': 'layer4.1.conv2'}
    """
    if len(pairs) > 1 or pairs[0] not in PAIRS:
        halves = (pair.partition("=") for pair in pairs)
        named = {own: theirs or own for own, _, theirs in halves}
        _check_known(teacher, "teacher", named.values())
        _check_known(student, "student", named)
        return named
    try:
        return {name: name for name in paired_layers(student, teacher, pairs[0])}
    except UnknownLayerError as error:
        if pairs[0] != "stages":
            raise UnknownLayerError(
                f"{error} If the teacher is of another architecture, use --pairs stages, or "
                "student=teacher pairs of layers."
            ) from error
    ends = [_ends_by_reduction(model) for model in (student, teacher)]
    paired = {name: ends[1][at] for at, name in ends[0].items() if at in ends[1]}
    if not paired:
        raise RecipeError(
            f"the stages of {type(student).__name__} and {type(teacher).__name__} have no "
            "resolution in common; pair layers by name, --pairs student=teacher."
        )
    return paired


def _ends_by_reduction(model: Any) -> dict[int, str]:
    """The last module at each resolution: reduction (input pixels an output pixel) to its name."""
    info = getattr(model, "feature_info", [])
    info = info.get_dicts() if hasattr(info, "get_dicts") else info
    return {stage["reduction"]: stage["module"] for stage in info}


def _check_known(model: nn.Module, side: str, names: Iterable[str]) -> None:
    known = dict(model.named_modules())
    for name in names:
        if name not in known:
            raise UnknownLayerError(
                f"SP-KD pairs {name!r}, which the {side} has not; name the dense model this "
                "one was pruned from as --teacher, or other layers, or set --gamma 0."
                + close_names(name, known if "." in name else (*PAIRS, *known))
            )


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
    _check_known(teacher, "teacher", names)
    _check_known(student, "student", names)
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
