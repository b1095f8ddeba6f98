"""Layers by name or pattern, as ``include``, ``exclude`` and ``keep`` give them."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from .errors import UnknownLayerError, close_names


def matched(names: Sequence[str], patterns: Sequence[str] | str, argument: str) -> set[str]:
    """Find the layers that patterns name; a module's name stands for all layers below it.

    Args:
        names: Names of all layers.
        patterns: Names or shell patterns.
        argument: What the caller's argument is called, for the message.

    Returns:
        The names that match any of them.

    Raises:
        UnknownLayerError: If a pattern matches none.

    Example:
        >>> sorted(matched(["conv1", "layer1.0.conv1", "layer1.0.conv2"], "layer1", "keep"))
        ['layer1.0.conv1', 'layer1.0.conv2']
    """
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        hits = {n for n in names if fnmatch.fnmatchcase(n, pattern) or n.startswith(f"{pattern}.")}
        if not hits:
            raise UnknownLayerError(
                f"{argument}=[{pattern!r}] matches no layer.{close_names(pattern, names)} "
                "timm_linop.audit(model) lists them."
            )
        found |= hits
    return found
