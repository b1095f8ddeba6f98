"""The model card: plain data in, Markdown out. Its words are in ``hub_cards/model_card.md.j2``.

Names come from data sets and folders of others: all that is printed passes ``markdown.text``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from timm_linop import markdown
from timm_linop.errors import RecipeError

# The arms that the card has words for; any other one is named as it is.
ARMS = {
    "dense": "Dense",
    "pruned": "Pruned, not fine-tuned",
    "vanilla": "Vanilla fine-tuning",
    "distilled": "Distillation without over-parameterisation",
    "expanded": "Over-parameterisation without distillation",
    "linop": "LinOP",
}
_ENVIRONMENT = Environment(
    # In a wheel the template lies inside the package, in a checkout beside it.
    loader=FileSystemLoader([Path(__file__).parents[up] / "hub_cards" for up in (0, 1)]),
    undefined=StrictUndefined,
    autoescape=True,
    finalize=markdown.text,
    trim_blocks=True,
)
for _name in ("code", "command", "count", "link", "literal"):
    _ENVIRONMENT.filters[_name] = getattr(markdown, _name)
_ENVIRONMENT.filters["verbatim"] = Markup


@dataclass(frozen=True)
class Result:
    """What one arm reached and costs: accuracy in percent, multiply-adds and time per image."""

    arm: str
    accuracy: float | None = None
    parameters: int | None = None
    macs: int | None = None
    latency_ms: float | None = None
    size_bytes: int | None = None
    training_seconds: float | None = None

    def __post_init__(self) -> None:
        """Refuse an accuracy that is no percentage."""
        if self.accuracy is not None and not 0 <= self.accuracy <= 100:
            raise RecipeError(f"accuracy={self.accuracy} of {self.arm!r} is not within 0 to 100 %.")


@dataclass(frozen=True)
class Dataset:
    """The data: classes in the model's order, images per split, and the split that was measured."""

    name: str
    classes: tuple[str, ...] = ()
    splits: Mapping[str, int] = field(default_factory=dict)
    measured_on: str = "validation"
    hub_id: str | None = None


@dataclass(frozen=True)
class Pruning:
    """How the dense model became slim; ``widths`` holds (dense, slim) output channels by layer."""

    method: str
    parameters_before: int
    parameters_after: int
    ratio: float | None = None
    widths: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """A picture beside the card, by its path relative to the card."""

    path: str
    caption: str


