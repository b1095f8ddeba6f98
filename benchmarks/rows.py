"""Rows of a benchmark that can be stopped and taken up again: a dataclass a row, one CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from timm_linop.bench import machine

R = TypeVar("R")
_READ = {"str": str, "int": int, "float": float}


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """Read the rows of earlier runs.

    Args:
        path: The CSV; none is fine.
        kind: The rows' dataclass, of str, int and float.

    Returns:
        Its rows, in order; a last one that was cut short is left out.
    """
    if not path.exists():
        return []
    columns: Sequence[Any] = fields(kind)  # type: ignore[arg-type]
    with path.open(newline="", encoding="utf-8") as file:
        told = list(csv.DictReader(line for line in file if not line.startswith("#")))
    whole = [row for row in told if None not in row.values()]
    return [
        kind(**{each.name: _READ[each.type](row[each.name]) for each in columns}) for row in whole
    ]


def append(path: Path, row: Any, about: str) -> None:
    """Add a row to the CSV and print it; a new file begins with how it was made.

    Args:
        path: The CSV.
        row: A dataclass.
        about: The command and its sizes.
    """
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    values = asdict(row)
    with path.open("a", newline="", encoding="utf-8") as file:
        if new:
            file.write(f"# {about}; {provenance()}\n")
        writer = csv.DictWriter(file, list(values))
        if new:
            writer.writeheader()
        writer.writerow(values)
    shown = (
        f"{value:.4g}" if isinstance(value, float) else str(value) for value in values.values()
    )
    print(" ".join(shown), flush=True)


def provenance() -> str:
    """Name the machine, threads, dtype and versions."""
    told = machine()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else told["cpu"]
    return (
        f"{device}, {told['threads']} threads, {told['dtype']}, torch {told['torch']}, "
        f"timm {told['timm']}"
    )
