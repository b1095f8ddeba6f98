"""Figures, read back as pixels: size, ink, and ink of the colour that means something."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib._pylab_helpers import Gcf
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from timm_linop.errors import DataError, StructureError
from timm_linop.plots import (
    BLUE,
    DPI,
    GREEN,
    GREY,
    ORANGE,
    accuracy_against_parameters,
    arms,
    channel_widths,
    compare_curves,
    confusion,
    matrix,
    scatter,
    training_curves,
)
from timm_linop.plots import curves as curves_module
from timm_linop.plots.canvas import save

HEADER = "epoch,train_loss,task_loss,sp_loss,lr,validation_accuracy,seconds"
FULL = "\n".join(
    [HEADER, "1,2.0,1.5,1e-4,0.1,60,3", "2,1.5,1.1,8e-5,0.1,71,3", "3,1,0.9,6e-5,0,70,3"]
)


def pixels(png: Path) -> np.ndarray:
    """Read a figure as height x width x RGB, and see that it is a figure at all."""
    with Image.open(png) as image:
        assert image.format == "PNG"
        assert round(image.info["dpi"][0]) == DPI
        array = np.asarray(image.convert("RGB"))
    assert 150 < array.shape[0] < 4000
    assert 400 < array.shape[1] < 2000
    assert 0.01 < (array.min(axis=2) < 250).mean() < 0.9  # neither blank nor flooded
    return array


def ink(png: Path, colour: str) -> int:
    """Count the pixels of one colour."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return int((pixels(png) == np.array([red, green, blue], np.uint8)).all(axis=2).sum())


def curves(tmp_path: Path, text: str) -> Path:
    (tmp_path / "metrics.csv").write_text(text)
    return training_curves(tmp_path / "metrics.csv", tmp_path / "figures" / "curves.png")


def test_curves_show_losses_and_accuracy(tmp_path):
    out = curves(tmp_path, FULL)
    assert out == tmp_path / "figures" / "curves.png"
    assert min(ink(out, colour) for colour in (BLUE, ORANGE, GREEN)) > 100


@pytest.mark.parametrize("distillation", ["", "0.0", "nan"])
def test_without_distillation_there_is_one_loss_and_no_similarity(tmp_path, distillation):
    row = f"1,1.5,1.5,{distillation},0.1,,3"
    out = curves(tmp_path, f"{HEADER}\n{row}\n2{row[1:]}")
    assert ink(out, BLUE) > 100
    assert ink(out, ORANGE) == ink(out, GREEN) == 0
    assert pixels(out).shape[1] < 0.5 * pixels(curves(tmp_path, FULL)).shape[1]


@pytest.mark.parametrize(
    "text",
    [
        f"{HEADER}\n1,2.0,1.5,1e-4,0.1,60,3",  # a single epoch
        f"{HEADER}\n1,nan,1.5,1e-4,0.1,,3\n2,inf,1.2,1e-4,0.1,70,3",  # gaps
        "epoch,validation_accuracy\n1,60\n2,70",  # accuracy alone
        f"\n{HEADER}\n1,2.0,1.5,1e-4,0.1,60,3\n2,1",  # a row cut short by a crash
    ],
)
def test_curves_of_thin_files(tmp_path, text):
    assert ink(curves(tmp_path, text.lstrip()), BLUE) > 20


def test_a_resumed_run_draws_its_later_row(tmp_path):
    head = "epoch,validation_accuracy\n"
    twice = pixels(curves(tmp_path, f"{head}1,10\n2,90\n2,50\n3,60"))
    once = pixels(curves(tmp_path, f"{head}1,10\n2,50\n3,60"))
    other = pixels(curves(tmp_path, f"{head}1,10\n2,90\n3,60"))
    assert np.array_equal(twice, once)
    assert not np.array_equal(twice, other)