@dataclass(frozen=True)
class CardData:
    """All that a card can tell. What is not known is left out, here and in the card.

    Attributes:
        name: The model's name and the card's title.
        architecture: timm's name of the base architecture.
        arm: How this model was made, best one of ARMS; its row in ``results`` has the same.
        repo: The model's Hub id, ``owner/name``; without one the snippet loads ``folder``.
        folder: The name of the model's folder.
        license: The licence's identifier on the Hub.
        teacher: The dense teacher's name, for the reader.
        teacher_id: The dense teacher's Hub id; only such a teacher becomes the ``base_model``.
        hyperparameters: The settings chosen for this run.
        defaults: The settings left as they were, folded in the card.
        machine: What latencies were measured on, as ``bench.machine`` tells it.
        free: The owner's own Markdown by section, ``notes`` and ``limits``, as :func:`free_text`
            reads it from the card before this one.

    Raises:
        RecipeError: An id is not a Hub id.
    """

    name: str
    architecture: str
    arm: str
    repo: str | None = None
    folder: str = "slim"
    task: str = "image-classification"
    license: str | None = None
    teacher: str | None = None
    teacher_id: str | None = None
    dataset: Dataset | None = None
    tags: tuple[str, ...] = ()
    results: tuple[Result, ...] = ()
    pruning: Pruning | None = None
    figures: tuple[Figure, ...] = ()
    input_size: tuple[int, int, int] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    hyperparameters: Mapping[str, object] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    command: str | None = None
    free: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse ids that the Hub would refuse."""
        _check_id("repo", self.repo, "its folder= instead")
        _check_id("teacher_id", self.teacher_id, "what it is called as teacher= instead")
        if self.dataset:
            _check_id("hub_id", self.dataset.hub_id, "its name alone", r"([\w-]+/)?\w[\w.-]*")

    def row(self, arm: str) -> Result | None:
        """Find the results of an arm."""
        return next((row for row in self.results if row.arm.lower() == arm.lower()), None)

    @property
    def images(self) -> int | None:
        """How many images the accuracies were measured on, where that is known."""
        return self.dataset.splits.get(self.dataset.measured_on) if self.dataset else None


def render(data: CardData) -> str:
    """Write a model's card: the Hub's metadata, then the text.

    Example:
        >>> card = render(CardData("tiny", "resnet18", "pruned", repo="me/tiny", license="mit"))
        >>> card.splitlines()[:4], "# tiny" in card
        (['---', 'library_name: timm', 'license: mit', 'pipeline_tag: image-classification'], True)
    """
    own = data.row(data.arm)
    body = _ENVIRONMENT.get_template("model_card.md.j2").render(
        data=data,
        arm=data.arm.lower(),
        arms=ARMS,
        columns=_columns(data.results),
        verdict=_verdict(data, own) if own else [],
        margin=_margin(data.images, own.accuracy) if own else None,
    )
    return f"---\n{_metadata(data, own).to_yaml()}\n---\n\n{body}\n"


def free_text(card: str) -> dict[str, str]:
    r"""Read the sections of a card that its owner may edit, to hand them to the next card.

    Example:
        >>> free_text("<!-- free: notes -->\nBeware of owls.\n<!-- /free: notes -->\n")
        {'notes': 'Beware of owls.'}
    """
    sections = re.finditer(r"^<!-- free: (\w+) -->\n(.*?)^<!-- /free: \1 -->$", card, re.M | re.S)
    return {name: text.strip() for name, text in (section.groups() for section in sections)}


def _metadata(data: CardData, own: Result | None) -> ModelCardData:
    """Fill in the Hub's form. The accuracy is a share there, as the Hub's metric defines it."""
    arm, dataset, results = data.arm.lower(), data.dataset, None
    if own and own.accuracy is not None and dataset:
        name = markdown.public(dataset.name)
        results = [
            EvalResult(
                task_type=data.task,
                dataset_type=dataset.hub_id or re.sub(r"[^\w.-]+", "-", name.lower()),
                dataset_name=name,
                dataset_split=markdown.public(dataset.measured_on),
                metric_type="accuracy",
                metric_name="Top-1 accuracy",
                metric_value=round(own.accuracy / 100, 6),
            )
        ]
    tags = ["timm", "timm_linop", *(["pruned"] if data.pruning or arm != "dense" else [])]
    tags += [*(["linop"] if arm in ("linop", "expanded") else []), *data.tags]
    return ModelCardData(
        library_name="timm",
        license=data.license and markdown.public(data.license),
        base_model=data.teacher_id,
        base_model_relation=data.teacher_id and "finetune",
        pipeline_tag=data.task,
        datasets=[dataset.hub_id] if dataset and dataset.hub_id else None,
        metrics=["accuracy"] if results else None,
        tags=[markdown.public(tag) for tag in tags],
        model_name=markdown.public(data.name) if results else None,
        eval_results=results,
    )


def _columns(rows: tuple[Result, ...]) -> dict[str, list[str]]:
    """Lay out the table of results: cells by title, without the columns that nobody filled."""
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "Accuracy (%)": ("accuracy", "{:.2f}".format),
        "Parameters": ("parameters", markdown.count),
        "Multiply-adds": ("macs", markdown.count),
        "Latency (ms per image)": ("latency_ms", "{:.3g}".format),
        "File": ("size_bytes", lambda size: f"{markdown.count(size)}B"),
        "Training": ("training_seconds", markdown.duration),
    }
    cells = {title: [getattr(row, name) for row in rows] for title, (name, _) in columns.items()}
    return {
        title: ["–" if value is None else columns[title][1](value) for value in values]
        for title, values in cells.items()
        if any(value is not None for value in values)
    }


def _verdict(data: CardData, own: Result) -> list[str]:
    """Compare this model with the other arms, in sentences that are true whoever wins."""
    if own.accuracy is None:
        return []
    arm, reached, images = data.arm.lower(), own.accuracy, data.images
    on = f" on {images:,} {data.dataset.measured_on} images" if images and data.dataset else ""
    told = [f"It reaches {reached:.2f} % top-1 accuracy{on}."]
    others = {r.arm.lower(): r.accuracy for r in data.results[::-1] if r.accuracy is not None}
    del others[arm]
    if "vanilla" in others and arm not in ("dense", "pruned"):
        told.append(_gain(ARMS.get(arm, data.arm), reached, others["vanilla"], images))
    if "linop" in others and arm == "vanilla":
        linop = others["linop"]
        told.append(f"LinOP reached {linop:.2f} % from the same start, {_points(linop - reached)}.")
    if "dense" in others:
        dense, costs = others["dense"], _costs(data.row("dense"), own)
        told.append(f"The dense model reaches {dense:.2f} %, {_points(dense - reached)}{costs}.")
    if "pruned" in others and arm != "dense":
        told.append(f"Pruned and not fine-tuned, it was at {others['pruned']:.2f} %.")
    return told


def _gain(label: str, reached: float, vanilla: float, images: int | None) -> str:
    """Say whether a method helped over vanilla fine-tuning, and plainly when it did not."""
    gain, noise = round(reached - vanilla, 2), _margin(images, reached, vanilla)
    told = f"vanilla fine-tuning of the same pruned model reached {vanilla:.2f} %, {_points(-gain)}"
    if gain <= 0:
        return f"{label} did not help here: {told}."
    if noise and gain < noise:
        told += f"; on {images} images {noise:.1f} points can be chance, so no gain is shown"
    return f"{told.capitalize()}."


def _margin(images: int | None, *accuracies: float | None) -> float | None:
    """Half the 95 % interval, in points, of an accuracy or of the difference of two."""
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


def _check_id(
    what: str, value: str | None, instead: str, pattern: str = r"[\w-]+/\w[\w.-]*"
) -> None:
    """Refuse what cannot be an id on the Hub."""
    if value is not None and not re.fullmatch(pattern, value, re.ASCII):
        raise RecipeError(f"{what}={value!r} is no id on the Hub; give owner/name, or {instead}.")
