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
# What a run adds to its arm's name, and what the card calls that; optimizers have their own names.
_KD, _MIXUP, _REFINED = "kd", "mixup", "refined"
_ADDED = {_KD: "distilled logits", "muon": "Muon", "cutmix": "CutMix", _REFINED: "refined labels"}
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
        mixup: It learnt from images mixed in pairs (Zhang et al.).
        refined: It learnt from labels that were refined meanwhile (CURL).
        scratch: It kept the pruned shape and not the weights.
    """

    dense: bool = False
    expanded: bool = False
    similarity: bool = False
    logits: bool = False
    mixup: bool = False
    refined: bool = False
    scratch: bool = False


def methods_of(arm: str) -> Methods:
    """Tell what an arm is made of, from its name.

    Example:
        >>> does = methods_of("LinOP, KD, muon, refined")
        >>> does.expanded, does.similarity, does.logits, does.refined, does.scratch
        (True, True, True, True, False)
    """
    name, added = _parts(arm)
    return Methods(
        dense=name in _DENSE,
        expanded=name in _EXPANDED,
        similarity=name in _DISTILLED,
        logits=_KD in added,
        mixup=_MIXUP in added,
        refined=_REFINED in added,
        scratch=name in _SCRATCH,
    )


def label(arm: str) -> str:
    """Name an arm to a reader.

    Example:
        >>> label("linop"), label("vanilla, KD, muon, mixup"), label("my own way")
        ('LinOP', 'Vanilla fine-tuning, with distilled logits, Muon and mixup', 'my own way')
    """
    name, added = _parts(arm)
    if name not in ARMS:
        return arm
    told = [_ADDED.get(each, each) for each in added]
    listed = " and ".join(filter(None, (", ".join(told[:-1]), *told[-1:])))
    return f"{ARMS[name]}, with {listed}" if listed else ARMS[name]


def _parts(arm: str) -> tuple[str, list[str]]:
    """An arm's name, where it can be one of `ARMS` and the longest of them, and what it adds."""
    words = arm.lower().split(", ")
    for length in range(len(words), 0, -1):
        if (name := ", ".join(words[:length])) in ARMS:
            return name, words[length:]
    return words[0], words[1:]
