"""Which units go, over all groups at once: the lowest scores first, but no group below a floor."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from ..errors import PruningError


def ranking(scores: Mapping[str, Tensor], floor: float = 0.3) -> list[tuple[str, int]]:
    """Order the units that may go; whoever removes k of them takes the first k.

    CURL's walk: up the list of all units, sorted by score (equal ones stay in the order of the
    groups, then of the units); a unit is skipped if its group's kept fraction is already below the
    floor. So a group's last unit to go may take it below the floor, by less than one unit: of 10
    units 8 go at a floor of 0.3, the eighth while 3 of 10 are kept. Besides, one unit of each group
    always stays, as a layer without channels cannot be built.

    Args:
        scores: For each group one score a unit.
        floor: Fraction of a group's units, between 0 and 1.

    Returns:
        Pairs of group and unit.

    Raises:
        PruningError: If the floor is out of range, or scores cannot be ordered (NaN).

    Example:
        >>> import torch
        >>> ranking({"a": torch.tensor([0.3, 0.1]), "b": torch.tensor([0.2, 0.4])}, floor=0.5)
        [('a', 1), ('b', 0)]
    """
    if not 0 <= floor <= 1:
        raise PruningError(
            f"floor={floor!r}: the fraction of each group that is kept lies in 0..1."
        )
    units = [
        (score, group, unit)
        for group, values in scores.items()
        for unit, score in enumerate(values.tolist())
    ]
    unordered = sorted({group for score, group, _ in units if math.isnan(score)})
    if unordered:
        raise PruningError(
            f"units of {', '.join(unordered[:3])} have scores that are no numbers (NaN), so they "
            "cannot be ranked; score them anew."
        )
    gone: Counter[str] = Counter()
    order: list[tuple[str, int]] = []
    for _, group, unit in sorted(units, key=lambda entry: entry[0]):
        size = len(scores[group])
        kept = size - gone[group]
        if kept > 1 and kept / size >= floor:
            gone[group] += 1
            order.append((group, unit))
    return order
