"""What linear over-parameterisation costs: python -m benchmarks.cost [--only SECTION ...].

Every figure is a ratio of medians, measured in turns in one process (peak memory: each arm in a
process of its own). Rows go to ``benchmarks/results/cost.csv``; sections that are asked for again
replace their rows. Sections:

=========== ======================================================================================
step        one training step: the literal chain, composed chains and compact ones against vanilla
accumulate  a step over many small batches, composed once, against vanilla
memory      the process's peak while training, against vanilla; expected: 1 + the factors' own state
distill     a step with SP-KD against its floor, vanilla step + teacher forward; by batch and pairs
expand      seconds of expand and contract
evaluate    forward in eval mode: expanded, and reloaded from a folder, against the pruned model
growth      a compact layer's step by width and positions, against the count of multiply-adds
=========== ======================================================================================
"""

from __future__ import annotations

import argparse
import copy
import csv
import gc
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import timm
import torch
from torch import nn

import timm_linop
from benchmarks import cost_works as works
from benchmarks.cost_summary import figure, summary
from benchmarks.cost_works import WORKLOADS, Workload
from timm_linop.bench import machine, medians, seconds_of
from timm_linop.distill import paired_layers

RESULTS = Path(__file__).with_name("results") / "cost.csv"
GROWTH_WIDTHS, GROWTH_POSITIONS = (32, 128, 512), (64, 256, 1024, 4096)


@dataclass(frozen=True)
class Row:
    """One figure: ``value`` (seconds or bytes) of ``arm``, and its ratio to ``baseline``."""

    section: str
    workload: str
    arm: str
    value: float
    baseline: str
    ratio: float
    expected: float | None = None


def rows_against(
    section: str, workload: object, values: dict[str, float], baseline: str
) -> Iterator[Row]:
    """One row for each value, with its ratio to one of them."""
    for name, value in values.items():
        yield Row(section, str(workload), name, value, baseline, value / values[baseline])


def step() -> Iterator[Row]:
    """One training step of each arm."""
    for workload in WORKLOADS:
        quick = {
            name: works.step_of(works.arm(name, workload), workload)
            for name in ("vanilla", "compact", "wide")
        }
        times = medians(quick, repeats=7 if "resnet50" in workload.architecture else 15, warmup=2)
        literal = {
            "literal": works.step_of(works.arm("literal", workload), workload),
            "again": quick["vanilla"],
        }
        slow = medians(literal, repeats=3)
        # The literal chain's ratio is to the vanilla steps that were timed beside it.
        times["literal"] = slow["literal"] / slow["again"] * times["vanilla"]
        yield from rows_against("step", workload, times, "vanilla")
        gc.collect()


def accumulate() -> Iterator[Row]:
    """A step over 256 images in batches of 16."""
    workload, batches = WORKLOADS[3], 256 // WORKLOADS[3].batch
    arms = {}
    for name in ("vanilla", "compact", "wide"):
        model = works.arm(name, workload)
        arms[name] = works.accumulated_step_of(model, workload, batches, once=name != "vanilla")
    times = medians(arms, repeats=3)
    yield from rows_against("accumulate", f"{workload} x {batches}", times, "vanilla")


def memory() -> Iterator[Row]:
    """The peak of a process that trains two steps, above what it held without the model."""
    for index, workload in enumerate(WORKLOADS):
        names = ("vanilla", "compact", "wide", "literal")
        peaks = {name: _peak(index, name) for name in names}
        held = {name: works.state_bytes(works.arm(name, workload)) for name in names}
        for row in rows_against("memory", workload, peaks, "vanilla"):
            extra = (held[row.arm] - held["vanilla"]) / peaks["vanilla"]
            yield Row(**{**asdict(row), "expected": 1 + extra})


