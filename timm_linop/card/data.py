"""All that a card can tell, as plain data. What is not known is left out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from timm_linop.errors import RecipeError


@dataclass(frozen=True)
class Result:
    """What one arm reached and costs: accuracies in percent, multiply-adds and time per image."""

    arm: str
    accuracy: float | None = None
    parameters: int | None = None
    macs: int | None = None
    latency_ms: float | None = None
    size_bytes: int | None = None
    training_seconds: float | None = None
    top5: float | None = None

    def __post_init__(self) -> None:
        """Refuse an accuracy that is no percentage."""
        for value in (self.accuracy, self.top5):
            if value is not None and not 0 <= value <= 100:
                raise RecipeError(f"accuracy={value} of {self.arm!r} is not within 0 to 100 %.")


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
    """How the dense model became slim.

    ``widths`` holds (dense, slim) output channels by layer, ``target`` what was aimed at where that
    was no ratio: "target_macs 0.3".
    """

    method: str
    parameters_before: int
    parameters_after: int
    ratio: float | None = None
    widths: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    target: str | None = None

    @property
    def title(self) -> str:
        """The method's name in a sentence."""
        return self.method.upper() if self.method in ("admm", "tpp", "curl") else self.method

    @property
    def trained(self) -> bool:
        """Whether the method trains while it prunes."""
        return self.method in ("admm", "tpp")


@dataclass(frozen=True)
class Contraction:
    """How far the logits of so many images moved when the chains became layers, by their norm."""

    moved: float
    images: int


@dataclass(frozen=True)
class ClassResult:
    """How many images of a class were measured, and how many of them recognised."""

    name: str
    images: int
    right: int


@dataclass(frozen=True)
class Figure:
    """A picture beside the card, by its path relative to the card; as wide as the text, or less."""

    path: str
    caption: str
    width: int | None = None


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
        differences: By arm, the settings in which its run was unlike this one: theirs, ours.
        contraction: What was measured when this model was contracted.
        weakest: The classes recognised least, where any image was not.
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
    differences: Mapping[str, Mapping[str, tuple[object, object]]] = field(default_factory=dict)
    pruning: Pruning | None = None
    contraction: Contraction | None = None
    weakest: tuple[ClassResult, ...] = ()
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


def _check_id(
    what: str, value: str | None, instead: str, pattern: str = r"[\w-]+/\w[\w.-]*"
) -> None:
    """Refuse what cannot be an id on the Hub."""
    if value is not None and not re.fullmatch(pattern, value, re.ASCII):
        raise RecipeError(f"{what}={value!r} is no id on the Hub; give owner/name, or {instead}.")
