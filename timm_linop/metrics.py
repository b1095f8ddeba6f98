"""metrics.csv: one row an epoch, none missing and none twice, however often a run was taken up."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

LOSSES = ("train_loss", "task_loss", "sp_loss", "kd_loss")
COLUMNS = (
    "epoch",
    "lr",
    *LOSSES,
    "validation_loss",
    "validation_accuracy",
    "validation_top5",
    "seconds",
)


def record(row: Mapping[str, float], path: Path) -> None:
    """Add an epoch's row.

    Args:
        row: A value for each of `COLUMNS`.
        path: The file; it gets its header with the first row.
    """
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


def forget_after(epoch: int, path: Path) -> None:
    """Drop the rows of epochs that a resumed run does again.

    Args:
        epoch: The last one to keep.
        path: The file; none is fine.
    """
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    # The last row may have been cut short, but then it is of an epoch that comes again.
    kept = [row for row in rows[1:] if len(row) == len(COLUMNS) and int(row[0]) <= epoch]
    draft = path.with_suffix(".new")
    with draft.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *kept])
    draft.replace(path)