def _peak(index: int, name: str) -> float:
    command = [sys.executable, "-m", "benchmarks.cost_memory", str(index), name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def distill() -> Iterator[Row]:
    """A LinOP + SP-KD step against vanilla step + teacher forward."""
    mobile = WORKLOADS[0]
    small = [Workload(mobile.architecture, mobile.ratio, 32, b) for b in (32, 64, 128, 256, 512)]
    for workload in (mobile, *small):
        vanilla = works.step_of(works.arm("vanilla", workload), workload)
        teacher = works.teacher_forward(workload)

        def floor(
            vanilla: works.Callable[[], None] = vanilla,
            teacher: works.Callable[[], object] = teacher,
        ) -> None:
            vanilla()
            teacher()

        arms = {"floor": floor}
        for pairs in ("last", "stages", "blocks", "all"):
            model = works.arm("compact", workload)
            count = len(paired_layers(model, works.dense(workload.architecture), pairs))
            arms[f"{pairs} ({count})"] = works.distilled_step_of(model, workload, pairs)
        times = medians(arms, repeats=7)
        yield from rows_against("distill", workload, times, "floor")


def expand() -> Iterator[Row]:
    """Seconds of expand and contract, of dense models and slim ones; ratios are to expand's."""
    for architecture, ratio in (("mobilenetv2_100", 0.7), ("resnet50", 0.5)):
        models = {"dense": works.dense(architecture), "slim": works.slim(architecture, ratio)}
        for (name, model), compact in itertools.product(models.items(), (False, True)):
            copied = copy.deepcopy(model)
            times = {
                "expand": seconds_of(
                    lambda m=copied, c=compact: timm_linop.expand(m, works.RATE, seed=0, compact=c)
                ),
                "contract": seconds_of(lambda m=copied: timm_linop.contract(m)),
            }
            form = "compact" if compact else "wide"
            yield from rows_against("expand", f"{architecture} {name} {form}", times, "expand")


@torch.no_grad()
def evaluate() -> Iterator[Row]:
    """Forward passes in eval mode."""
    for workload in (WORKLOADS[0], WORKLOADS[1], WORKLOADS[4]):
        models = {"slim": works.arm("vanilla", workload).eval()}
        models["expanded"] = works.arm("wide", workload).eval()
        with tempfile.TemporaryDirectory() as folder:
            timm_linop.save(works.slim(workload.architecture, workload.ratio), folder + "/slim")
            reloaded = timm.create_model(f"local-dir:{folder}/slim", pretrained=True)
        models["reloaded"] = reloaded.to(works.DEVICE).eval()
        images, _ = works.batch_of(workload)
        calls = {name: partial(model, images) for name, model in models.items()}
        yield from rows_against("evaluate", workload, medians(calls, 21, warmup=3), "slim")


def growth() -> Iterator[Row]:
    """A 3x3 layer of ``n`` channels over ``P`` positions: measured, and by multiply-adds."""
    for width, positions in itertools.product(GROWTH_WIDTHS, GROWTH_POSITIONS):
        plain = nn.Conv2d(width, width, 3, padding=1, bias=False).to(works.DEVICE)
        arms = {"vanilla": plain}
        for name in ("compact", "wide"):
            compact = name == "compact"
            arms[name] = timm_linop.expand(
                copy.deepcopy(plain), works.RATE, seed=0, compact=compact
            )
        side = int(positions**0.5) if positions < 1024 else 32
        images = torch.randn(positions // side**2, width, side, side, device=works.DEVICE)
        steps = {name: _layer_step(layer, images) for name, layer in arms.items()}
        times = medians(steps, repeats=15, warmup=3)
        overhead = {"vanilla": 0.0, "compact": 2 * width, "wide": (9 + 3) * width}
        for row in rows_against("growth", f"n={width} P={positions}", times, "vanilla"):
            yield Row(**{**asdict(row), "expected": 1 + overhead[row.arm] / positions})


def _layer_step(layer: nn.Module, images: torch.Tensor) -> works.Callable[[], None]:
    optimizer, images = works.optimizer_of(layer), images.requires_grad_()

    def step() -> None:
        optimizer.zero_grad()
        images.grad = None
        layer(images).sum().backward()
        optimizer.step()

    return step


SECTIONS = {f.__name__: f for f in (step, accumulate, memory, distill, expand, evaluate, growth)}


def read(path: Path) -> list[dict[str, str]]:
    """Read the rows of earlier runs; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(rows: Sequence[dict[str, object]], path: Path) -> None:
    """Write all rows, in the order of the sections."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = list(SECTIONS)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: order.index(str(row["section"]))))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write.

    Args:
        arguments: The command line; None takes the process's own.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--summary", action="store_true", help="print what the rows say")
    args = parser.parse_args(arguments)
    if args.summary:
        print(summary(read(args.output)))
        return 0
    told = machine()
    print(", ".join(f"{key} {value}" for key, value in told.items()))
    for section in args.only:
        found = []
        for row in SECTIONS[section]():
            found.append(asdict(row))
            expected = "" if row.expected is None else f"  expected {row.expected:.2f}"
            print(
                f"{row.section:9} {row.workload:34} {row.arm:14} {row.value:12.4g} "
                f"{row.ratio:7.3f} x {row.baseline}{expected}",
                flush=True,
            )
        kept = [row for row in read(args.output) if row["section"] != section]
        write([*kept, *found], args.output)
        _note_machine(args.output.with_suffix(".json"), section, told)
    grown = [row for row in read(args.output) if row["section"] == "growth"]
    if grown:
        figure(grown, args.output.with_name("cost_growth.png"))
    return 0


def _note_machine(path: Path, section: str, told: dict[str, str]) -> None:
    notes = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**notes, section: told}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
