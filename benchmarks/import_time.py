"""What `import timm_linop` costs beside `import timm`: fresh processes, in turn.

    python -m benchmarks.import_time [--repeats 11] [--output benchmarks/results/import_time.csv]

Each repeat runs both statements once, so that a busy moment of the machine falls on both; the first
round only fills the file system's cache and is not counted. CPU seconds stand beside the wall
clock's, as other work on the machine changes them less. The second import is also timed by itself,
within the process that has imported timm: on a busy machine that tells more than a difference.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import median

THREADS = 1
CLOCKS = ("wall", "cpu")
CHILD = """
import json, time
now = lambda: (time.perf_counter(), time.process_time())
start = now()
import timm
middle = now()
{then}
end = now()
print(json.dumps([[b - a for a, b in zip(start, end)], [b - a for a, b in zip(middle, end)]]))
"""
COLUMNS = [f"{name}_{clock}_s" for name in ("timm", "both", "second") for clock in CLOCKS]


def seconds(then: str) -> tuple[list[float], list[float]]:
    """Time ``import timm`` and what follows in a fresh interpreter, from its first line on.

    Args:
        then: Python source; empty for timm alone.

    Returns:
        Wall and CPU seconds of all of it, and of ``then`` by itself.
    """
    env = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    command = [sys.executable, "-W", "ignore", "-c", CHILD.format(then=then)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    whole, part = json.loads(done.stdout)
    return whole, part


def measure(repeats: int) -> list[list[float]]:
    """Time timm alone and with timm_linop, in turn.

    Args:
        repeats: Counted rounds.

    Returns:
        One row a round, as `COLUMNS` name it.
    """
    rows = []
    for _ in range(repeats + 1):
        alone, _nothing = seconds("")
        both, second = seconds("import timm_linop")
        rows.append([*alone, *both, *second])
    return rows[1:]


def write(rows: list[list[float]], path: Path) -> None:
    """Write one line a round."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["round", *COLUMNS])
        writer.writerows([i, *(f"{v:.4f}" for v in row)] for i, row in enumerate(rows, start=1))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/import_time.csv"))
    args = parser.parse_args()
    rows = measure(args.repeats)
    write(rows, args.output)
    middle = dict(zip(COLUMNS, map(median, zip(*rows, strict=True)), strict=True))
    print(f"{'medians, in seconds':<26}{'wall':>8}{'CPU':>8}")
    shown = {
        "import timm": "timm",
        "import timm, timm_linop": "both",
        "the second by itself": "second",
    }
    for label, name in shown.items():
        print(f"{label:<26}" + "".join(f"{middle[f'{name}_{c}_s']:>8.3f}" for c in CLOCKS))
    pairs = [(middle[f"timm_{c}_s"], middle[f"both_{c}_s"]) for c in CLOCKS]
    print(f"{'difference':<26}" + "".join(f"{both - alone:>8.3f}" for alone, both in pairs))
    print(f"{'ratio':<26}" + "".join(f"{both / alone:>8.3f}" for alone, both in pairs))
    packages = ", ".join(f"{name} {version(name)}" for name in ("timm", "torch", "timm-linop"))
    load = f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"{args.repeats} rounds, {THREADS} thread, {load}, Python {platform.python_version()}")
    print(packages)


if __name__ == "__main__":
    main()
