"""What a person sees of a run: lines, bars, trackers, evaluations."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import pytest
import timm
import torch
from accelerate.utils import is_trackio_available

from tests.training import dense_and_slim
from timm_linop import cli, watch
from timm_linop.data import load_data
from timm_linop.errors import RecipeError
from timm_linop.recipe import WatchConfig

QUICK = ["--img-size", "32", "--crop-pct", "1.0", "--no-aug", "--batch-size", "100"]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return dense_and_slim(tmp_path_factory.mktemp("names"), "test_resnet")


def test_the_bar_is_for_terminals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = torch.tensor([3.5, 0.5, 1e-3, 0.0])
    with watch.Bar(1, 5, 1000) as bar:
        bar.show(losses, 100)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with watch.Bar(1, 5, 1000) as bar:
        for _ in range(9):
            bar.show(losses, 100)
        bar._bar.refresh()
        shown = capsys.readouterr().err.split("\r")[-1]
    assert re.search(r"epoch 2/5: +90%.* 900/1000 \[.*img/s, task=0.500, sp=1.00e-03\]", shown)
    assert re.search(r"\[\d\d:\d\d<\d\d:\d\d", shown)  # time passed, time left


def test_trackers_are_checked_at_once() -> None:
    with pytest.raises(RecipeError, match="Close names: 'trackio'"):
        watch.trackers(WatchConfig(track=("trackioo",)))
    assert watch.trackers(WatchConfig()) == []


def test_tensorboard_has_the_rows_of_metrics_csv(names: tuple[str, str], tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    flags = ["--pruned", names[1], "--gamma", "0", *QUICK, "--epochs", "2"]
    cli.train([*flags, "--track", "tensorboard", "--output", str(run)])
    seen = accumulator.EventAccumulator(str(next((run / "tracking").rglob("events*")).parent))
    seen.Reload()
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("task_loss", "validation_accuracy", "lr"):
        told = [(event.step, event.value) for event in seen.Scalars(name)]
        expected = [(10 * int(row["epoch"]), float(row[name])) for row in rows]
        assert [step for step, _ in told] == [step for step, _ in expected]
        assert [v for _, v in told] == pytest.approx([v for _, v in expected], rel=1e-6)


@pytest.mark.skipif(not is_trackio_available(), reason="trackio is not installed")
def test_trackio_works_offline(
    names: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    flags = ["--pruned", names[1], "--gamma", "0", *QUICK, "--epochs", "1", "--track", "trackio"]
    cli.train([*flags, "--output", str(tmp_path / "run")])
    assert (tmp_path / "run" / "slim").is_dir()


def test_eval_only_measures_what_a_run_measured(
    names: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    run, again = tmp_path / "run", tmp_path / "again"
    cli.train(["--pruned", names[1], "--gamma", "0", *QUICK, "--epochs", "1", "--output", str(run)])
    printed = capsys.readouterr().out
    assert re.search(
        r"expanded: test \d+\.\d\d %, [\d,]+ parameters, [\d,]+ multiply-adds", printed
    )
    flags = ["--pruned", str(run), *QUICK, "--eval-only", "test"]
    before = sorted(tmp_path.rglob("*"))
    cli.train(flags)  # which prints and leaves nothing
    assert sorted(tmp_path.rglob("*")) == before and not Path("runs").exists()
    assert "top-1" in capsys.readouterr().out
    cli.train([*flags, "--output", str(again)])
    told = capsys.readouterr().out
    one, other = (json.loads((f / "evaluation.json").read_text()) for f in (run, again))
    assert one.pop("split") == other.pop("split") == "test"
    assert one == pytest.approx(other, rel=1e-5)
    assert f"top-1 {one['top1']:.2f} %, top-5 {one['top5']:.2f} %" in told
    assert (run / "per_class.csv").read_text() == (again / "per_class.csv").read_text()
    for folder in (run, again):
        assert (folder / "figures" / "confusion.png").is_file()
    assert not (again / "slim").exists()
    with (again / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["images"]) for row in rows) == 500
    assert 100 * sum(int(row["right"]) for row in rows) / 500 == one["top1"]


def test_eval_only_measures_training_images_as_they_are(
    names: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flips of all would turn a 6 into no digit; none are made, and each image counts once."""
    flags = ["--pruned", names[1], *QUICK, "--no-aug", "false", "--hflip", "1.0"]
    cli.train([*flags, "--eval-only", "train", "--output", str(tmp_path / "out")])
    told = capsys.readouterr().out
    model = timm.create_model(f"local-dir:{names[1]}", pretrained=True).eval()
    config = timm.data.resolve_data_config(model=model, args={"img_size": 32, "crop_pct": 1.0})
    transform, images = timm.data.create_transform(**config), load_data("digits").train
    with torch.no_grad():
        logits = model(torch.stack([transform(image) for image in images["image"]]))
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(images["label"])).item()
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (found["split"], found["images"]) == ("train", 1000)
    assert found["loss"] == pytest.approx(loss, rel=1e-6)
    assert told.startswith(f"train of scikit-learn digits: top-1 {found['top1']:.2f} %")


def test_eval_only_refuses_what_it_cannot_measure(
    names: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, sentence in (
        (["--pruned", names[1], "--eval-only", "val"], "evaluate train, validation or test"),
        (["--model", "test_resnet", "--eval-only"], "would measure random weights"),
    ):
        with pytest.raises(SystemExit) as left:
            cli.train([*flags, "--output", str(tmp_path / "out")])
        assert left.value.code == 2 and sentence in capsys.readouterr().err
