"""Two gloo processes train as one does with the same global batch."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.commands import ROOT, run_script
from tests.training import dense_and_slim

TRAIN = str(ROOT / "train.py")
# test_convnext has no batch statistics; 1,000 images make 10 batches of 100 or 20 of 50.
FLAGS = ["--img-size", "32", "--crop-pct", "1.0", "--hflip", "0.5", "--epochs", "2", "--lr", "0.01"]
FLAGS += ["--sub-batch", "25", "--gamma", "3000", "--kd-weight", "0.5"]


def rows_of(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, with what it started from beside it."""
    folder = tmp_path_factory.mktemp("one")
    dense_and_slim(folder)
    whole = ["--batch-size", "100", "--output", str(folder / "run")]
    run_script([TRAIN, *flags_in(folder), *whole])
    return folder


def flags_in(folder: Path) -> list[str]:
    return ["--pruned", f"{folder}/pruned", "--teacher", f"local-dir:{folder}/dense", *FLAGS]


@pytest.mark.slow
@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_loss_curve_is_one_process_s(one: Path, tmp_path: Path, accumulated: int) -> None:
    share = ["--batch-size", str(50 // accumulated), "--grad-accum-steps", str(accumulated)]
    run_script([TRAIN, *flags_in(one), *share, "--output", str(tmp_path / "run")], 2)
    for expected, got in zip(rows_of(one / "run"), rows_of(tmp_path / "run"), strict=True):
        for name in ("lr", "train_loss", "task_loss", "sp_loss", "kd_loss", "validation_loss"):
            assert got[name] == pytest.approx(expected[name], rel=1e-3), name
    weights = [load_file(f / "run" / "slim" / "model.safetensors") for f in (one, tmp_path)]
    for name, tensor in weights[0].items():
        off = (tensor - weights[1][name]).norm() / tensor.norm().clamp_min(1e-6)
        assert off < 1e-3, (name, off)
