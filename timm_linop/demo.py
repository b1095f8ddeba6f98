"""The main job on the digits that ship with scikit-learn: ``timm-linop demo``.

Dense -> pruned -> fine-tuned twice from the same pruned weights (vanilla, LinOP + SP-KD) -> reload
by name in a new process -> table. Every number printed is measured in the run that prints it.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm

from . import card, prune_run, run
from .bench import latencies_ms, machine
from .data import Augmentation
from .errors import HubError, TrainingError
from .plots import arms
from .recipe import (
    DataConfig,
    DenseConfig,
    DistillConfig,
    ExpandConfig,
    ModelConfig,
    OptimConfig,
    PruneConfig,
    PruneRecipe,
    Recipe,
    RunConfig,
    ScheduleConfig,
    WatchConfig,
)

MODEL = "mobilenetv2_050"
# MobileNetV2 halves 32 px five times, to one pixel; with stride 8 it keeps a 4 x 4 map, as dilation
# takes the place of the last strides.
MODEL_CONFIG = ModelConfig(MODEL, in_chans=1, img_size=32, model_kwargs={"output_stride": 8})
DATA = DataConfig("digits", batch_size=32, crop_pct=1.0)
SCHEDULE = ScheduleConfig(epochs=12, warmup_epochs=1)
DENSE_LR = 0.05
# Expansion changes the effective step, so each arm has its own rate: the better of 0.01 and 0.02 on
# the validation images (seed 42).
FINE_TUNING_LR = {"vanilla": 0.02, "linop": 0.01}
WEIGHT_DECAY = 1e-4
RATIO = 0.75
# Each arm has a folder of its name in the run's folder.
ARMS = {
    "dense": "dense",
    "pruned": "pruned, before fine-tuning",
    "vanilla": "vanilla fine-tuning",
    "linop": "LinOP + SP-KD",
}


def demo(output: Path, seed: int = 42, hub: bool = False) -> Path:
    """Run the whole journey.

    Args:
        output: Folder to make a folder of this run in.
        seed: Seed of every step.
        hub: Push the result to a Hub on this machine, and reload it from there.

    Returns:
        The folder of this run: dense/, pruned/, vanilla/, linop/, table.md and arms.png.

    Raises:
        TrainingError: If the reloaded model is not the one that was saved.
        HubError: If there is no such Hub, outside of a checkout.
    """
    server = _local_hub() if hub else None
    folder = output / time.strftime("%Y-%m-%d_%H-%M-%S")
    recipe = Recipe(
        model=MODEL_CONFIG,
        data=DATA,
        augment=Augmentation(no_aug=True),
        optim=OptimConfig(lr=DENSE_LR, weight_decay=WEIGHT_DECAY),
        schedule=SCHEDULE,
        run=RunConfig(str(folder / "dense"), seed),
    )
    print(f"1/5 dense {MODEL} on scikit-learn's digits, 1,000 training images", flush=True)
    run.train(recipe)
    print(f"2/5 prune {RATIO:.0%} of its channels", flush=True)
    prune_run.prune(_pruning(folder, seed))
    tuned = replace(
        recipe,
        model=ModelConfig(pruned=str(folder / "pruned"), img_size=32),
    )
    print("3/5 vanilla fine-tuning", flush=True)
    run.train(_arm(tuned, folder, "vanilla", ExpandConfig(rate=0), DistillConfig(gamma=0)))
    print("4/5 LinOP + SP-KD, against the dense teacher", flush=True)
    teacher = DistillConfig(teacher=f"local-dir:{folder / 'dense'}", gamma=3000)
    compared = replace(tuned, watch=WatchConfig(compare=(str(folder / "vanilla"),)))
    run.train(_arm(compared, folder, "linop", ExpandConfig(rate=3), teacher))
    print("5/5 reload the slim folder by name, in a new process", flush=True)
    rows = _rows(folder)
    accuracy = rows["linop"].accuracy or 0.0
    _check_reload(f"local-dir:{folder}/linop/slim", accuracy, dict(os.environ))
    if server is not None:
        _push_and_reload(server, folder / "linop", accuracy)
    _write_table(folder, rows, seed)
    return folder


def _pruning(folder: Path, seed: int) -> PruneRecipe:
    return PruneRecipe(
        model=DenseConfig(str(folder / "dense"), img_size=32),
        prune=PruneConfig(ratio=RATIO, round_to=4),
        data=DATA,
        run=RunConfig(str(folder / "pruned"), seed),
    )


def _arm(
    recipe: Recipe, folder: Path, name: str, expand: ExpandConfig, distill: DistillConfig
) -> Recipe:
    return replace(
        recipe,
        expand=expand,
        distill=distill,
        optim=OptimConfig(lr=FINE_TUNING_LR[name], weight_decay=WEIGHT_DECAY),
        run=replace(recipe.run, output=str(folder / name)),
    )


def _rows(folder: Path) -> dict[str, card.Result]:
    """One row an arm, from the runs' own results; latencies measured anew, side by side."""
    rows = {}
    for name in ARMS:
        results = json.loads((folder / name / "results.json").read_text(encoding="utf-8"))
        rows[name] = next(card.Result(**row) for row in results if row["arm"] == name)
    models = {
        name: timm.create_model(f"local-dir:{folder / name}/slim", pretrained=True) for name in ARMS
    }
    latencies = latencies_ms(models, (1, 32, 32))
    return {name: replace(row, latency_ms=latencies[name]) for name, row in rows.items()}


