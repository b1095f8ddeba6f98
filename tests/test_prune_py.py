"""prune.py as a user runs it: what it leaves, killed and resumed, on two processes."""

from __future__ import annotations

import csv
import json
import signal
import time
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

import timm_linop
from tests.commands import ROOT, run_script, start_script
from timm_linop.pruning.ranking import ranking

PRUNE = str(ROOT / "prune.py")
DATA = ["--img-size", "32", "--crop-pct", "1", "--no-aug", "--round-to", "1"]
# test_convnext has no batch statistics, so two processes can train as one does.
FEW = ["--score-images", "32"]
METHODS = {
    "magnitude": ["--ratio", "0.5", "--criterion", "taylor", *FEW],
    "admm": ["--method", "admm", "--target-params", "0.4", "--epochs", "1"],
    "tpp": ["--method", "tpp", "--target-macs", "0.4", "--epochs", "1", "--checkpoint-every", "2"],
    "curl": [
        "--method",
        "curl",
        "--target-params",
        "0.4",
        "--floor",
        "0.1",
        "--score-images",
        "32",
    ],
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dense")
    model = timm.create_model("test_convnext", in_chans=1, num_classes=10)
    timm_linop.save(model, folder / "dense")
    return folder / "dense"


def told(run: Path) -> dict[str, list[int]]:
    groups = json.loads((run / "pruning.json").read_text())["groups"]
    return {name: group["removed"] for name, group in groups.items()}


@pytest.fixture(scope="module", params=METHODS)
def run(request: pytest.FixtureRequest, dense: Path) -> tuple[str, list[str], Path]:
    """Of one process."""
    argv = ["--weights", str(dense), *DATA, *METHODS[request.param]]
    folder = dense.parent / request.param
    run_script([PRUNE, *argv, "--batch-size", "100", "--output", str(folder)])
    return request.param, argv, folder


def test_a_run_leaves_what_the_docs_say(run: tuple[str, list[str], Path]) -> None:
    method, _, folder = run
    there = {path.name for path in folder.iterdir()}
    assert {"recipe.yaml", "pruning.json", "results.json", "card.json", "figures", "slim"} <= there
    drawn = {path.stem for path in (folder / "figures").iterdir()}
    assert {"widths", "convergence" if method in ("admm", "tpp") else "scores"} <= drawn
    report = json.loads((folder / "pruning.json").read_text())
    assert report["method"] == method and report["mask_error"] < 1e-9
    dense_row, slim_row = json.loads((folder / "results.json").read_text())
    for name, cost in (("target_params", "parameters"), ("target_macs", "macs")):
        if report["options"][name]:
            assert slim_row[cost] <= 0.4 * dense_row[cost]
            assert slim_row[cost] > 0.3 * dense_row[cost]
    assert f"Pruning: `{method}`" in (folder / "slim" / "README.md").read_text()
    if method in ("admm", "tpp"):
        with (folder / "convergence.csv").open() as file:
            assert [row["step"] for row in csv.DictReader(file)][-1] == "10"
    if method == "curl":  # the choice is an ordering of the scores that are stored
        scores = json.loads((folder / "scores.json").read_text())
        removed = told(folder)
        gone = {(name, unit) for name, units in removed.items() for unit in units}
        by_group = {name: torch.tensor(own, dtype=torch.float64) for name, own in scores.items()}
        assert gone == set(ranking(by_group, 0.1)[: len(gone)])


def test_two_processes_prune_as_one(run: tuple[str, list[str], Path], tmp_path: Path) -> None:
    method, argv, folder = run
    if method not in ("admm", "curl"):
        pytest.skip("tpp trains as admm does, and magnitude is the same on every process")
    two = [PRUNE, *argv, "--batch-size", "50", "--output", str(tmp_path / "run")]
    printed = run_script(two, 2)
    assert printed.count("ADMM has not converged") == (method == "admm")
    assert told(tmp_path / "run") == told(folder)
    one, both = (load_file(f / "slim" / "model.safetensors") for f in (folder, tmp_path / "run"))
    for name, tensor in one.items():
        assert (tensor - both[name]).norm() <= 1e-3 * tensor.norm() + 1e-6, name


def test_a_killed_run_ends_where_it_would_have_ended(
    run: tuple[str, list[str], Path], tmp_path: Path
) -> None:
    method, argv, whole = run
    if method not in ("tpp", "curl"):
        pytest.skip("admm trains as tpp does, and magnitude takes seconds")
    begun, kept = tmp_path / "begun", {"tpp": "checkpoints/[0-9]*", "curl": "scores.json"}[method]
    process = start_script([PRUNE, *argv, "--batch-size", "100", "--output", str(begun)])
    deadline = time.monotonic() + 200
    while not list(begun.glob(kept)) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (begun / "slim").exists()
    assert f"{begun}/slim is written" in run_script([PRUNE, "--resume", str(begun)])
    assert told(begun) == told(whole)
    one, two = (load_file(f / "slim" / "model.safetensors") for f in (begun, whole))
    assert all(torch.equal(one[name], two[name]) for name in one)
