"""Expand and contract every timm architecture: ``python -m benchmarks.sweep expand``.

First, of each architecture, on the meta device: does `contract` give back the same names, shapes
and classes, what is expanded, what is left alone and why. Then, of one representative of each set
of layer kinds in each file of timm (the one with the fewest parameters), on the CPU: do the outputs
stay what they were. Results go to ``results/sweep_expand.csv``, row by row, so that a stopped sweep
goes on where it was; ``sweep_expand.json`` beside it tells the machine and the settings.

A layer's kind is its class, whether it is dense, grouped or depthwise, and whether its kernel is
larger than 1 (``Conv2d depthwise kernel``). Architectures in one file of timm share their code.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import timm
import torch

from benchmarks import expand_check
from benchmarks.expand_check import (
    DOUBLE_TOLERANCE,
    TOLERANCE,
    exactness_of,
    in_double,
    structure_of,
)
from timm_linop.bench import machine

RESULTS = Path(__file__).parent / "results" / "sweep_expand.csv"
SEED = 0


@dataclass
class Row:
    """One architecture; every value as the CSV holds it, empty where it does not apply.

    The numbers from ``image_size`` on are of representatives. ``blind_layers`` are expanded layers
    whose dense weight gets no gradient, ``lost_gradients`` those whose factors get none although
    the dense weight does. Where an error exceeds 1e-5, both are measured again in float64, beside
    ``rounding_error``: how far the dense outputs move when its weights move by about one rounding
    of float32. ``failure`` is empty unless something is wrong.
    """

    architecture: str
    layers_expanded: str = ""
    layers_left_alone: str = ""
    left_alone_because: str = ""
    parameters_before: str = ""
    parameters_after: str = ""
    relative_error: str = ""
    represented_by: str = ""
    state_dict_keys_equal: str = ""
    seconds: str = ""
    layer_kinds: str = ""
    image_size: str = ""
    rate_checked: str = ""
    layers_checked: str = ""
    training_relative_error: str = ""
    relative_error_float64: str = ""
    training_relative_error_float64: str = ""
    rounding_error: str = ""
    blind_layers: str = ""
    lost_gradients: str = ""
    failure: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Sweep, resuming what the result file already holds.

    Args:
        arguments: The command line after ``expand``.

    Returns:
        1 if an architecture failed, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep expand")
    parser.add_argument("--only", default="*", help="pattern of the architectures to sweep")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the CSV to write or go on in")
    parser.add_argument("--summary", action="store_true", help="only add up what the CSV holds")
    args = parser.parse_args(arguments)
    if args.summary:  # imported here, since the summary is of the rows defined here
        from benchmarks.expand_summary import summary

        print(summary(read(args.output).values()))
        return 0
    torch.set_num_threads(1)
    names = fnmatch.filter(timm.list_models(exclude_filters="linop_*"), args.only)
    if not names:
        parser.error(f"--only {args.only!r} matches no architecture of timm {timm.__version__}")
    failed = sweep(names, args.output)
    for row in failed:
        print(f"{row.architecture}: {row.failure}", file=sys.stderr)
    return int(bool(failed))


def sweep(names: Sequence[str], output: Path) -> list[Row]:
    """Check the architectures, writing each row as soon as it is known.

    Args:
        names: timm architectures.
        output: The CSV; rows it holds are kept, failed ones are done anew.

    Returns:
        The rows of ``names`` that failed.
    """
    rows = read(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(settings(), indent=2) + "\n")
    for number, name in enumerate(names, 1):
        if name not in rows or rows[name].failure:
            rows[name] = structure_row(name)
            print(f"{number}/{len(names)} {name}: {rows[name].layers_expanded} layers", flush=True)
            write(output, rows)
    represent(rows)
    chosen = [name for name in names if rows[name].represented_by == name]
    for number, name in enumerate(chosen, 1):
        for check in (check_exactness, check_in_double):
            if check(rows[name]):
                print(f"{number}/{len(chosen)} {name}: {rows[name].relative_error}", flush=True)
                write(output, rows)
    write(output, rows)
    return [rows[name] for name in names if rows[name].failure]


def structure_row(name: str) -> Row:
    """Expand and contract an architecture's shape.

    Args:
        name: A timm architecture.
    """
    row = Row(name)
    with _measuring(row):
        found = structure_of(name)
        row.layers_expanded, row.layers_left_alone = str(found.expanded), str(found.left_alone)
        row.left_alone_because, row.layer_kinds = found.because, found.kinds
        row.parameters_before, row.parameters_after = str(found.before), str(found.after)
        row.state_dict_keys_equal = str(found.same).lower()
        row.failure = "" if found.same else "names, shapes or classes differ after contract"
    return row


def check_exactness(row: Row) -> bool:
    """Add a representative's numbers to its row, unless it has them.

    Args:
        row: From `structure_row`, changed in place.

    Returns:
        Whether anything was done.
    """
    if row.relative_error or row.failure:
        return False
    with _measuring(row):
        found = exactness_of(row.architecture, SEED)
        row.relative_error = f"{found.evaluating:.2e}"
        row.training_relative_error = f"{found.training:.2e}"
        row.image_size, row.layers_checked = str(found.size), str(found.layers)
        row.rate_checked = str(expand_check.CHECK_RATE)
        row.blind_layers, row.lost_gradients = str(found.blind), str(found.lost)
        if found.lost:
            row.failure = f"{found.lost} layers whose factors get no gradient"
    return True


def check_in_double(row: Row) -> bool:
    """Add the errors in float64 where those in float32 are above the tolerance.

    Args:
        row: From `check_exactness`, changed in place.

    Returns:
        Whether anything was done.
    """
    if row.failure or row.relative_error_float64:
        return False
    if max(float(row.relative_error), float(row.training_relative_error)) <= TOLERANCE:
        return False
    with _measuring(row):
        found = in_double(row.architecture, int(row.image_size), SEED)
        row.relative_error_float64 = f"{found.evaluating:.2e}"
        row.training_relative_error_float64 = f"{found.training:.2e}"
        row.rounding_error = f"{found.rounding:.2e}"
        if not max(found.evaluating, found.training) <= DOUBLE_TOLERANCE:
            row.failure = f"outputs moved by more than {DOUBLE_TOLERANCE:g} in float64"
    return True


def represent(rows: dict[str, Row]) -> None:
    """Name each row's representative: the smallest of its file of timm with its layer kinds.

    Args:
        rows: By architecture, changed in place.
    """
    smallest: dict[tuple[str, str], Row] = {}
    good = [row for row in rows.values() if row.parameters_before]
    for row in sorted(good, key=lambda row: (int(row.parameters_before), row.architecture)):
        family = timm.model_entrypoint(row.architecture).__module__
        row.represented_by = smallest.setdefault((family, row.layer_kinds), row).architecture


def read(path: Path) -> dict[str, Row]:
    """Read the rows a CSV holds, by architecture; none where it does not exist.

    Args:
        path: The CSV.
    """
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {row["architecture"]: Row(**row) for row in csv.DictReader(file)}


def write(path: Path, rows: dict[str, Row]) -> None:
    """Replace the CSV in one move, so that a stopped sweep leaves a whole file.

    Args:
        path: The CSV.
        rows: By architecture.
    """
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        table = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(rows[name]) for name in sorted(rows))
    partial.replace(path)


def settings() -> dict[str, object]:
    """Tell the machine and what the columns do not: the settings all rows share."""
    return {
        "command": "python -m benchmarks.sweep expand",
        "machine": machine(),
        "seed": SEED,
        "init": "orthogonal",
        "rate_of_parameters_after": expand_check.PARAMETERS_RATE,
        "rate_of_relative_error": expand_check.CHECK_RATE,
        "relative_error": "max|a-b| / max|a|, the larger of expanded and contracted against dense",
        "images": 2,
        "all_layers_expanded_up_to_parameters": expand_check.WHOLE,
        "of_larger_ones_two_layers_a_kind_up_to_parameters": expand_check.LARGEST_LAYER,
        "measured_in_float64_above": TOLERANCE,
        "tolerance_in_float64": DOUBLE_TOLERANCE,
    }


@contextmanager
def _measuring(row: Row) -> Iterator[None]:
    """Add the seconds to a row; one architecture's error is a finding, not the sweep's end."""
    start = time.perf_counter()
    try:
        yield
    except Exception as error:
        row.failure = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    row.seconds = f"{float(row.seconds or 0) + time.perf_counter() - start:.1f}"


if __name__ == "__main__":
    sys.exit(main())
