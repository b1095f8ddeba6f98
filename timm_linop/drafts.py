"""A folder that is written whole or not at all, however the writing ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .errors import LinOPError, OutputFolderError, WriteError

if sys.platform != "win32":
    import fcntl


@contextmanager
def draft_of(folder: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes the one that is asked for when all is written.

    Until then it is hidden beside it. What processes that were killed have left there is removed.

    Args:
        folder: Where to; new or empty.

    Yields:
        The draft, empty.

    Raises:
        OutputFolderError: If another process has written the folder meanwhile.
        WriteError: If the disk is full, or does not let it be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "out"
        >>> with draft_of(folder) as draft:
        ...     _ = (draft / "a.txt").write_text("a")
        >>> [path.name for path in folder.iterdir()]
        ['a.txt']
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _scratch(folder) as scratch:
            draft = scratch / folder.name
            draft.mkdir()
            yield draft
            _put(draft, folder)
    except LinOPError:
        raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)[:200]
        raise WriteError(
            f"{folder} cannot be written ({reason}), and nothing is left of the attempt; make room "
            "or name a folder elsewhere, then save again."
        ) from error


def _put(draft: Path, folder: Path) -> None:
    """Move a draft to its place; of several processes that do so at once, one comes first."""
    try:
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()  # an empty one
        draft.rename(folder)
    except OSError as error:
        if not folder.is_dir() or not any(folder.iterdir()):
            raise
        raise OutputFolderError(
            f"{folder} was written by another process meanwhile and is left as it is; name a "
            "folder for each."
        ) from error


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A hidden folder beside another, locked as long as this process lives and works in it."""
    prefix = f".{folder.name}.timm_linop-"  # what a user may have there begins otherwise
    with _locked(folder.parent, wait=True):  # nobody takes a new one for a leftover
        for path in folder.parent.iterdir():
            if path.name.startswith(prefix):
                _remove_leftover(path)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
        stack = contextlib.ExitStack()
        stack.enter_context(_locked(scratch))
    with stack:
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _remove_leftover(path: Path) -> None:
    """Remove the draft of a process that is no more."""
    with contextlib.suppress(OSError), _locked(path) as dead:  # gone already, or not ours
        if dead:
            shutil.rmtree(path)


@contextmanager
def _locked(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of a folder, which its process's death releases; tell whether it was had.

    Where there are no such locks (Windows, some network disks) it is never had.
    """
    if sys.platform == "win32":
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            had = True
        except OSError:
            had = False
        yield had
    finally:
        os.close(handle)
