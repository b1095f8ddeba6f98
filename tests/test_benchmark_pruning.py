"""The comparison of pruning methods: its page holds the rows' table, and rows survive a stop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.pruning import RESULTS, Row, best_rate, summary
from benchmarks.rows import append, read_rows

PAGE = Path(__file__).parents[1] / "docs" / "pruning.md"


def test_the_page_holds_the_table_of_the_rows() -> None:
    assert summary(read_rows(RESULTS, Row)) in PAGE.read_text(encoding="utf-8")


def test_each_arm_is_shown_at_the_rate_that_validation_images_chose() -> None:
    rows = read_rows(RESULTS, Row)
    for removed in {row.removed for row in rows}:
        for arm in ("vanilla", "linop"):
            swept = [r for r in rows if (r.kind, r.removed, r.arm) == ("sweep", removed, arm)]
            chosen = best_rate(rows, removed, arm)
            best = max(row.validation for row in swept)
            assert best in [row.validation for row in swept if row.lr == chosen]


@dataclass(frozen=True)
class Pair:
    name: str
    value: float


def test_a_row_that_was_cut_short_comes_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for value in (0.5, 1.5):
        append(path, Pair("a", value), "python -m benchmarks.none")
    assert path.read_text().startswith("# python -m benchmarks.none; ")
    path.write_text(path.read_text() + "b")
    assert read_rows(path, Pair) == [Pair("a", 0.5), Pair("a", 1.5)]
    assert read_rows(tmp_path / "none.csv", Pair) == []
