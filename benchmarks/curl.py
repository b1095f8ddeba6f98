"""What CURL's criterion costs: python -m benchmarks.curl [--output-stride 8].

Scores every unit of mobilenetv2_100 (10 classes, random weights) on 256 random images of 32 x 32,
and times on a few units of each group what one score takes against one ordinary pass with that unit
masked. A row a group goes to ``benchmarks/results/curl.csv`` (with ``--output-stride 8`` to
``curl_stride8.csv``): seconds are the clock's, ``cpu_seconds`` those of all threads, which other
work on the machine disturbs less; milliseconds are medians of runs in turns.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import timm
import torch
import torch_pruning as tp
from torch import Tensor, nn

from timm_linop.bench import machine, medians
from timm_linop.channels.coupled import ChannelGroup
from timm_linop.channels.masked import first_tensor
from timm_linop.pruning.curl import as_scored, kl_scores
from timm_linop.pruning.rerun import reruns
from timm_linop.pruning.subject import scored_groups

RESULTS = Path(__file__).with_name("results")
IMAGES, SIZE, SAMPLE = 256, 32, 3


@dataclass(frozen=True)
class Row:
    """One group: how long its scores took; a pass for one unit, rerun and whole."""

    layer: str
    units: int
    seconds: float
    cpu_seconds: float
    rerun_ms: float
    whole_pass_ms: float
    ratio: float


def groups_of(model: nn.Module) -> list[ChannelGroup]:
    """The coupled groups of a model."""
    image = torch.randn(1, 3, SIZE, SIZE)
    return scored_groups(model, image, lambda _: tp.importance.GroupMagnitudeImportance()).groups


def measure(model: nn.Module, images: Tensor) -> Iterator[Row]:
    """Score group by group, then time a few units of each group both ways."""
    for group in groups_of(model):
        clock, cpu = time.perf_counter(), time.process_time()
        kl_scores(model, [group], images)
        clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
        scored, laid_out, called = as_scored(model, images)
        with reruns(scored, group, laid_out, called) as (_, without):
            both = {"rerun": partial(without, 0), "whole": partial(_whole_pass, model, images)}
            passes = medians(both, SAMPLE)
        rerun, whole = 1000 * passes["rerun"], 1000 * passes["whole"]
        yield Row(group.layer, group.size, clock, cpu, rerun, whole, whole / rerun)


@torch.no_grad()
def _whole_pass(model: nn.Module, images: Tensor) -> Tensor:
    return first_tensor(model(images))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write.

    Args:
        arguments: The command line; None takes the process's own.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curl", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output-stride", type=int, choices=(8, 16, 32), default=32)
    stride = parser.parse_args(arguments).output_stride
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv2_100", num_classes=10, output_stride=stride).eval()
    told = ", ".join(f"{key} {value}" for key, value in machine(model).items())
    path = RESULTS / ("curl.csv" if stride == 32 else f"curl_stride{stride}.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with path.open("w", newline="") as file:
        command = f"python -m benchmarks.curl --output-stride {stride}"
        file.write(f"# {command}; {IMAGES} images of {SIZE} x {SIZE}, seed 0; {told}\n")
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        for row in measure(model, torch.randn(IMAGES, 3, SIZE, SIZE)):
            told_row = {
                k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(row).items()
            }
            writer.writerow(told_row)
            print(*told_row.values(), flush=True)
            rows.append(row)
    units = sum(row.units for row in rows)
    whole = sum(row.units * row.whole_pass_ms for row in rows) / 1000
    seconds, cpu = sum(row.seconds for row in rows), sum(row.cpu_seconds for row in rows)
    print(f"{units} units: {seconds:.0f} s ({cpu:.0f} s of CPU); whole passes: {whole:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
