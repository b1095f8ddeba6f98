"""The recovery study's questions, and what its rows answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from benchmarks.recovery_arms import (
    CONTROLLED,
    DEFAULT,
    DISTILLED,
    EXPANDED_MIXED,
    KD_MUON,
    MUON_ALONE,
    PLAIN,
    PLAIN_MIXED,
    TAUGHT,
    TAUGHT_MIXED,
)
from benchmarks.recovery_plan import GRIDS, Grid, Rows
from benchmarks.recovery_summary import (
    Place,
    chosen,
    difference,
    head,
    interval,
    is_whole,
    line,
    percent,
    signed,
    spread,
)

SIMILAR, BOTH = "fine-tuning + mean SP", "fine-tuning + KD + mean SP"


def _with(arms: Iterable[str]) -> tuple[str, ...]:
    """The grids that have all of these arms, by name."""
    return tuple(name for name, grid in GRIDS.items() if set(arms) <= set(grid.arms))


BESIDE_CONTROLS = _with(CONTROLLED)
BESIDE_DISTILLATION = _with(DISTILLED)
MIXED_ALIKE = _with((TAUGHT_MIXED, DEFAULT))
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
        "expansion, with KD and mixup",
        EXPANDED_MIXED,
        TAUGHT_MIXED,
        _with((EXPANDED_MIXED, TAUGHT_MIXED)),
    ),
    Question("expansion, with gentle SP", "expanded + mean SP", SIMILAR, ("gentle",)),
    Question("expansion, with KD and gentle SP", "expanded + KD + mean SP", BOTH, ("gentle",)),
    Question("expansion and SP, as in the paper", "LinOP (paper)", "fine-tuning + SP", ("paper",)),
    Question("expansion of new weights", "ExpandNets", "from scratch", ("paper",)),
    Question("SP, as in the paper", "fine-tuning + SP", PLAIN, ("paper",)),
    Question("KD", TAUGHT, PLAIN, ("main", "full", "mobilenet", "digits", *BESIDE_DISTILLATION)),
    Question("gentle SP", SIMILAR, PLAIN, ("gentle",)),
    Question("gentle SP beside KD", BOTH, TAUGHT, ("gentle",)),
    Question("Muon", MUON_ALONE, PLAIN, ("muon", "digits")),
    Question("KD, both under Muon", KD_MUON, MUON_ALONE, ("muon", "digits")),
    Question("Muon, both with KD", KD_MUON, TAUGHT, ("main", "mobilenet", "digits")),
    Question(
        "KD and Muon",
        KD_MUON,
        PLAIN,
        ("main", "kd-muon", "long", "varied", "full", "mobilenet", "digits"),
    ),
    Question("mixup", PLAIN_MIXED, PLAIN, BESIDE_CONTROLS),
    Question("Muon, both with KD and mixup", DEFAULT, TAUGHT_MIXED, MIXED_ALIKE),
    Question("mixup, both with KD and Muon", DEFAULT, KD_MUON, ("mixup",)),
    Question("KD, both with mixup", TAUGHT_MIXED, PLAIN_MIXED, MIXED_ALIKE),
    Question("KD and Muon, both with mixup", DEFAULT, PLAIN_MIXED, BESIDE_CONTROLS),
    Question("Muon and mixup, both with KD", DEFAULT, TAUGHT, BESIDE_DISTILLATION),
    Question("KD, Muon and mixup, the default", DEFAULT, PLAIN, BESIDE_CONTROLS),
)

# What --recipe default adds, with intervals, also to each half of it that is one flag.
LEADS = {
    f"above {against}": Question(against, DEFAULT, against, BESIDE_CONTROLS)
    for against in (PLAIN, PLAIN_MIXED, TAUGHT)
}
# What LinOP leads plain fine-tuning by in the paper, in points.
MARGINS = {0.92: "1.2", 0.95: "1.9", 0.985: "2.5 at 98.7 %"}
Told = Callable[[Rows, Question, Grid, Place], str]


def leads(rows: Rows) -> str:
    """Lay out what the default reaches and leads its controls by, beside the paper's margins.

    Args:
        rows: Those of the CSV.

    Returns:
        Markdown: how many parameters each network is left with; then a line a grid, with the
        network and the accuracy of its dense form; test accuracies in percent with their deviation
        over seeds; differences in points with their intervals, bold where those are clear of zero;
        a dagger where one seed chose the learning rates.
    """
    shares = sorted(GRIDS["mixup"].removed)
    lines = head("the default", ("network", "dense", "epochs", *map(percent, shares)))
    plain, *_ = LEADS.values()
    lines += _lines("parameters left", _left(rows, plain, shares))
    parts: list[tuple[str, Question, Told]] = [("test accuracy", plain, _reached)]
    parts += [(name, question, _lead) for name, question in LEADS.items()]
    for name, question, told in parts:
        found = (_of_grid(rows, question, grid, shares, told) for grid in question.grids)
        lines += _lines(name, found)
    margins = (MARGINS.get(share, "") for share in shares)
    lines.append(line("LinOP above fine-tuning, in the paper", ("", "", "", *margins)))
    return "\n".join(lines)


def answers(rows: Rows) -> str:
    """Lay out what each lever gives: questions down, shares of weights removed across.

    Args:
        rows: Those of the CSV.

    Returns:
        Markdown: differences in points, bold where the interval is clear of zero, and their mean
        over the shares that are whole; a dagger where one seed chose the learning rates.
    """
    lines = head("what it adds", ("grid", "epochs", "seeds", *map(percent, SHARES), "mean"))
    for question in QUESTIONS:
        found = (_answer(rows, question, name) for name in question.grids)
        lines += _lines(question.asked, found)
    return "\n".join(lines)


def _lines(name: str, found: Iterable[Sequence[str]]) -> list[str]:
    """A line a grid that tells anything; the first one has the name."""
    told = enumerate(filter(None, found))
    return [line(name if nth == 0 else "", cells) for nth, cells in told]


def _left(rows: Rows, question: Question, shares: Sequence[float]) -> Iterator[list[str]]:
    """Network by network, how many parameters each share leaves."""
    left: dict[str, dict[float, str]] = {}
    for name in question.grids:
        grid = GRIDS[name]
        for share, place in _places(rows, question, grid).items():
            row, *_ = chosen(rows, grid, place[0], question.arm, place[1]).values()
            left.setdefault(grid.model, {})[share] = f"{row.parameters:,}"
    for model, counts in left.items():
        yield [f"`{model}`", "", "", *(counts.get(share, "") for share in shares)]


def _of_grid(
    rows: Rows, question: Question, name: str, shares: Sequence[float], told: Told
) -> list[str]:
    """Network, accuracy of its dense form, length, what is told of each share; or nothing."""
    grid, places = GRIDS[name], _places(rows, question, GRIDS[name])
    if not places:
        return []
    removed, epochs = next(iter(places.values()))
    networks = chosen(rows, grid, removed, question.against, epochs).values()
    dense = f"{fmean(row.dense for row in networks):.1f} %"
    cells = (
        told(rows, question, grid, places[share]) if share in places else "" for share in shares
    )
    return [f"`{grid.model}`", dense, f"{epochs}{_mark(grid)}", *cells]


def _reached(rows: Rows, question: Question, grid: Grid, place: Place) -> str:
    removed, epochs = place
    return spread(chosen(rows, grid, removed, question.arm, epochs), "test")


def _lead(rows: Rows, question: Question, grid: Grid, place: Place) -> str:
    return interval(*_difference(rows, question, grid, [place]))


def _answer(rows: Rows, question: Question, name: str) -> list[str]:
    """Grid, length, seeds, the difference at each share that is whole, their mean; or nothing."""
    grid, places = GRIDS[name], _places(rows, question, GRIDS[name])
    if not places:
        return []
    cells = (
        signed(*_difference(rows, question, grid, [places[share]])) if share in places else ""
        for share in SHARES
    )
    mean = interval(*_difference(rows, question, grid, [*places.values()]))
    return [f"{name}{_mark(grid)}", str(max(grid.epochs)), str(grid.seeds), *cells, mean]


def _mark(grid: Grid) -> str:
    """What tells that one seed chose the learning rates of a grid."""
    return " †" if grid.swept == 1 else ""


def _places(rows: Rows, question: Question, grid: Grid) -> dict[float, Place]:
    """Where both arms are done on all seeds, by share, at the longest schedule."""
    both, epochs = replace(grid, arms=(question.arm, question.against)), max(grid.epochs)
    whole = (share for share in grid.removed if is_whole(rows, both, share, epochs))
    return {share: (share, epochs) for share in whole}


def _difference(
    rows: Rows, question: Question, grid: Grid, places: Sequence[Place]
) -> tuple[float, float, float]:
    return difference(rows, grid, places, question.arm, question.against)
