"""Checkpoints of a run: written whole or not at all, and taken up again bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from huggingface_hub.utils.sha import sha_fileobj
from safetensors import SafetensorError
from torch import nn

from .errors import CheckpointError, LinOPError

_PROGRESS, _EXTRA = "progress.json", "average.pt"


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: Epochs finished.
        batch: Batches done of the one that is running.
        updates: Steps of the optimiser.
        seconds: Seconds of training, without evaluation.
        sums: Sums of the running epoch's losses over images of all processes, and their number.
    """

    epoch: int = 0
    batch: int = 0
    updates: int = 0
    seconds: float = 0.0
    sums: tuple[float, ...] = ()


class Checkpoints:
    """The newest states of a run, each a folder named by its number of updates.

    A checkpoint is written into a hidden folder, made sure of on the disk and then renamed, so
    what has a name is whole; a hash of every file tells damage that comes later.

    Args:
        folder: Where they are kept.
        accelerator: Holds the prepared model and optimiser.
        average: A moving average of the model to keep with them, or None.
        keep: How many are kept.
    """

    def __init__(
        self, folder: Path, accelerator: Accelerator, average: nn.Module | None, keep: int
    ) -> None:
        self.folder, self.accelerator, self.average, self.keep = folder, accelerator, average, keep

    def save(self, progress: Progress) -> None:
        """Write a checkpoint, then let go of the oldest; a full disk costs a warning only."""
        target = self.folder / f"{progress.updates:08d}"
        draft = self.folder / f".{target.name}"
        already = [_whole(target) is not None] if self.accelerator.is_main_process else [None]
        if broadcast_object_list(already)[0]:
            return
        problem = self._attempt(lambda: self._begin(draft))
        problem = problem or self._attempt(lambda: self._write(draft))
        problem = problem or self._attempt(lambda: self._complete(draft, target, progress))
        if problem:
            if self.accelerator.is_main_process:
                shutil.rmtree(draft, ignore_errors=True)
            warnings.warn(
                f"no checkpoint after {progress.updates} steps: {problem}. Training goes on, older "
                f"checkpoints in {self.folder} are as they were; make room on the disk.",
                stacklevel=2,
            )

    def load(self) -> Progress | None:
        """Take up the newest checkpoint that is whole.

        Returns:
            How far it had come; None where there is none.

        Raises:
            CheckpointError: If it was written by another number of processes.
        """
        found: list[Any] = [None]
        if self.accelerator.is_main_process:
            found = [self._newest()]
        broadcast_object_list(found)
        if found[0] is None:
            return None
        path, told = found[0]
        processes = self.accelerator.num_processes
        if told["processes"] != processes:
            raise CheckpointError(
                f"{path} is of a run of {told['processes']} processes, this one has {processes}; "
                "launch it as before."
            )
        self.accelerator.load_state(str(path))
        if self.average is not None:
            state = torch.load(path / _EXTRA, map_location="cpu", weights_only=True)
            self.average.load_state_dict(state)
        return Progress(**{**told["progress"], "sums": tuple(told["progress"]["sums"])})

    def newest_name(self) -> str | None:
        """Name the newest checkpoint, without looking into it."""
        there = self._there()
        return str(there[-1]) if there else None

    def _attempt(self, work: Any) -> str | None:
        """Do a part of saving on every process; if it fails on one, all are told."""
        try:
            work()
            problem = ""
        except (OSError, RuntimeError, SafetensorError) as error:  # of Python, torch, safetensors
            problem = str(error)
        failed = torch.tensor([bool(problem)], device=self.accelerator.device)
        if not self.accelerator.gather(failed).any():
            return None
        return problem or "another process could not write"

    def _begin(self, draft: Path) -> None:
        if self.accelerator.is_main_process:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)

    def _write(self, draft: Path) -> None:
        self.accelerator.save_state(str(draft))

    def _complete(self, draft: Path, target: Path, progress: Progress) -> None:
        if not self.accelerator.is_main_process:
            return
        if self.average is not None:
            torch.save(self.average.state_dict(), draft / _EXTRA)
        files = sorted(path for path in draft.rglob("*") if path.is_file())
        told = {
            "progress": asdict(progress),
            "processes": self.accelerator.num_processes,
            "files": {str(path.relative_to(draft)): _hash(path) for path in files},
        }
        (draft / _PROGRESS).write_text(json.dumps(told, indent=1), encoding="utf-8")
        for path in (*files, draft / _PROGRESS, draft):
            _sync(path)
        shutil.rmtree(target, ignore_errors=True)  # a damaged one of the same step
        draft.rename(target)
        _sync(self.folder)
        for old in self._there()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def _there(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("[0-9]*") if path.is_dir())

    def _newest(self) -> tuple[Path, dict[str, Any]] | None:
        for draft in self.folder.glob(".[0-9]*"):  # of a save that was cut short
            shutil.rmtree(draft, ignore_errors=True)
        for path in reversed(self._there()):
            told = _whole(path)
            if told is not None:
                return path, told
            warnings.warn(f"{path} is damaged; an older checkpoint is tried.", stacklevel=2)
        return None


def _whole(path: Path) -> dict[str, Any] | None:
    """What a checkpoint tells of itself, or None if a file is missing or not as it was written."""
    try:
        told: dict[str, Any] = json.loads((path / _PROGRESS).read_text(encoding="utf-8"))
        same = all(_hash(path / name) == known for name, known in told["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return told if same else None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return sha_fileobj(file).hex()


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Stop:
    """Whether somebody asked the run to stop."""

    asked = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Note SIGTERM and SIGINT instead of dying of them; a second one kills as ever.

    So does the first one once the run has broken, and cannot be saved any more: where one process
    fails, torchrun sends SIGTERM to the others, which then lose their connection to it.

    Yields:
        What tells whether one has come.

    Example:
        >>> with stop_signals() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        >>> stop.asked
        True
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    came: list[int] = []

    def note(number: int, _frame: Any) -> None:
        stop.asked = True
        came.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    broken = False
    try:
        yield stop
    except RuntimeError as error:
        broken = not isinstance(error, LinOPError)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if broken and came:
            signal.raise_signal(came[0])
