"""What a card says of its results: the table's columns, and comparisons in sentences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from timm_linop import markdown
from timm_linop.card.arms import label, methods_of
from timm_linop.card.data import CardData, Result

# With a hyphen that a narrow column does not break at.
_TOP5 = "Top\u20115 (%)"


def columns(data: CardData) -> dict[str, list[str]]:
    """Lay out the table of results: cells by title, without the columns that nobody filled.

    Args:
        data: Its results are read, and of how many classes they are.

    Example:
        >>> columns(CardData("a", "resnet18", "linop", results=(Result("linop", 93.1),)))
        {'Accuracy (%)': ['93.10']}
    """
    titles: dict[str, tuple[str, Callable[[Any], str]]] = {
        "Accuracy (%)": ("accuracy", "{:.2f}".format),
        _TOP5: ("top5", "{:.2f}".format),
        "Parameters": ("parameters", markdown.count),
        "MACs": ("macs", markdown.count),
        "ms per image": ("latency_ms", "{:.3g}".format),
        "File": ("size_bytes", lambda size: f"{markdown.count(size)}B"),
        "Training": ("training_seconds", markdown.duration),
    }
    if data.dataset and 0 < len(data.dataset.classes) <= 5:
        del titles[_TOP5]  # among so few classes the first five are all
    cells = {
        title: [getattr(row, name) for row in data.results] for title, (name, _) in titles.items()
    }
    return {
        title: ["–" if value is None else titles[title][1](value) for value in values]
        for title, values in cells.items()
        if any(value is not None for value in values)
    }


def verdict(data: CardData, own: Result) -> list[str]:
    """Compare this model with the other arms, in sentences that are true whoever wins.

    Args:
        data: What the card tells.
        own: This model's row.

    Example:
        >>> data = CardData("a", "resnet18", "linop", results=(Result("linop", 93.1),))
        >>> verdict(data, data.results[0])
        ['It reaches 93.10 % top-1 accuracy.']
    """
    if own.accuracy is None:
        return []
    arm, reached, images = data.arm.lower(), own.accuracy, data.images
    does = methods_of(arm)
    on = f" on {images:,} {data.dataset.measured_on} images" if images and data.dataset else ""
    told = [f"It reaches {reached:.2f} % top-1 accuracy{on}."]
    others = {r.arm.lower(): r.accuracy for r in data.results[::-1] if r.accuracy is not None}
    del others[arm]
    if "vanilla" in others and arm != "pruned" and not does.dense:
        told.append(_gain(label(data.arm), reached, others["vanilla"], images))
    if "linop" in others and arm == "vanilla":
        linop = others["linop"]
        told.append(f"LinOP reached {linop:.2f} % from the same start, {_points(linop - reached)}.")
    if "dense" in others:
        dense, costs = others["dense"], _costs(data.row("dense"), own)
        told.append(f"The dense model reaches {dense:.2f} %, {_points(dense - reached)}{costs}.")
    if "pruned" in others and not does.dense:
        told.append(f"Pruned and not fine-tuned, it was at {others['pruned']:.2f} %.")
    return told


def _gain(label: str, reached: float, vanilla: float, images: int | None) -> str:
    """Say whether a method helped over vanilla fine-tuning, and plainly when it did not."""
    gain, noise = round(reached - vanilla, 2), margin(images, reached, vanilla)
    told = f"vanilla fine-tuning of the same pruned model reached {vanilla:.2f} %, {_points(-gain)}"
    if gain <= 0:
        return f"{label} did not help here: {told}."
    if noise and gain < noise:
        told += f"; on {images} images {noise:.1f} points can be chance, so no gain is shown"
    return f"{told.capitalize()}."


def margin(images: int | None, *accuracies: float | None) -> float | None:
    """Half the 95 % interval, in points, of an accuracy or of the difference of two.

    Args:
        images: How many it was measured on.
        accuracies: One or two, in percent.

    Example:
        >>> round(margin(500, 95.0), 1)
        1.9
    """
    spread = sum(known * (100 - known) for known in accuracies if known is not None)
    return 1.96 * math.sqrt(spread / images) if images and spread else None


def _points(difference: float) -> str:
    """Write a difference of two accuracies."""
    points = round(difference, 2)
    return f"{abs(points):.2f} points {'more' if points > 0 else 'less'}" if points else "the same"


def _costs(dense: Result | None, own: Result) -> str:
    """Say how much more the dense model costs, as far as both were counted."""
    told = [
        f"{getattr(dense, name) / getattr(own, name):.1f} times the {words}"
        for name, words in (("parameters", "parameters"), ("macs", "multiply-adds"))
        if getattr(dense, name, None) and getattr(own, name)
    ]
    return f", with {' and '.join(told)}" if told else ""
