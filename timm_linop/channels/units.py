"""Unit by unit: where not every cut passes the mask check, find those that do."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Sequence

from .cut import Cut

Check = Callable[[Sequence[Cut]], bool]


def passing(cuts: list[Cut], passes: Check, seconds: float) -> list[Cut]:
    """Keep as many cuts as pass the check together.

    All at once; else kind by kind, where the same layers of every block are one kind; else with
    all that touch the same tensors, or in pairs of kinds, since some widths must shrink together;
    else one by one.

    Args:
        cuts: Proposed ones.
        passes: Tells of some of them whether they give a sound model together.
        seconds: How long to go on; what has not been tried by then is left out.

    Returns:
        Those that were found to pass together.

    Example:
        >>> cuts = [Cut(name, {}) for name in ("a.0", "a.1", "b.0", "c.0")]
        >>> sound = lambda some: not any(cut.layer == "b.0" for cut in some)
        >>> [cut.layer for cut in passing(cuts, sound, seconds=60)]
        ['a.0', 'a.1', 'c.0']
    """
    if passes(cuts):
        return cuts
    deadline = time.monotonic() + seconds
    good: list[Cut] = []

    def add(more: list[Cut]) -> bool:
        if time.monotonic() > deadline or not passes([*good, *more]):
            return False
        good.extend(more)
        return True

    def left(some: list[Cut]) -> list[Cut]:
        return [cut for cut in some if cut not in good]

    kinds = _by_kind(cuts)
    while any(add(kind) for kind in kinds if left(kind)):
        pass
    for cut in sorted(left(cuts), key=lambda cut: -len(cut.removed)):
        if cut not in good:
            add(left(_neighbours(cut, cuts)))
    for one, other in itertools.combinations([kind for kind in kinds if left(kind)][:8], 2):
        if left(one) and left(other):
            add(left(one + other))
    for cut in left(cuts):
        add([cut])
    return [cut for cut in cuts if cut in good]


def _neighbours(cut: Cut, cuts: list[Cut]) -> list[Cut]:
    """A cut and those that touch the same tensors: a residual stream and the attentions on it."""
    tensors = {name for name, _ in cut.removed}
    return [other for other in cuts if tensors & {name for name, _ in other.removed}]


def _by_kind(cuts: list[Cut]) -> list[list[Cut]]:
    kinds: dict[str, list[Cut]] = {}
    for cut in cuts:
        tensors = " ".join(sorted({name for name, _ in cut.removed} or {cut.layer})[:4])
        kinds.setdefault(re.sub(r"\d+", "*", tensors), []).append(cut)
    return list(kinds.values())
