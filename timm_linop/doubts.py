"""What a run says before it trains where its user may have meant something else."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from timm.data import resolve_input_data_config
from torch import nn

from .card import Result
from .recipe import ModelConfig, Recipe

_log = logging.getLogger(__name__)


def warn_of_recipe(given: Recipe, effective: Recipe) -> None:
    """Warn of what a recipe does though nothing in it says so.

    Args:
        given: As it was asked for.
        effective: What `Recipe.effective` made of it.
    """
    for doubt in _of_recipe(given, effective):
        _log.warning(doubt)


def _of_recipe(given: Recipe, effective: Recipe) -> Iterator[str]:
    unnamed = given.expand.rate is None and not effective.distill.gamma  # with SP-KD it is LinOP
    if unnamed and effective.expand.rate:
        yield (
            "Layers are expanded, as --pruned does by itself; "
            f"--rate {effective.expand.rate:g} says so, --rate 0 leaves it out. In our study "
            "expansion did not pay (docs/recovery.md); --recipe default does without it."
        )
    if effective.distill.teacher and not effective.distill.asked:
        yield (
            f"teacher={effective.distill.teacher!r} is not asked: kd_weight and gamma are 0. Give "
            "one of them a weight, or leave --teacher out."
        )


def warn_of_size(asked: ModelConfig, model: nn.Module) -> None:
    """Warn of images of another size than those that a pruned model was saved for.

    A convolutional network takes them without a word, and has another accuracy there.

    Args:
        asked: Its ``pruned`` and ``img_size`` are read. Where it names an architecture, too, the
            weights may tell no size of their own.
        model: What was built of it.
    """
    _, height, width = resolve_input_data_config(model)["input_size"]
    own = asked.pruned is not None and asked.model is None
    if own and asked.img_size and (height, width) != (asked.img_size,) * 2:
        _log.warning(
            f"--pruned {asked.pruned} was saved for images of {height} x {width}, and --img-size "
            f"{asked.img_size} gives it others; leave --img-size out to keep its own."
        )


def warn_of_teacher(measured: Sequence[Result]) -> None:
    """Warn of a teacher that knows no more than its student does before it is trained.

    Args:
        measured: ``dense``, the teacher, and ``pruned``, the start, on validation images; without
            both there is nothing to compare.
    """
    reached = {row.arm: row.accuracy or 0.0 for row in measured}
    if reached.keys() >= {"dense", "pruned"} and reached["dense"] <= reached["pruned"]:
        _log.warning(
            f"The teacher has {reached['dense']:.2f} % on validation images, no more than the "
            f"pruned model before training ({reached['pruned']:.2f} %). Is --teacher the trained "
            "dense model? (A slim model that was trained already may pass it.)"
        )
