"""The arms of a comparison: what a card calls them, and what each of them is made of."""

from __future__ import annotations

from dataclasses import dataclass

# The arms that the card has words for; any other one is named as it is.
ARMS = {
    "dense": "Dense",
    "expanded dense": "Dense, over-parameterised",
    "pruned": "Pruned, not fine-tuned",
    "vanilla": "Vanilla fine-tuning",
    "distilled": "Distillation without over-parameterisation",
    "expanded": "Over-parameterisation without distillation",
    "linop": "LinOP",
    "scratch": "Slim shape, trained from scratch",
    "scratch, distilled": "Slim shape, from scratch with distillation",
    "expandnets": "ExpandNets, from scratch",
    "expandnets, distilled": "ExpandNets, from scratch with distillation",
}
# What a run adds to its arm's name when it distils logits, too.
_KD = ", kd"
_DENSE = ("dense", "expanded dense")
_EXPANDED = ("expanded dense", "expanded", "linop", "expandnets", "expandnets, distilled")
_DISTILLED = ("distilled", "linop", "scratch, distilled", "expandnets, distilled")
_SCRATCH = ("scratch", "scratch, distilled", "expandnets", "expandnets, distilled")


@dataclass(frozen=True)
class Methods:
    """What an arm is made of.

    Attributes:
        dense: Nothing was pruned.
        expanded: It was trained over-parameterised.
        similarity: It learnt from its teacher's similarities (SP-KD).
        logits: It learnt from its teacher's logits (Hinton et al.).
        scratch: It kept the pruned shape and not the weights.
    """

    dense: bool = False
    expanded: bool = False
    similarity: bool = False
    logits: bool = False
    scratch: bool = False


def methods_of(arm: str) -> Methods:
    """Tell what an arm is made of, from its name.

    Example:
        >>> methods_of("LinOP, KD")
        Methods(dense=False, expanded=True, similarity=True, logits=True, scratch=False)
    """
    name = arm.lower().removesuffix(_KD)
    return Methods(
        dense=name in _DENSE,
        expanded=name in _EXPANDED,
        similarity=name in _DISTILLED,
        logits=arm.lower().endswith(_KD),
        scratch=name in _SCRATCH,
    )


def label(arm: str) -> str:
    """Name an arm to a reader.

    Example:
        >>> label("linop"), label("vanilla, KD"), label("my own way")
        ('LinOP', 'Vanilla fine-tuning, with distilled logits', 'my own way')
    """
    name = arm.lower().removesuffix(_KD)
    if name not in ARMS:
        return arm
    return f"{ARMS[name]}, with distilled logits" if methods_of(arm).logits else ARMS[name]
