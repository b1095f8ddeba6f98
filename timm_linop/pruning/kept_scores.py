"""Scores that took long, kept group by group, so that a run can be stopped and taken up again."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from ..errors import CheckpointError, Interrupted
from ..resume import Stop


class KeptScores:
    """The scores of the groups that are done, in a file.

    Args:
        path: JSON of a list of scores a group, by its layer; none is fine.
        accelerator: Its main process writes.
        stop: Asks to leave after the group that is running.

    Raises:
        CheckpointError: If the file is damaged.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "scores.json"
        >>> KeptScores(path, Accelerator(cpu=True), Stop()).add("conv1", torch.tensor([0.5, 2.0]))
        >>> KeptScores(path, Accelerator(cpu=True), Stop()).done["conv1"].tolist()
        [0.5, 2.0]
    """

    def __init__(self, path: Path, accelerator: Accelerator, stop: Stop) -> None:
        self.path, self.accelerator, self.stop = path, accelerator, stop
        self.done: dict[str, Tensor] = {}
        try:
            told = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            self.done = {
                layer: torch.tensor(own, dtype=torch.float64) for layer, own in told.items()
            }
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path} is damaged ({error}); delete it, and all groups are scored anew."
            ) from error
        accelerator.wait_for_everyone()  # nobody writes before all have read

    def add(self, layer: str, scores: Tensor) -> None:
        """Keep a group's scores, the same ones on every process.

        Raises:
            Interrupted: If one of them was asked to stop.
        """
        self.done[layer] = scores
        if self.accelerator.is_main_process:
            told = {name: own.tolist() for name, own in self.done.items()}
            draft = self.path.with_suffix(".new")
            draft.write_text(json.dumps(told, indent=1), encoding="utf-8")
            draft.replace(self.path)
        if self.stop.asked:
            self.accelerator.set_trigger()
        if self.accelerator.check_trigger():
            raise Interrupted(
                f"stopped after the scores of {len(self.done)} groups, as asked; they are kept. Go "
                f"on with --resume {self.path.parent}"
            )
