"""``timm-linop plot`` over run folders as train.py and prune.py leave them, whole and damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from timm_linop import cli, gallery
from timm_linop.errors import DataError

DENSE = {"arm": "dense", "accuracy": 95.4, "parameters": 700_202, "macs": 11, "latency_ms": 1.0}
PRUNED = {"arm": "pruned", "accuracy": 10.0, "parameters": 55_814, "training_seconds": None}
LINOP = {"arm": "linop", "accuracy": 95.0, "parameters": 55_814}
VANILLA = {"arm": "vanilla", "accuracy": 94.2, "parameters": 55_814}
METRICS = "epoch,train_loss,task_loss,sp_loss,validation_accuracy\n1,2,1,0.1,60\n2,1,0.5,0.1,80\n"
TOGETHER = ["curves.png", "accuracy_against_parameters.png"]
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Make a run folder with these rows in results.json and this metrics.csv."""

    def make(name: str, *rows: dict[str, Any], metrics: str | None = METRICS) -> Path:
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        if rows:
            (run / "results.json").write_text(json.dumps(rows))
        if metrics is not None:
            (run / "metrics.csv").write_text(metrics)
        return run

    return make


def plot(capsys: pytest.CaptureFixture[str], *argv: Path | str) -> list[Path]:
    """Run the command; the figures that it names are there and have ink."""
    cli.main(["plot", *map(str, argv)])
    figures = [Path(line) for line in capsys.readouterr().out.splitlines()]
    for figure in figures:
        with Image.open(figure) as image:
            assert image.width > 400 and image.height > 300
            assert len(image.convert("RGB").getcolors(image.width * image.height)) > 10
    return figures


def test_one_run_is_drawn_into_its_own_folder(make, capsys):
    run = make("linop", DENSE, PRUNED, LINOP)
    assert plot(capsys, run) == [run / "figures" / "training.png"]


def test_several_runs_are_drawn_against_each_other(make, capsys):
    runs = [make("dense", DENSE), make("pruned", DENSE, PRUNED, metrics=None)]
    runs.append(make("linop", DENSE, PRUNED, LINOP))
    own = [run / "figures" / "training.png" for run in (runs[0], runs[2])]
    together = [runs[0].parent / "figures" / name for name in TOGETHER]
    assert plot(capsys, *runs) == own + together


def test_all_figures_go_where_output_says(make, capsys, tmp_path):
    runs, out = [make("vanilla", VANILLA), make("linop", LINOP)], tmp_path / "out"
    figures = plot(capsys, runs[0], "--output", out, runs[1], runs[0])
    names = ["vanilla/training.png", "linop/training.png", *TOGETHER]
    assert figures == [out / name for name in names]
    assert not any((run / "figures").exists() for run in runs)


def test_unfinished_runs_are_drawn_as_far_as_they_are(make, capsys):
    runs = [make("one"), make("two")]
    assert [figure.name for figure in plot(capsys, *runs)] == ["training.png"] * 2 + TOGETHER[:1]
    pruned = [make(f"pruned{n}", DENSE, PRUNED, metrics=None) for n in (1, 2)]
    assert [figure.name for figure in plot(capsys, *pruned)] == TOGETHER[1:]


def test_runs_of_one_name_are_told_apart(make, tmp_path):
    runs = [make("monday/linop"), make("tuesday/linop")]
    own = [figure.relative_to(tmp_path).as_posix() for figure in gallery.draw(runs, tmp_path)]
    assert own[:2] == ["monday/linop/training.png", "tuesday/linop/training.png"]


def test_what_runs_are_held_against_is_drawn_once(make, monkeypatch):
    caught: list[Any] = []
    monkeypatch.setattr(
        gallery, "accuracy_against_parameters", lambda rows, out: caught.extend(rows)
    )
    other = {**DENSE, "accuracy": 94.0}
    unknown = {**VANILLA, "accuracy": None}
    runs = [make("teacher", DENSE), make("linop", DENSE, PRUNED, LINOP)]
    runs += [make("vanilla", PRUNED, VANILLA), make("late", other, PRUNED, unknown)]
    gallery.draw(runs)
    assert caught == [
        ("pruned", "pruned", 55_814, 10.0),
        ("dense", "dense", 700_202, 94.0),
        ("teacher", "dense", 700_202, 95.4),
        ("linop", "linop", 55_814, 95.0),
        ("vanilla", "vanilla", 55_814, 94.2),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "no list of results"),
        ('{"arm": "linop"}', "no list of results"),
        ('[{"accuracy": 1}]', "no arm"),
        ('[{"arm": "linop", "accuracy": 101}]', "accuracy=101 of 'linop'"),
        ('[{"arm": "linop", "accuracy": NaN}]', "accuracy=nan"),
        ('[{"arm": "linop", "accuracy": "90"}]', "accuracy='90'"),
        ('[{"arm": "linop", "parameters": 0}]', "parameters=0"),
    ],
)
def test_damaged_results_are_refused_before_anything_is_drawn(make, text, said):
    run = make("linop", LINOP)
    (run / "results.json").write_text(text)
    with pytest.raises(DataError, match=rf"results\.json is damaged: .*{said}"):
        gallery.draw([run])
    assert not (run / "figures").exists()


def test_without_runs_there_is_nothing_to_draw():
    with pytest.raises(DataError, match="no run to draw"):
        gallery.draw([])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "nowhere is no folder"),
        ("empty", "empty has neither metrics.csv nor results.json"),
        ("pruned", "pruned: nothing to draw"),
        ("damaged", "metrics.csv holds no loss"),
    ],
)
def test_the_command_says_in_one_sentence_what_is_wrong(make, capsys, tmp_path, name, said):
    make("empty", metrics=None)
    make("pruned", DENSE, PRUNED, metrics=None)
    make("damaged", metrics="epoch")
    with pytest.raises(SystemExit) as left:
        cli.main(["plot", str(tmp_path / "runs" / name)])
    told = capsys.readouterr().err
    assert left.value.code == 2
    assert told.startswith("DataError: ") and said in told and told.count("\n") == 1
