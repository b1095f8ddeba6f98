"""Runs that are killed, stopped and taken up again end as if nothing had happened."""

from __future__ import annotations

import csv
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

import timm_linop
from tests.commands import ROOT, kill, run_script, start_script
from tests.disk import full_disk
from timm_linop import cli, metrics
from timm_linop.errors import CheckpointError
from timm_linop.resume import Checkpoints, Progress, stop_signals

TRAIN = str(ROOT / "train.py")
FLAGS = ["--img-size", "32", "--crop-pct", "1.0", "--epochs", "6", "--batch-size", "100"]
# All that draws: dropout, mixup, augmentation; a moving average, and accumulated gradients.
FLAGS += ["--drop", "0.2", "--mixup", "0.2", "--model-ema", "--checkpoint-every", "2"]
FLAGS += ["--grad-accum-steps", "2", "--gamma", "3000"]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags that fine-tune a slim model."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    dense = timm.create_model("test_resnet", in_chans=1, num_classes=10)
    timm_linop.save(dense, folder / "dense")
    timm_linop.save(timm_linop.prune(dense, ratio=0.5), folder / "pruned")
    return ["--pruned", f"{folder}/pruned", "--teacher", f"local-dir:{folder}/dense", *FLAGS]


def checkpoints(run: Path) -> set[str]:
    return {path.name for path in run.glob("checkpoints/[0-9]*")}


def drafts(run: Path) -> set[str]:
    return {path.name for path in run.glob("checkpoints/.[0-9]*")}


def kill_when(process: subprocess.Popen[str], seen: Callable[[], object], delay: float) -> None:
    """Kill the process and what it started, a moment after something was seen."""
    deadline = time.monotonic() + 120
    while not seen() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(delay)
    if process.poll() is None:
        kill(process)
    process.communicate()


def without_seconds(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def assert_same(run: Path, whole: Path) -> None:
    one, other = (load_file(folder / "slim" / "model.safetensors") for folder in (run, whole))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert without_seconds(run) == without_seconds(whole)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "kills"), [(1, 10), (2, 4)])
def test_killed_runs_end_bit_for_bit_as_uninterrupted_ones(
    start: list[str], tmp_path: Path, processes: int, kills: int
) -> None:
    run_script([TRAIN, *start, "--output", str(tmp_path / "whole")], processes)
    run, dice = tmp_path / "run", random.Random(0)
    argv = [*start, "--output", str(run)]
    during_saves = 0
    for turn in range(kills):
        before = checkpoints(run)
        if turn % 2:  # else what a save left behind that was cut short would pass for a new one
            for draft in drafts(run):
                shutil.rmtree(run / "checkpoints" / draft)
        process = start_script([TRAIN, *argv], processes)
        if turn % 2:
            kill_when(process, lambda: drafts(run), delay=0)
            during_saves += bool(drafts(run))
        else:
            kill_when(process, lambda b=before: checkpoints(run) - b, dice.uniform(0, 0.05))
        assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
        argv = ["--resume", str(run)]
    assert during_saves
    run_script([TRAIN, *argv], processes)
    assert_same(run, tmp_path / "whole")
    assert [row["epoch"] for row in without_seconds(run)] == list("123456")


def trained(steps: int) -> tuple[Accelerator, nn.Module, torch.optim.Optimizer]:
    accelerator = Accelerator(cpu=True)
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1, 0.9))
    for _ in range(steps):
        model(torch.randn(2, 4)).sum().backward()
        optimizer.step()
    return accelerator, model, optimizer


