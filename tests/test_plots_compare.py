"""Figures that compare runs or classes: pixels, and what matplotlib was told to draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from tests.figures import ink, pixels
from timm_linop.errors import DataError
from timm_linop.plots import (
    BLUE,
    GREY,
    accuracy_against_parameters,
    compare_curves,
    confusion,
    curves,
    matrix,
    scatter,
)
from timm_linop.plots.canvas import save


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """Catch the figures that are drawn, beside their files."""
    caught: list[Figure] = []
    for module in (curves, matrix, scatter):

        def caught_too(figure, out):
            caught.append(figure)
            return save(figure, out)

        monkeypatch.setattr(module, "save", caught_too)
    return caught


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def accuracies(tmp_path: Path, name: str, *values: float) -> Path:
    rows = [f"{epoch},{value}" for epoch, value in enumerate(values, start=1)]
    (tmp_path / f"{name}.csv").write_text("\n".join(["epoch,validation_accuracy", *rows]))
    return tmp_path / f"{name}.csv"


def test_curves_of_runs_share_axes_and_are_told_apart(tmp_path, figures):
    runs = {f"run {n} $x_": accuracies(tmp_path, str(n), *range(50, 60 + n)) for n in range(12)}
    assert ink(compare_curves(runs, tmp_path / "curves.png"), BLUE) > 100
    lines = figures[0].axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 12
    low, high = figures[0].axes[0].get_xlim()
    assert low < 1 < 21 < high
    assert set(runs) <= set(texts(figures[0]))


def test_curves_of_runs_without_accuracy_are_refused(tmp_path):
    with pytest.raises(DataError, match="no runs"):
        compare_curves({}, tmp_path / "curves.png")
    (tmp_path / "metrics.csv").write_text("epoch,train_loss\n1,2")
    with pytest.raises(DataError, match=r"metrics\.csv holds no validation accuracy"):
        compare_curves({"run": tmp_path / "metrics.csv"}, tmp_path / "curves.png")


@pytest.mark.parametrize("classes", [1, 2, 10, 21, 100, 1000])
def test_confusion_of_few_and_many_classes(tmp_path, figures, classes):
    counts = np.eye(classes, dtype=int) * 3 + np.eye(classes, k=1, dtype=int)
    names = [f"class {index} $with_ a very long name" for index in range(classes)]
    pixels(confusion(counts.tolist(), names, tmp_path / "confusion.png"))
    axes = figures[0].axes[0]
    share = 100 * 3 * classes / (4 * classes - 1)
    assert axes.get_title() == f"accuracy {share:.1f} % of {4 * classes - 1:,} images"
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == {100: 50, 1000: 50}.get(classes, classes)
    assert max(map(len, labels)) <= 20
    assert ("75" in [text.get_text() for text in axes.texts]) == (2 <= classes <= 20)
    figures[0].draw_without_rendering()
    for tick in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
        box = tick.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0  # nothing is cut off


def test_confusion_rounds_no_share_to_what_it_is_not(tmp_path, figures):
    counts = [[999, 1, 0], [0, 5, 5], [0, 0, 0]]
    out = confusion(counts, ["a", "b", "c"], tmp_path / "confusion.png")
    assert [text.get_text() for text in figures[0].axes[0].texts] == [">99", "<1", "50", "50"]
    assert ink(out, "#E5E5E5") > 1000  # the class without images


def test_of_many_classes_the_largest_shares_are_seen(tmp_path, figures):
    counts = np.eye(1000)
    counts[3, 3], counts[3, 702] = 0, 1
    confusion(counts, list(map(str, range(1000))), tmp_path / "confusion.png")
    drawn = figures[0].axes[0].images[0].get_array()
    assert drawn.shape == (250, 250)
    assert drawn[0, 175] == 100
    assert drawn.sum() == 251 * 100


@pytest.mark.parametrize(
    ("counts", "names", "said"),
    [
        ([], [], "without images"),
        ([[0, 0], [0, 0]], ["a", "b"], "without images"),
        ([[1, 2]], ["a"], "square"),
        ([[1, 2], [3]], ["a", "b"], "1 or 2 counts"),
        ([[1, 2], [3, 4]], ["a"], "2 classes and 1 class names"),
        ([[1, -2], [3, 4]], ["a", "b"], "-2 for 'a' taken for 'b'"),
        ([[1, 2], [3, np.nan]], ["a", "b"], "nan for 'b'"),
    ],
)
def test_a_matrix_that_is_no_confusion_is_refused(tmp_path, counts, names, said):
    with pytest.raises(DataError, match=said):
        confusion(counts, names, tmp_path / "confusion.png")
    assert not (tmp_path / "confusion.png").exists()


def seeds(count: int) -> list[tuple[str, str, int, float]]:
    """Runs of equal size and nearly equal accuracy: where labels meet."""
    arms_ = ("vanilla", "linop", "distilled")
    return [(f"resnet_{n}", arms_[n % 3], 55_814, 92 + 0.15 * n) for n in range(count)]


@pytest.mark.parametrize("count", [1, 3, 12])
def test_names_of_points_do_not_overlap(tmp_path, figures, count):
    rows = [("dense", "dense", 700_202, 95.4), *seeds(count)]
    out = accuracy_against_parameters(rows, tmp_path / "scatter.png")
    assert min(ink(out, colour) for colour in (BLUE, GREY)) > 50
    axes = figures[0].axes[0]
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert len(boxes) == len(rows)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1) for box in boxes)


@pytest.mark.parametrize("sizes", [(5,), (55_000, 55_814), (100, 10**9)])
def test_any_range_of_parameters_has_round_ticks(tmp_path, figures, sizes):
    rows = [("run $x_", f"arm {size} $x_", size, 100.0) for size in sizes]
    accuracy_against_parameters(rows, tmp_path / "scatter.png")
    axes = figures[0].axes[0]
    low, high = axes.get_xlim()
    assert 2 <= sum(low <= tick <= high for tick in axes.get_xticks()) <= 12
    assert max(axes.get_yticks()) <= 100


def test_a_pruned_model_far_below_does_not_flatten_the_others(tmp_path, figures):
    accuracy_against_parameters(
        [("start", "pruned", 100, 10.0), ("near", "pruned", 100, 91.5), *seeds(9)],
        tmp_path / "scatter.png",
    )
    assert figures[0].axes[0].get_ylim()[0] > 85
    assert {"start (10.0 %)", "near"} <= set(texts(figures[0]))


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [("run", "linop", 0, 90.0)],
        [("run", "linop", 5, 101.0)],
        [("run", "linop", 5, -1.0)],
        [("run", "linop", 5, np.nan)],
        [("run", "linop", np.inf, 90.0)],
    ],
)
def test_points_that_have_no_place_are_refused(tmp_path, rows):
    with pytest.raises(DataError, match=r"give (run|parameters)"):
        accuracy_against_parameters(rows, tmp_path / "scatter.png")
