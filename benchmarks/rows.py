"""Rows of a benchmark that can be stopped and taken up again: a dataclass a row, one CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from timm_linop.bench import machine

R = TypeVar("R")
_READ = {"str": str, "int": int, "float": float}


def read_table(path: Path) -> list[dict[str, str]]:
    """Read the rows of earlier runs as they stand; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """Read the rows of earlier runs.

    Args:
        path: The CSV; none is fine.
        kind: The rows' dataclass, of str, int and float.

    Returns:
        Its rows, in order; a last one that was cut short is left out.
    """
    columns: Sequence[Any] = fields(kind)  # type: ignore[arg-type]
    kinds = {each.name: _READ[each.type] for each in columns}
    whole = [row for row in read_table(path) if None not in row.values()]
    return [kind(**{name: read(row[name]) for name, read in kinds.items()}) for row in whole]


def add(path: Path, row: Mapping[str, Any], head: str) -> None:
    """Add a row to the CSV; a new file begins with how it was made.

    Args:
        path: The CSV.
        row: Its values by column, the same ones in every row.
        head: The command, its sizes, the machine.
    """
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            file.write(f"# {head}\n")
            writer.writeheader()
        writer.writerow(row)


def append(path: Path, row: Any, about: str) -> None:
    """Add a dataclass as a row, and print it.

    Args:
        path: The CSV.
        row: A dataclass.
        about: The command and its sizes; machine and versions are added.
    """
    values = asdict(row)
    add(path, values, f"{about}; {provenance()}")
    shown = (f"{each:.4g}" if isinstance(each, float) else str(each) for each in values.values())
    print(" ".join(shown), flush=True)


def provenance() -> str:
    """Name the machine, threads, dtype and versions."""
    told = machine()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else told["cpu"]
    return (
        f"{device}, {told['threads']} threads, {told['dtype']}, torch {told['torch']}, "
        f"timm {told['timm']}"
    )
