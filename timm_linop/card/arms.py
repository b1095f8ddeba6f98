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
# What a run adds to its arm's name when it distils logits, and when it refines labels, too.
_KD, _REFINED = ", kd", ", refined"
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
        refined: It learnt from labels that were refined meanwhile (CURL).
        scratch: It kept the pruned shape and not the weights.
    """

    dense: bool = False
    expanded: bool = False
    similarity: bool = False
    logits: bool = False
    refined: bool = False
    scratch: bool = False


def methods_of(arm: str) -> Methods:
    """Tell what an arm is made of, from its name.

    Example:
        >>> does = methods_of("LinOP, KD, refined")
        >>> does.expanded, does.similarity, does.logits, does.refined, does.scratch
        (True, True, True, True, False)
    """
    name, logits, refined = _parts(arm)
    return Methods(
        dense=name in _DENSE,
        expanded=name in _EXPANDED,
        similarity=name in _DISTILLED,
        logits=logits,
        refined=refined,
        scratch=name in _SCRATCH,
    )


def label(arm: str) -> str:
    """Name an arm to a reader.

    Example:
        >>> label("linop"), label("vanilla, KD"), label("my own way")
        ('LinOP', 'Vanilla fine-tuning, with distilled logits', 'my own way')
    """
    name, logits, refined = _parts(arm)
    if name not in ARMS:
        return arm
    added = ["distilled logits"] * logits + ["refined labels"] * refined
    return f"{ARMS[name]}, with {' and '.join(added)}" if added else ARMS[name]


def _parts(arm: str) -> tuple[str, bool, bool]:
    """An arm's name in `ARMS`, and whether it distils logits and refines labels, too."""
    arm, refined = arm.lower().removesuffix(_REFINED), arm.lower().endswith(_REFINED)
    return arm.removesuffix(_KD), arm.endswith(_KD), refined
