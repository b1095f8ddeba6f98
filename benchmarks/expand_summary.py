"""What the expansion sweep's result file says in total: the tables of ``docs/expansion.md``."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection

from benchmarks.expand_check import TOLERANCE, WHOLE
from benchmarks.sweep_expand import Row


def summary(rows: Collection[Row]) -> str:
    """Add the rows up, as two markdown tables.

    Args:
        rows: Of the result file.
    """
    return "\n".join([*_totals(rows), "", *_left_alone(rows)])


def _totals(rows: Collection[Row]) -> list[str]:
    checked = [row for row in rows if row.relative_error]
    again = [row for row in checked if row.relative_error_float64]
    whole = [row for row in checked if int(row.parameters_before) <= WHOLE]

    def total(column: str) -> int:
        return sum(int(getattr(row, column) or 0) for row in rows)

    def worst(column: str) -> str:
        measured = [row for row in checked if getattr(row, column)]
        if not measured:
            return "none"
        row = max(measured, key=lambda row: float(getattr(row, column)))
        return f"{getattr(row, column)} ({row.architecture})"

    return [
        "| | |",
        "|---|---|",
        f"| architectures | {len(rows):,} |",
        f"| failures | {sum(bool(row.failure) for row in rows):,} |",
        f"| layers expanded | {total('layers_expanded'):,} |",
        f"| layers left alone | {total('layers_left_alone'):,} |",
        f"| architectures with every layer expanded | {_count(rows, _is_complete):,} |",
        f"| representatives | {len({row.represented_by for row in rows}):,} |",
        f"| of these, outputs compared | {len(checked):,} |",
        f"| of these, with every layer expanded at once | {len(whole):,} |",
        f"| layers expanded in the representatives | {total('layers_checked'):,} |",
        f"| of these, no gradient reaches the dense weight | {total('blind_layers'):,} |",
        f"| gradient reaches the dense weight, not every factor | {total('lost_gradients'):,} |",
        f"| relative error in eval mode at most 1e-5 | {_within(checked, 'relative_error'):,} |",
        f"| the same in train mode | {_within(checked, 'training_relative_error'):,} |",
        f"| largest relative error in eval mode | {worst('relative_error')} |",
        f"| largest relative error in train mode | {worst('training_relative_error')} |",
        f"| one of the two above 1e-5, so measured again in float64 | {len(again):,} |",
        f"| largest of these in float64, eval mode | {worst('relative_error_float64')} |",
        f"| largest of these in float64, train mode | {worst('training_relative_error_float64')} |",
        f"| largest float32 error in eval mode, in units of `rounding_error` | {_ratio(again)} |",
    ]


def _left_alone(rows: Collection[Row]) -> list[str]:
    counts: Counter[str] = Counter()
    architectures: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        for part in filter(None, row.left_alone_because.split("; ")):
            number, reason = part.split(" x ", 1)
            parameter, is_bare, _ = reason.partition(" is a bare parameter")
            # By name only: a pos_embed is a pos_embed, whichever class it belongs to.
            reason = f"bare parameter `{parameter}`" if is_bare else reason
            counts[reason] += int(number)
            architectures[reason].add(row.architecture)
    lines = ["| left alone | how many | in architectures |", "|---|---|---|"]
    return lines + [
        f"| {reason} | {number:,} | {len(architectures[reason]):,} |"
        for reason, number in sorted(counts.items(), key=_layers_first)
    ]


def _layers_first(item: tuple[str, int]) -> tuple[bool, int, str]:
    reason, number = item
    return reason.startswith("bare"), -number, reason


def _ratio(again: Collection[Row]) -> str:
    ratios = [float(row.relative_error) / float(row.rounding_error) for row in again]
    return f"{max(ratios):.1f}" if ratios else "none"


def _within(checked: Collection[Row], column: str) -> int:
    return sum(float(getattr(row, column)) <= TOLERANCE for row in checked)


def _is_complete(row: Row) -> bool:
    return row.layers_left_alone == "0"


def _count(rows: Collection[Row], condition: Callable[[Row], bool]) -> int:
    return sum(map(condition, rows))
