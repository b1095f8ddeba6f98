"""Everything timm_linop raises on purpose; each message says what, where, why and what next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LinOPError(Exception):
    """Root of the tree: the commands print its one sentence and leave with exit code 2."""


class ExpansionError(LinOPError, ValueError):
    """A model or layer cannot be expanded or contracted as asked."""


class UnknownLayerError(LinOPError, KeyError):
    """A layer name matches nothing in the model."""

    # KeyError's own __str__ would print the repr of the sentence.
    __str__ = Exception.__str__


class UnknownModelError(LinOPError, ValueError):
    """A model name that timm does not know."""


class StructureError(LinOPError, ValueError):
    """A slim structure is malformed, hostile, or belongs to another architecture."""


class CheckpointError(LinOPError, ValueError):
    """Weights are missing, unreadable, unsafe, or not of this model."""


class PruningError(LinOPError, RuntimeError):
    """A model could not be pruned safely; it is left as it was."""


class DataError(LinOPError, ValueError):
    """A dataset cannot be read, or does not fit the model."""


class RecipeError(LinOPError, ValueError):
    """The settings of a run contradict each other or are out of range."""


class LaunchError(LinOPError, RuntimeError):
    """Other processes run than were asked for, or on another device."""


class TrainingError(LinOPError, RuntimeError):
    """Training cannot go on, or its result is not what it must be."""


class Interrupted(LinOPError, RuntimeError):
    """A run was asked to stop and has saved its state; the commands leave with exit code 75."""


class OutputFolderError(LinOPError, FileExistsError):
    """An output folder is already in use."""


class WriteError(LinOPError, OSError):
    """Files cannot be written: the disk is full, or does not let it."""


class HubError(LinOPError, OSError):
    """The Hub refused, or cannot be reached."""


def close_names(name: str, known: Iterable[str], n: int = 3) -> str:
    """Suggest names close to a mistyped one, as the tail of an error message.

    Args:
        name: What the user typed.
        known: All valid names.
        n: How many suggestions at most.

    Returns:
        ``" Close names: 'a', 'b'."`` or an empty string.

    Example:
        >>> close_names("resnet5O", ["resnet50", "vit_tiny"])
        " Close names: 'resnet50'."
    """
    close = difflib.get_close_matches(name, list(known), n=n)
    return f" Close names: {', '.join(map(repr, close))}." if close else ""
