"""Prune, save, reload by name, expand, train a step, contract, save, reload: all families of timm.

    python -m benchmarks.sweep prune [--only PATTERN]

Each architecture is pruned by half in a process of its own, with random weights; what is
saved is reloaded in another new process. Rows are appended to the CSV as they are made, and a rerun
goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import copy
import csv
import fnmatch
import json
import logging
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.prune_summary import summary
from benchmarks.rows import read_table

ARCHITECTURES = Path(__file__).with_name("prune_architectures.txt")
RESULTS = Path(__file__).with_name("results") / "sweep_prune.csv"
RATIO, RATE, SEED, CLASSES = 0.5, 2, 0, 10
COLUMNS = (
    "architecture",
    "groups",
    "groups_left_whole",
    "layers_not_followed",
    "mask_error",
    "parameters_before",
    "parameters_after",
    "reloads_bit_for_bit",
    "expand_error",
    "trained_reloads_bit_for_bit",
    "seconds",
    "reason",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep.

    Args:
        arguments: The command line after ``prune``.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep prune", description=__doc__)
    parser.add_argument("--only", default="*", help="architectures that match this pattern")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the rows go")
    parser.add_argument("--timeout", type=int, default=600, help="seconds for one architecture")
    parser.add_argument("--summary", action="store_true", help="print what the rows say")
    args = parser.parse_args(arguments)
    if args.summary:
        print(summary(read_table(args.output)))
        return 0
    done = {row["architecture"] for row in read_table(args.output)}
    for name in ARCHITECTURES.read_text().split():
        if name not in done and fnmatch.fnmatch(name, args.only):
            append(args.output, run(name, args.timeout))
    return 0


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row to the CSV; a new file begins with how it was made."""
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        if new:
            file.write(f"# {_provenance()}\n")
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(" ".join(f"{row.get(column, '')}" for column in COLUMNS), flush=True)


def _provenance() -> str:
    import timm
    import torch
    import torch_pruning

    return (
        f"python -m benchmarks.sweep prune; ratio {RATIO}, rate {RATE}, seed {SEED}, float32 "
        f"(mask check and expansion float64), 1 thread, {platform.machine()} CPU, "
        f"torch {torch.__version__}, timm {timm.__version__}, "
        f"torch-pruning {torch_pruning.__version__}"
    )


def run(name: str, timeout: int) -> dict[str, Any]:
    """Take one architecture through all of it, in two processes.

    Args:
        name: timm's.
        timeout: Seconds for each process.

    Returns:
        A row; where something failed, ``reason`` says what.
    """
    started = time.monotonic()
    row: dict[str, Any] = {"architecture": name}
    with tempfile.TemporaryDirectory() as scratch:
        for step in ("prune", "reload"):
            result = _in_new_process(step, name, scratch, timeout)
            row |= result
            if "reason" in result:
                break
    return row | {"seconds": round(time.monotonic() - started)}


def _in_new_process(step: str, name: str, scratch: str, timeout: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.sweep_prune", step, name, scratch]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"reason": f"{step}: more than {timeout} s"}
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"reason": f"{step}: {said[-1][:300]}"}
    return json.loads(done.stdout.splitlines()[-1])


def prune_and_save(name: str, scratch: Path) -> dict[str, Any]:
    """First process: build, prune (which checks itself), save, note the logits."""
    import timm
    import torch

    import timm_linop
    from timm_linop.channels.masked import with_lively_numbers
    from timm_linop.pruning import pruned

    # As timm draws them, some classifiers are zero, and every model would reload with equal logits.
    model = timm.create_model(name, num_classes=CLASSES).eval().double()
    model = with_lively_numbers(model).float()
    image = _image(model)
    _calibrate(model, image)
    slim, report = pruned(model, image, ratio=RATIO)
    timm_linop.save(slim, scratch / "slim")
    torch.save((image, _logits(slim, image)), scratch / "logits.pth")
    return {
        "groups": len(report.groups) + len(report.left_whole),
        "groups_left_whole": len(report.left_whole),
        "layers_not_followed": len(report.not_followed),
        "mask_error": f"{report.mask_error:.1e}",
        "parameters_before": sum(p.numel() for p in model.parameters()),
        "parameters_after": sum(p.numel() for p in slim.parameters()),
    }


def reload_and_train(name: str, scratch: Path) -> dict[str, Any]:
    """Second process: reload, expand, train a step, contract, save, reload."""
    import timm
    import torch

    import timm_linop

    image, expected = torch.load(scratch / "logits.pth", weights_only=True)
    slim = timm.create_model(f"local-dir:{scratch / 'slim'}", pretrained=True).eval()
    wide = timm.create_model(f"linop_{name}", pruned=scratch / "slim", rate=RATE, seed=SEED).eval()
    _step(wide, image)
    trained = timm_linop.contract(wide.train())  # train() empties timm's caches of eval mode
    timm_linop.save(trained, scratch / "trained")
    again = timm.create_model(f"local-dir:{scratch / 'trained'}", pretrained=True).eval()
    return {
        "reloads_bit_for_bit": torch.equal(_logits(slim, image), expected),
        "expand_error": f"{_expand_error(slim, image):.1e}",
        "trained_reloads_bit_for_bit": torch.equal(_logits(again, image), _logits(trained, image)),
    }


def _expand_error(slim: Any, image: Any) -> float:
    """The expansion's own error, in float64: random networks can make float32's rounding large."""
    import timm_linop

    double, image = copy.deepcopy(slim).double(), image.double()
    expected = _logits(double, image)
    wide = timm_linop.expand(double, RATE, seed=SEED)
    return float((_logits(wide, image) - expected).abs().max() / expected.abs().max())


def _image(model: Any) -> Any:
    """Two images, small where the architecture takes any size."""
    import torch

    channels, *size = model.pretrained_cfg["input_size"]
    images = torch.randn(2, channels, *size)
    if size[0] > 128 and not model.pretrained_cfg.get("fixed_input_size"):
        try:
            _logits(model, images[..., :128, :128])
            return images[..., :128, :128].contiguous()
        except (RuntimeError, AssertionError, ValueError):
            pass  # it takes its own size only, without saying so
    return images


def _calibrate(model: Any, image: Any) -> None:
    """Let the norms see one batch, as random weights without it end in numbers beyond float32."""
    import torch

    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._NormBase)]
    for norm in norms:
        norm.train()
        norm.momentum = None
    with torch.no_grad():
        model(image)
    model.eval()


def _logits(model: Any, image: Any) -> Any:
    import torch

    with torch.no_grad():
        output = model.eval()(image)
    return output if isinstance(output, torch.Tensor) else output[0]


def _step(model: Any, image: Any) -> None:
    """One short step of SGD, in eval mode: two images make no batch statistics."""
    import torch

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    output = model.eval()(image)
    output = output if isinstance(output, torch.Tensor) else output[0]
    torch.nn.functional.cross_entropy(output, torch.tensor([0, 1])).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # random weights can have huge ones
    optimizer.step()


if __name__ == "__main__":
    import torch

    logging.disable(logging.WARNING)
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    step, architecture, folder = sys.argv[1:]
    work = prune_and_save if step == "prune" else reload_and_train
    print(json.dumps(work(architecture, Path(folder))))
