"""What a run says before it trains where its user may have meant something else."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from .card import Result
from .recipe import Recipe

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