def _local_hub() -> Any:
    """The Hub of the tests, which a checkout has and an installed package has not."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module("tests.hub_server").HubServer
    except ImportError as error:
        raise HubError("--hub starts the tests' own Hub; run it from a checkout's root.") from error


def _push_and_reload(server: Any, run_folder: Path, accuracy: float) -> None:
    """Push a run as its owner, and load it as a stranger with another cache."""
    with tempfile.TemporaryDirectory() as scratch, server(Path(scratch) / "hub") as hub:
        owner = hub.env(Path(scratch) / "owner", hub.token("alice", write=True))
        _run([*_TIMM_LINOP, "push", str(run_folder), "alice/linop-digits"], owner)
        print("pushed alice/linop-digits to a Hub on this machine, as one commit")
        stranger = hub.env(Path(scratch) / "stranger")
        _check_reload("hf-hub:alice/linop-digits", accuracy, stranger)


def _check_reload(name: str, accuracy: float, env: dict[str, str]) -> None:
    """Load a slim model in a process that knows nothing but its name, and test it again."""
    again = float(_run([sys.executable, "-c", _RELOAD, name], env).split()[-1])
    if abs(again - accuracy) > 1e-6:
        raise TrainingError(f"{name} gives {again} % after reloading, not {accuracy} %.")
    print(f"reloaded {name}: test accuracy {again:.2f} %, as before")


def _run(command: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise TrainingError(f"{' '.join(command[3:])}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


_TIMM_LINOP = [sys.executable, "-c", "from timm_linop.cli import main; main()"]
# What anyone would write; run as a program of its own.
_RELOAD = """
import sys, timm, torch, timm_linop
from timm.data import create_transform, resolve_input_data_config
from timm_linop.data import load_data, make_loader
model = timm.create_model(sys.argv[1], pretrained=True).eval()
transform = create_transform(**resolve_input_data_config(model))
batches = make_loader(load_data("digits").test, transform, 32, shuffle=False)
with torch.no_grad():
    right = torch.cat([model(images).argmax(1) == labels for images, labels in batches])
print(100 * right.double().mean().item())
"""


def _write_table(folder: Path, rows: dict[str, card.Result], seed: int) -> None:
    lines = [
        "| model | test accuracy | parameters | MACs | ms/image | training |",
        "|---|---|---|---|---|---|",
        *(_line(name, row) for name, row in rows.items()),
    ]
    told = machine()
    lines += [
        "",
        f"{MODEL}, output stride 8, 32 px, scikit-learn's digits: 1,000 training and 500 test "
        f"images, seed {seed}; with so few images a point or two of difference may be chance.",
        f"{told['cpu']}, {told['threads']} threads, {told['dtype']}, torch {told['torch']}, timm "
        f"{told['timm']}; batches of 32.",
    ]
    (folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    arms([(name, row.accuracy or 0.0) for name, row in rows.items()], folder / "arms.png")
    print("\n".join(lines))


def _line(name: str, row: card.Result) -> str:
    trained = "" if row.training_seconds is None else f"{row.training_seconds:.0f} s"
    return (
        f"| {ARMS[name]} | {row.accuracy:.1f} % | {row.parameters:,} | {row.macs:,} "
        f"| {row.latency_ms:.3f} | {trained} |"
    )
