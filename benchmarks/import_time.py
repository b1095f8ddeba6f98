"""What `import timm_linop` costs beside `import timm`: fresh processes, in turn.

    python -m benchmarks.import_time [--repeats 11] [--output benchmarks/results/import_time.csv]

Each repeat runs every statement once, so that a busy moment of the machine falls on all of them;
the first round only fills the file system's cache and is not counted.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import median

STATEMENTS = {"timm": "import timm", "timm_linop": "import timm, timm_linop"}
THREADS = 1


def seconds(statement: str) -> float:
    """Time a statement in a fresh interpreter, from its first line on.

    Args:
        statement: Python source.

    Returns:
        Wall-clock seconds.
    """
    script = f"from time import perf_counter as now; t = now(); {statement}; print(now() - t)"
    env = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    return float(done.stdout)


def measure(repeats: int) -> dict[str, list[float]]:
    """Time every statement ``repeats`` times, in turn.

    Args:
        repeats: Counted rounds.

    Returns:
        Name to seconds, one a round.
    """
    times: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for turn in range(repeats + 1):
        for name, statement in STATEMENTS.items():
            taken = seconds(statement)
            if turn:
                times[name].append(taken)
    return times


def write(times: dict[str, list[float]], path: Path) -> None:
    """Write one line a round."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["round", *(f"{name}_s" for name in times)])
        for i, row in enumerate(zip(*times.values(), strict=True), start=1):
            writer.writerow([i, *(f"{value:.4f}" for value in row)])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/import_time.csv"))
    args = parser.parse_args()
    times = measure(args.repeats)
    write(times, args.output)
    middle = {name: median(values) for name, values in times.items()}
    for name, statement in STATEMENTS.items():
        low, high = min(times[name]), max(times[name])
        print(f"{statement:<24} median {middle[name]:.3f} s  ({low:.3f} to {high:.3f})")
    more, ratio = middle["timm_linop"] - middle["timm"], middle["timm_linop"] / middle["timm"]
    pairs = [b - a for a, b in zip(*times.values(), strict=True)]
    print(f"difference of the medians {more:.3f} s, ratio {ratio:.3f}")
    print(f"median of the rounds' differences {median(pairs):.3f} s")
    packages = ", ".join(f"{name} {version(name)}" for name in ("timm", "torch", "timm-linop"))
    print(
        f"{args.repeats} rounds, {THREADS} thread, Python {platform.python_version()}, {packages}"
    )


if __name__ == "__main__":
    main()
