"""Figures of runs, from what their folders hold and nothing else: ``timm-linop plot``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm_linop.errors import DataError
from timm_linop.plots import accuracy_against_parameters, compare_curves, training_curves

# A run measures these beside its own model: where fine-tuning starts and what it is held against.
_REFERENCES = ("dense", "pruned")


def draw(runs: Sequence[Path], output: Path | None = None) -> list[Path]:
    r"""Draw each run's training, and several runs against each other.

    Args:
        runs: Run folders, finished or not, each with a ``metrics.csv``, a ``results.json`` or
            both. They are told apart by as few of the last parts of their paths as it takes.
        output: Where the figures go, each run's own into a folder of its name there. Without it
            they go into each run's ``figures/``, and those of several runs into ``figures/``
            beside the first of them.

    Returns:
        The figures: each run's ``training.png``; of two runs and more ``curves.png``, validation
        accuracy against epochs, and ``accuracy_against_parameters.png``. What the runs have no
        numbers for is left out.

    Raises:
        DataError: A folder is missing, is of no run or holds a damaged file, there is nothing
            to draw at all, or the figures cannot be written.

    Example:
        >>> import tempfile
        >>> run = Path(tempfile.mkdtemp())
        >>> _ = (run / "metrics.csv").write_text("epoch,validation_accuracy\n1,60\n2,75\n")
        >>> [figure.name for figure in draw([run])]
        ['training.png']
    """
    named = _named(runs)
    points = _points({name: _results(run / "results.json") for name, run in named.items()})
    metrics = {name: run / "metrics.csv" for name, run in named.items()}
    metrics = {name: path for name, path in metrics.items() if path.is_file()}
    figures = [
        training_curves(
            path, (output / name if output else path.parent / "figures") / "training.png"
        )
        for name, path in metrics.items()
    ]
    together = output or next(iter(named.values())).parent / "figures"
    if len(metrics) > 1:
        figures.append(compare_curves(metrics, together / "curves.png"))
    if len(named) > 1 and points:
        out = together / "accuracy_against_parameters.png"
        figures.append(accuracy_against_parameters(points, out))
    if not figures:
        raise DataError(
            f"{', '.join(map(str, runs))}: nothing to draw without a metrics.csv or two runs with "
            "accuracies; name the runs to compare with, too."
        )
    return figures


def _named(runs: Sequence[Path]) -> dict[str, Path]:
    """Check the folders, and name each by as few last parts of its path as tell it apart."""
    if not runs:
        raise DataError("there is no run to draw; name run folders of train.py or prune.py.")
    for run in runs:
        if not run.is_dir():
            raise DataError(f"{run} is no folder; name run folders of train.py or prune.py.")
        if not any((run / name).is_file() for name in ("metrics.csv", "results.json")):
            raise DataError(
                f"{run} has neither metrics.csv nor results.json; name a run folder of train.py "
                "or prune.py that has ended an epoch."
            )
    folders = list(dict.fromkeys(run.resolve() for run in runs))
    count, names = 0, [""]
    while len(set(names)) < len(folders):
        count += 1
        names = ["/".join(folder.parts[1:][-count:]) for folder in folders]
    return dict(zip(names, folders, strict=True))


def _results(path: Path) -> list[dict[str, Any]]:
    """Read a run's rows, the last of which is its own; none where it has not ended."""
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, f"it is no JSON ({error})") from error
    if not (isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)):
        raise _damaged(path, "it is no list of results")
    for row in rows:
        if not isinstance(row.get("arm"), str):
            raise _damaged(path, "a row has no arm")
        for key, low, high in (("accuracy", 0, 100), ("parameters", 1, 1e15)):
            value = row.get(key)
            if value is not None and not (type(value) in (int, float) and low <= value <= high):
                raise _damaged(path, f"{key}={value!r} of {row['arm']!r} cannot be")
    return rows


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path} is damaged: {why}; run it anew, or leave this run out.")


def _points(
    results: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[tuple[str, str, int, float]]:
    """Gather each run's own model under its name, and once each what runs were held against."""
    own: dict[str, tuple[str, int, float]] = {}
    references: dict[tuple[str, int, float], str] = {}
    for name, rows in results.items():
        for row in rows:
            arm, parameters, accuracy = row["arm"], row.get("parameters"), row.get("accuracy")
            if parameters is None or accuracy is None:
                continue
            point = (arm, parameters, accuracy)
            if row is rows[-1]:
                own[name] = point
            elif arm in _REFERENCES:
                references[point] = arm
    return [
        *((arm, *point) for point, arm in references.items() if point not in own.values()),
        *((name, *point) for name, point in own.items()),
    ]
