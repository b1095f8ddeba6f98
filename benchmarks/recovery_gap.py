"""Where does the default help? python -m benchmarks.recovery_gap, about two hours.

How much plain fine-tuning overfits, its accuracy on the images that it is trained on less that on
validation images, beside what the default adds. One row is a fine-tuning of the recovery study, run
again at the rate that its sweep chose, to measure it on the former images, too. Another kind of
processor than the study's makes other networks by the same recipe, so only means are compared. A
run that is stopped goes on where it was; --summary prints the table and draws it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch
from scipy.stats import spearmanr

from benchmarks import fashion, recovery
from benchmarks.recovery import load, processes, ready, recipe_of, slim_folder, splits
from benchmarks.recovery_arms import DEFAULT, PLAIN
from benchmarks.recovery_figures import COLOURS, intervals
from benchmarks.recovery_plan import GRIDS, Cell, Row, Rows, by_cell
from benchmarks.recovery_summary import chosen, difference, head, interval, is_whole, line, percent
from benchmarks.rows import append, read_rows
from timm_linop.plots.canvas import GREY, new_axes, new_figure, save

RESULTS = recovery.RESULTS.with_name("recovery_gap.csv")
FIGURE = RESULTS.with_suffix(".png")
# Grids that have the default and plain fine-tuning over one length, and how many seeds run here.
STUDIED = {
    "taught-mobilenet": 5,
    "taught-resnet10t": 5,
    "mixup": 5,
    "taught": 3,
    "taught-mobilenet-long": 3,
}
WORKERS = 2
ABOUT = recovery.ABOUT.replace("recovery", "recovery_gap", 1)


@dataclass(frozen=True)
class Gap(Cell):
    """One plain fine-tuning; accuracies in percent, after the last epoch.

    Attributes:
        pruned: Test accuracy before it.
        train: On the images it is trained on, as they are.
        validation: On others.
        test: Likewise.
    """

    pruned: float
    train: float
    validation: float
    test: float


Gaps = Mapping[Cell, Gap]


def measure(cell: Cell) -> Gap:
    """Run one fine-tuning, after making the networks that are not there yet."""
    while (task := ready(cell))[0] is not recovery.measure:
        task[0](*task[1])
    slim, images = load(slim_folder(cell)), splits(cell.data)
    pruned = fashion.accuracy(slim, images.test)  # which is trained in place
    tuned, score = fashion.fit(slim, images, recipe_of(cell), cell.seed)
    return Gap(
        **asdict(cell),
        pruned=pruned,
        train=fashion.accuracy(tuned, images.train),
        validation=score.validation,
        test=score.test,
    )


def run(rows: Rows, output: Path) -> None:
    """Run what is not done yet; rows are written in order.

    Args:
        rows: Those of the study, which chose the rates.
        output: The CSV.
    """
    done = {gap.cell for gap in read_rows(output, Gap)}
    left = [cell for _, cells in cases(rows) for cell in cells if cell not in done]
    print(f"{len(done)} rows are in {output}; {len(left)} are missing", flush=True)
    with processes(WORKERS) as pool:
        for gap in pool.map(measure, left):
            append(output, gap, ABOUT)


Case = tuple[str, float]


def cases(rows: Rows) -> Iterator[tuple[Case, Sequence[Cell]]]:
    """Give grids and shares that are whole, each with its fine-tunings, seed by seed."""
    for name, seeds in STUDIED.items():
        (epochs,) = GRIDS[name].epochs
        for share in sorted(GRIDS[name].removed):
            if is_whole(rows, GRIDS[name], share, epochs):
                found = chosen(rows, GRIDS[name], share, PLAIN, epochs)
                yield (name, share), [found[seed].cell for seed in range(seeds)]


@dataclass(frozen=True)
class Told:
    """What plain fine-tuning has in a case, and what the default adds there.

    Attributes:
        case: Grid, and share of weights removed.
        train: Mean accuracy on the images it is trained on, in percent.
        validation: On validation images.
        lead: What the default adds on test images, in points, with its interval.
    """

    case: Case
    train: float
    validation: float
    lead: tuple[float, float, float]

    @property
    def gap(self) -> float:
        """By how many points it overfits."""
        return self.train - self.validation


def told(rows: Rows, gaps: Gaps) -> list[Told]:
    """Tell of the cases that are whole, the least overfitted first.

    Args:
        rows: Those of the study.
        gaps: Those of this benchmark.
    """
    found = (
        _told(rows, case, [gaps[cell] for cell in cells])
        for case, cells in cases(rows)
        if all(cell in gaps for cell in cells)
    )
    return sorted(found, key=lambda each: each.gap)


def _told(rows: Rows, case: Case, gaps: Sequence[Gap]) -> Told:
    name, share = case
    lead = difference(rows, GRIDS[name], [(share, *GRIDS[name].epochs)], DEFAULT, PLAIN)
    return Told(case, fmean(gap.train for gap in gaps), fmean(gap.validation for gap in gaps), lead)


def table(found: Sequence[Told]) -> str:
    """Lay it out in Markdown.

    Args:
        found: Of the cases.
    """
    lines = head("grid", ("removed", "trained on", "validation", "overfits by", "the default adds"))
    for each in found:
        name, share = each.case
        accuracies = (f"{reached:.1f}" for reached in (each.train, each.validation, each.gap))
        lines.append(line(f"`{name}`", (percent(share), *accuracies, interval(*each.lead))))
    return "\n".join(lines)


def agreement(found: Sequence[Told]) -> float:
    """Spearman's rank correlation of how much is overfitted and what the default adds."""
    leads = [mean for mean, _, _ in (each.lead for each in found)]
    return float(spearmanr([each.gap for each in found], leads).statistic)


def draw(found: Sequence[Told], path: Path) -> None:
    """Draw what the default adds against how much plain fine-tuning overfits.

    Args:
        found: Of the cases.
        path: Where the PNG goes.
    """
    drawn = new_figure(6.4, 4.2)
    axes = new_axes(drawn, "y")
    axes.axhline(0, color=GREY, linewidth=0.8)
    names = dict.fromkeys(each.case[0] for each in found)
    for name, colour in zip(names, COLOURS[: len(names)], strict=True):
        spans = {each.gap: each for each in found if each.case[0] == name}
        intervals(axes, {gap: each.lead for gap, each in spans.items()}, colour)
        axes.plot([], [], "o", color=colour, markersize=3, label=name)
        for gap, each in spans.items():
            where = (gap, each.lead[0])
            axes.annotate(percent(each.case[1]), where, (4, 4), textcoords="offset points")
    axes.set(xlabel=f"{PLAIN}: training minus validation accuracy (points)")
    axes.set(ylabel=f"the default minus {PLAIN} (points)")
    drawn.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    save(drawn, path)


def main(arguments: list[str] | None = None) -> int:
    """Run what is not done yet, or tell what the rows say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery_gap", description=__doc__)
    parser.add_argument("--summary", action="store_true", help="print the table, draw the figure")
    args = parser.parse_args(arguments)
    rows = by_cell(read_rows(recovery.RESULTS, Row))
    if args.summary:
        found = told(rows, {gap.cell: gap for gap in read_rows(RESULTS, Gap)})
        print(table(found), f"rank correlation {agreement(found):.2f}", sep="\n\n")
        draw(found, FIGURE)
        return 0
    torch.set_num_threads(1)
    run(rows, RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
