"""benchmarks/recovery_gap.py: how much plain fine-tuning overfits, where the default helps."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from benchmarks import fashion, recovery, recovery_gap
from benchmarks.recovery import slim_folder
from benchmarks.recovery_arms import DEFAULT, PLAIN
from benchmarks.recovery_gap import Gap, agreement, cases, draw, measure, table, told
from benchmarks.recovery_plan import DATA, GRIDS, Cell, Data, Grid, Row, by_cell
from benchmarks.rows import read_rows
from tests.recovery_rows import rows_of

ROWS = by_cell(read_rows(recovery.RESULTS, Row))
GAPS = {gap.cell: gap for gap in read_rows(recovery_gap.RESULTS, Gap)}
# Where the study's rows come from the kind of processor that this benchmark ran on.
SAME = ("taught-mobilenet", "taught-mobilenet-long", "taught-resnet10t")


def test_a_row_has_the_accuracy_on_the_images_that_it_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where its networks go
    monkeypatch.setitem(DATA, "tiny", Data("digits", 100, 50, 1, 1, 1))
    cell = Cell("tiny", "test_resnet", 0.7, PLAIN, 20, 0.1, 0)
    gap = measure(cell)
    again = recovery.measure(cell)
    assert (gap.cell, gap.validation, gap.test) == (cell, again.validation, again.test)
    assert (
        gap.pruned
        == again.pruned
        == fashion.accuracy(recovery.load(slim_folder(cell)), recovery.splits("tiny").test)
    )
    assert gap.train > gap.validation  # of 100 digits it learns most by heart
    assert gap.train in range(101)  # each of the hundred counts one


@pytest.fixture
def studied(monkeypatch: pytest.MonkeyPatch) -> dict[Cell, Row]:
    """A study of one grid: on its seeds the default adds 1, 2 and 3 points at 70 %, 0 at 90 %."""
    grid = Grid("digits", "test_resnet", (0.9, 0.7), (PLAIN, DEFAULT), (2,), 3, swept=3)
    monkeypatch.setattr(recovery_gap, "GRIDS", {"small": grid})
    monkeypatch.setattr(recovery_gap, "STUDIED", {"small": 3})
    adds = {0.7: (1.0, 2.0, 3.0), 0.9: (0.0, 0.0, 0.0)}
    return rows_of(grid, 0.03, lambda c: 80 + (adds[c.removed][c.seed] if c.arm == DEFAULT else 0))


def of(cell: Cell, train: float) -> Gap:
    return Gap(**asdict(cell), pruned=10.0, train=train, validation=80.0, test=79.0)


def test_cases_are_plain_fine_tunings_at_the_chosen_rate(studied: dict[Cell, Row]) -> None:
    cells = [Cell("digits", "test_resnet", 0.7, PLAIN, 2, 0.03, seed) for seed in range(3)]
    found = dict(cases(studied))
    assert found["small", 0.7] == cells
    assert found["small", 0.9] == [replace(cell, removed=0.9) for cell in cells]


def test_the_table_begins_where_least_is_overfitted(studied: dict[Cell, Row]) -> None:
    trains = {0.7: (91.0, 92.0, 93.0), 0.9: (81.0, 81.0, 81.0)}
    gaps = {c: of(c, trains[c.removed][c.seed]) for _, cells in cases(studied) for c in cells}
    found = told(studied, gaps)
    assert table(found).splitlines()[2:] == [
        "| `small` | 90 % | 81.0 | 80.0 | 1.0 | +0.00 [+0.00, +0.00] |",
        "| `small` | 70 % | 92.0 | 80.0 | 12.0 | +2.00 [-0.48, +4.48] |",
    ]
    assert agreement(found) == pytest.approx(1.0)
    del gaps[next(c for c in gaps if c.removed == 0.9)]
    assert [each.case for each in told(studied, gaps)] == [("small", 0.7)]


def test_the_figure_has_the_leads_over_the_gaps(
    studied: dict[Cell, Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(recovery_gap, "save", lambda figure, _: drawn.append(figure))
    gaps = {c: of(c, 100 * c.removed) for _, cells in cases(studied) for c in cells}
    draw(told(studied, gaps), Path())
    ((axes,),) = (figure.axes for figure in drawn)
    points = {tuple(bar.lines[0].get_xydata()[0]) for bar in axes.containers}
    assert points == {(-10.0, 2.0), (10.0, 0.0)}
    assert {text.get_text() for text in axes.texts} == {"70 %", "90 %"}


def test_rows_are_those_of_the_study_where_the_processor_is_the_same() -> None:
    for (name, _), cells in cases(ROWS):
        if name in SAME:
            for cell in cells:
                found = GAPS[cell]
                assert (found.validation, found.test) == (ROWS[cell].validation, ROWS[cell].test)


def test_the_page_holds_the_table_of_the_rows() -> None:
    page = (Path(__file__).parents[1] / "docs" / "recovery.md").read_text(encoding="utf-8")
    found = told(ROWS, GAPS)
    assert len(found) == sum(len(GRIDS[name].removed) for name in recovery_gap.STUDIED)
    assert f"\n{table(found)}\n" in page
    of_30 = [each for each in found if GRIDS[each.case[0]].epochs == (30,)]
    taught = [each for each in of_30 if each.case[0] != "mixup"]
    told_so = (
        f"rank correlation is {agreement(of_30):.2f} over the ten of 30 epochs, "
        f"{agreement(taught):.2f} over",
        f"rank correlation is {agreement(found):.2f} over all eleven",
    )
    (tested,) = (each for each in found if each not in of_30)
    told_so += (f"It overfits by {tested.gap:.1f}",)
    assert all(each in " ".join(page.split()) for each in told_so)