@pytest.mark.parametrize("text", ["", HEADER, f"{HEADER}\n1,,,,0.1,,3", "a,b\n1,2", "epoch\n1"])
def test_a_file_without_curves_is_refused(tmp_path, text):
    with pytest.raises(DataError, match=r"metrics\.csv holds no loss"):
        curves(tmp_path, text)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="no file"):
        training_curves(tmp_path / "nowhere.csv", tmp_path / "out.png")


def test_widths_are_drawn_to_scale(tmp_path):
    out = tmp_path / "widths.png"
    slim = []
    for kept in (25, 50, 100):
        channel_widths({"conv": 100, "fc": 1}, {"conv": kept, "fc": 1}, out)
        slim.append(ink(out, BLUE))
    assert slim[1] / slim[0] == pytest.approx(2, rel=0.1)
    assert slim[2] / slim[0] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("layers", [1, 60, 150])
def test_widths_of_many_layers_with_long_names(tmp_path, layers):
    name = "stages.{}.blocks.a_very_long_$name$_with_{{braces}}.pointwise_convolution.conv"
    before = {name.format(layer): 64 + layer for layer in range(layers)}
    after = {layer: width // 3 for layer, width in before.items()}
    out = channel_widths(before, after, tmp_path / "widths.png")
    assert ink(out, BLUE) > 1000
    row_height = pixels(out).shape[0] / layers
    assert row_height > (20 if layers <= 60 else 8)  # pixels: room for a line of type


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"a": 4}, {"b": 4}, "not both with 'a'"),
        ({"a": 4, "b": 4}, {"a": 4}, "not both with 'b'"),
        ({}, {}, "the same layers"),
        ({"a": 4}, {"a": 0}, "without channels"),
    ],
)
def test_widths_of_other_models_are_refused(tmp_path, before, after, said):
    with pytest.raises(StructureError, match=said):
        channel_widths(before, after, tmp_path / "widths.png")
    assert not (tmp_path / "widths.png").exists()


def test_arms_stand_in_their_colours(tmp_path):
    rows = [("Dense", 94.2), ("vanilla", 91.0), ("vanilla", 90.5), ("LinOP", 92.0)]
    out = arms(rows, tmp_path / "arms.png")
    assert ink(out, BLUE) > 1.5 * ink(out, ORANGE) > 100  # two seeds and their mean, and one dot
    without = arms([("vanilla", 91.0), ("pruned $x_", 0.0)], tmp_path / "two.png")
    assert ink(without, ORANGE) == 0
    assert ink(without, GREY) < 0.2 * ink(out, GREY)  # no line of a dense reference


@pytest.mark.parametrize("rows", [[], [("dense", 101.0)], [("dense", -1.0)], [("dense", np.nan)]])
def test_arms_that_are_no_percentages_are_refused(tmp_path, rows):
    with pytest.raises(DataError, match="percent"):
        arms(rows, tmp_path / "arms.png")


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """Catch the figures that are drawn, beside their files."""
    caught: list[Figure] = []
    for module in (curves_module, matrix, scatter):

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


@pytest.mark.parametrize("damage", [b"epoch,\xff\n1,2", b"epoch,task_loss\n1," + b"9" * 200_000])
def test_a_damaged_file_is_refused(tmp_path, damage):
    (tmp_path / "metrics.csv").write_bytes(damage)
    with pytest.raises(DataError, match=r"metrics\.csv cannot be read"):
        training_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")


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


def test_a_figure_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"arms\.png cannot be written"):
        arms([("dense", 90.0)], tmp_path / "file" / "arms.png")


def test_drawing_leaves_no_global_state(tmp_path):
    settings, figures = dict(matplotlib.rcParams), list(Gcf.figs)
    with ThreadPoolExecutor(2) as threads:  # where pyplot with a window would fail
        done = threads.map(
            lambda name: arms([("dense", 90.0)], tmp_path / name), ["a.png", "b.png"]
        )
    assert all(png.is_file() for png in done)
    assert dict(matplotlib.rcParams) == settings
    assert list(Gcf.figs) == figures