def test_the_newest_are_kept_and_the_newest_whole_one_is_taken_up(tmp_path: Path) -> None:
    accelerator, model, _ = trained(2)
    kept = Checkpoints(tmp_path, accelerator, None, keep=2)
    assert kept.load() is None
    weights = {}
    for updates in (1, 2, 3):
        weights[updates] = model[0].weight.detach().clone()
        kept.save(Progress(epoch=1, updates=updates, sums=(0.5, 2.0)))
        draws = torch.rand(3)
        with torch.no_grad():
            model[0].weight.add_(1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000002", "00000003"]
    assert kept.load() == Progress(epoch=1, updates=3, sums=(0.5, 2.0))
    assert torch.equal(model[0].weight, weights[3]) and torch.equal(torch.rand(3), draws)
    for damage in ("model.safetensors", "optimizer.bin", "random_states_0.pkl", "progress.json"):
        path = tmp_path / "00000003" / damage
        stored = path.read_bytes()
        for broken in (stored[:-1], b"", stored[:40] + b"x" + stored[41:], None):
            path.unlink() if broken is None else path.write_bytes(broken)
            with pytest.warns(UserWarning, match="00000003 is damaged"):
                found = kept.load()
            assert found is not None and found.updates == 2
            assert torch.equal(model[0].weight, weights[2])
            path.write_bytes(stored)
    assert kept.load() == Progress(epoch=1, updates=3, sums=(0.5, 2.0))


def test_a_damaged_checkpoint_of_the_same_step_is_written_anew(tmp_path: Path) -> None:
    accelerator, *_ = trained(1)
    kept = Checkpoints(tmp_path, accelerator, None, keep=2)
    kept.save(Progress(updates=1))
    whole = (tmp_path / "00000001" / "model.safetensors").read_bytes()
    before = (tmp_path / "00000001" / "progress.json").stat().st_mtime_ns
    kept.save(Progress(updates=1))
    assert (tmp_path / "00000001" / "progress.json").stat().st_mtime_ns == before  # as it was
    (tmp_path / "00000001" / "model.safetensors").write_bytes(whole[:-1])
    kept.save(Progress(updates=1))
    assert (tmp_path / "00000001" / "model.safetensors").read_bytes() == whole
    assert kept.load() == Progress(updates=1)


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    accelerator, *_ = trained(1)
    kept = Checkpoints(tmp_path, accelerator, None, keep=1)
    kept.save(Progress(updates=1))
    told = tmp_path / "00000001" / "progress.json"
    told.write_text(told.read_text().replace('"processes": 1', '"processes": 2'))
    with pytest.raises(CheckpointError, match="run of 2 processes, this one has 1"):
        kept.load()


def test_a_full_disk_loses_nothing_older_and_is_told(tmp_path: Path) -> None:
    accelerator, *_ = trained(2)
    kept = Checkpoints(tmp_path, accelerator, None, keep=1)
    kept.save(Progress(updates=1))
    with full_disk(200), pytest.warns(UserWarning, match="no checkpoint after 2 steps.*make room"):
        kept.save(Progress(updates=2))
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]
    assert kept.load() == Progress(updates=1)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_leaves_and_the_run_can_go_on(
    start: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    process = start_script([TRAIN, *start, "--epochs", "50", "--output", str(run)])
    deadline = time.monotonic() + 120
    while not checkpoints(run) and time.monotonic() < deadline:
        time.sleep(0.01)
    before = checkpoints(run)
    process.send_signal(number)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 75, printed
    assert f"Go on with --resume {run}" in printed and "Traceback" not in printed
    assert checkpoints(run) and not drafts(run) and not (run / "slim").exists()
    assert max(checkpoints(run)) >= max(before)


@pytest.mark.slow
def test_a_stopped_demo_does_not_offer_to_resume_what_it_cannot(tmp_path: Path) -> None:
    command = "from timm_linop.cli import main; main()"
    process = start_script(["-c", command, "demo", "--output", str(tmp_path)])
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*/dense/checkpoints/[0-9]*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 75, printed
    assert "the demo begins anew" in printed and "--resume" not in printed


def test_a_second_signal_is_as_ever() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    try:
        with stop_signals() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.asked
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_cannot_be_resumed_is_told(
    start: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv, sentence in (
        (["--resume", f"{tmp_path}/no"], "no run was started there"),
        (["--resume", f"{tmp_path}/no", "--lr", "0.1"], "leave the other flags out"),
        ([*start, "--checkpoint-every", "-1"], "checkpoint_every=-1: at least 0"),
        ([*start, "--checkpoint-hist", "0"], "checkpoint_hist=0: at least 1"),
    ):
        with pytest.raises(SystemExit) as left:
            cli.train(argv)
        assert left.value.code == 2 and sentence in capsys.readouterr().err


@pytest.fixture(scope="module")
def whole(start: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch."""
    run = tmp_path_factory.mktemp("finished") / "whole"
    cli.train([*start, "--epochs", "1", "--output", str(run)])
    return run


def test_a_finished_run_is_left_as_it_is(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    cli.train(["--resume", str(run)])
    assert "is finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_run_stopped_after_its_last_epoch_only_finishes(whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(run / "slim")
    cli.train(["--resume", str(run)])
    assert_same(run, whole)
    with (run / "metrics.csv").open() as one, (whole / "metrics.csv").open() as other:
        assert one.read() == other.read()  # seconds, too: no epoch was trained again


def test_rows_after_an_epoch_are_forgotten_even_half_written_ones(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    metrics.forget_after(1, path)
    assert not path.exists()
    for epoch in (1, 2):
        metrics.record(dict.fromkeys(metrics.COLUMNS, epoch), path)
    with path.open("a") as file:
        file.write("3,0.1,2")
    metrics.forget_after(1, path)
    metrics.record(dict.fromkeys(metrics.COLUMNS, 2), path)
    with path.open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
