"""The recovery study's questions, and what its rows answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from benchmarks.recovery_arms import DEFAULT, KD_MUON, PLAIN_MIXED, TAUGHT_MIXED
from benchmarks.recovery_plan import GRIDS, Grid, Rows
from benchmarks.recovery_summary import (
    PLAIN,
    TAUGHT,
    chosen,
    difference,
    interval,
    is_whole,
    signed,
)

SIMILAR, BOTH = "fine-tuning + mean SP", "fine-tuning + KD + mean SP"
CONTROLLED = ("mixup", "taught", "patient", "taught-long")  # the default beside its controls
SHARES = tuple(sorted(GRIDS["main"].removed))


@dataclass(frozen=True)
class Question:
    """Whether an arm is better than another.

    Attributes:
        asked: Of what, in a few words.
        arm: The one.
        against: The other.
        grids: Where both are, by name, each at its longest schedule.
    """

    asked: str
    arm: str
    against: str
    grids: tuple[str, ...]


QUESTIONS = (
    Question(
        "expansion",
        "expanded",
        PLAIN,
        ("main", "length", "long", "varied", "full", "mobilenet", "digits"),
    ),
    Question(
        "expansion, with KD", "expanded + KD", TAUGHT, ("main", "full", "mobilenet", "digits")
    ),
    Question("expansion, with KD under Muon", "expanded + KD, Muon", KD_MUON, ("muon",)),
    Question(
        "expansion, with KD and mixup", "expanded + KD, mixup", TAUGHT_MIXED, ("taught-expanded",)
    ),
    Question("expansion, with gentle SP", "expanded + mean SP", SIMILAR, ("gentle",)),
    Question("expansion, with KD and gentle SP", "expanded + KD + mean SP", BOTH, ("gentle",)),
    Question("expansion and SP, as in the paper", "LinOP (paper)", "fine-tuning + SP", ("paper",)),
    Question("expansion of new weights", "ExpandNets", "from scratch", ("paper",)),
    Question("SP, as in the paper", "fine-tuning + SP", PLAIN, ("paper",)),
    Question("KD", TAUGHT, PLAIN, ("main", "full", "mobilenet", "digits")),
    Question("gentle SP", SIMILAR, PLAIN, ("gentle",)),
    Question("gentle SP beside KD", BOTH, TAUGHT, ("gentle",)),
    Question("Muon", "fine-tuning, Muon", PLAIN, ("muon", "digits")),
    Question("KD, both under Muon", KD_MUON, "fine-tuning, Muon", ("muon", "digits")),
    Question("Muon, both with KD", KD_MUON, TAUGHT, ("main", "mobilenet", "digits")),
    Question(
        "KD and Muon",
        KD_MUON,
        PLAIN,
        ("main", "kd-muon", "long", "varied", "full", "mobilenet", "digits"),
    ),
    Question("mixup", PLAIN_MIXED, PLAIN, CONTROLLED),
    Question("mixup, both with KD and Muon", DEFAULT, KD_MUON, ("mixup",)),
    Question("KD, both with mixup", TAUGHT_MIXED, PLAIN_MIXED, ("mixup", "taught-expanded")),
    Question("KD and Muon, both with mixup", DEFAULT, PLAIN_MIXED, CONTROLLED),
    Question("KD, Muon and mixup, the default", DEFAULT, PLAIN, CONTROLLED),
)


# What LinOP leads plain fine-tuning by in the paper, in points.
MARGINS = {0.92: "1.2", 0.95: "1.9", 0.985: "2.5 at 98.7 %"}


def leads(rows: Rows) -> str:
    """Lay out the default's lead over its controls, beside the margins that the paper has.

    Args:
        rows: Those of the CSV.

    Returns:
        Markdown: a line a control and grid, with the accuracy of the dense networks there;
        differences in points with their intervals, bold where those are clear of zero.
    """
    shares = sorted(GRIDS["mixup"].removed)
    heads = ("the default, compared to", "dense network", "epochs", *map(_percent, shares))
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for against in (PLAIN, PLAIN_MIXED):
        found = (_lead(rows, GRIDS[name], against, shares) for name in CONTROLLED)
        lines += [
            f"| {' | '.join((against if nth == 0 else '', *cells))} |"
            for nth, cells in enumerate(filter(None, found))
        ]
    margins = (MARGINS.get(share, "") for share in shares)
    lines.append(f"| LinOP to fine-tuning, in the paper |  |  | {' | '.join(margins)} |")
    return "\n".join(lines)


def _lead(rows: Rows, grid: Grid, against: str, shares: Sequence[float]) -> list[str]:
    """Accuracy of the dense networks, length, and the lead at each share; or nothing."""
    (epochs,) = grid.epochs
    both = replace(grid, arms=(DEFAULT, against))
    whole = [share for share in grid.removed if is_whole(rows, both, share, epochs)]
    if not whole:
        return []
    dense = fmean(row.dense for row in chosen(rows, grid, whole[0], against, epochs).values())
    found = {
        share: interval(*difference(rows, both, [(share, epochs)], DEFAULT, against))
        for share in whole
    }
    return [f"{dense:.1f} %", str(epochs), *(found.get(share, "") for share in shares)]


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def answers(rows: Rows) -> str:
    """Lay out what each lever gives: questions down, shares of weights removed across.

    Args:
        rows: Those of the CSV.

    Returns:
        Markdown: differences in points, bold where the interval is clear of zero, and their mean
        over the shares that are whole.
    """
    heads = ("what it adds", "grid", "epochs", "seeds", *map(_percent, SHARES), "mean")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for question in QUESTIONS:
        found = {name: _answer(rows, question, GRIDS[name]) for name in question.grids}
        told = [(name, *cells) for name, cells in found.items() if cells]
        lines += [
            f"| {' | '.join((question.asked if nth == 0 else '', *cells))} |"
            for nth, cells in enumerate(told)
        ]
    return "\n".join(lines)


def _answer(rows: Rows, question: Question, grid: Grid) -> list[str]:
    """Length, seeds, the difference at each share that is whole, and their mean; or nothing."""
    epochs = max(grid.epochs)
    both = replace(grid, arms=(question.arm, question.against))
    whole = [share for share in grid.removed if is_whole(rows, both, share, epochs)]
    if not whole:
        return []

    def found(shares: Sequence[float]) -> tuple[float, float, float]:
        places = [(share, epochs) for share in shares]
        return difference(rows, both, places, question.arm, question.against)

    cells = (signed(*found([share])) if share in whole else "" for share in SHARES)
    return [str(epochs), str(grid.seeds), *cells, interval(*found(whole))]
