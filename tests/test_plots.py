"""Figures, read back as pixels: size, ink, and ink of the colour that means something."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib._pylab_helpers import Gcf

from tests.figures import ink, pixels
from timm_linop.errors import DataError, StructureError
from timm_linop.plots import BLUE, GREEN, GREY, ORANGE, arms, channel_widths, training_curves
from timm_linop.plots.canvas import PINK

HEADER = "epoch,train_loss,task_loss,sp_loss,lr,validation_accuracy,seconds"
FULL = "\n".join(
    [HEADER, "1,2.0,1.5,1e-4,0.1,60,3", "2,1.5,1.1,8e-5,0.1,71,3", "3,1,0.9,6e-5,0,70,3"]
)


def curves(tmp_path: Path, text: str) -> Path:
    (tmp_path / "metrics.csv").write_text(text)
    return training_curves(tmp_path / "metrics.csv", tmp_path / "figures" / "curves.png")


def test_curves_show_losses_and_accuracy(tmp_path):
    out = curves(tmp_path, FULL)
    assert out == tmp_path / "figures" / "curves.png"
    assert min(ink(out, colour) for colour in (BLUE, ORANGE, GREEN)) > 100


def test_distilled_logits_have_a_panel_of_their_own(tmp_path):
    rows = "\n1,2.0,1.5,0.0,0.9,60\n2,1.5,1.1,0.0,0.7,70"
    out = curves(tmp_path, f"epoch,train_loss,task_loss,sp_loss,kd_loss,validation_accuracy{rows}")
    assert min(ink(out, colour) for colour in (BLUE, ORANGE, PINK)) > 100
    assert ink(out, GREEN) == 0


@pytest.mark.parametrize("distillation", ["", "0.0", "nan"])
def test_without_distillation_there_is_one_loss_and_no_similarity(tmp_path, distillation):
    row = f"1,1.5,1.5,{distillation},0.1,,3"
    out = curves(tmp_path, f"{HEADER}\n{row}\n2{row[1:]}")
    assert ink(out, BLUE) > 100
    assert ink(out, ORANGE) == ink(out, GREEN) == 0
    assert pixels(out).shape[1] <= 0.5 * pixels(curves(tmp_path, FULL)).shape[1]


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


@pytest.mark.parametrize("damage", [b"epoch,\xff\n1,2", b"epoch,task_loss\n1," + b"9" * 200_000])
def test_a_damaged_file_is_refused(tmp_path, damage):
    (tmp_path / "metrics.csv").write_bytes(damage)
    with pytest.raises(DataError, match=r"metrics\.csv cannot be read"):
        training_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")


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
