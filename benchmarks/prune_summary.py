"""What the prune sweep's CSV says, as Markdown: ``python -m benchmarks.sweep prune --summary``."""

from __future__ import annotations

from collections.abc import Sequence

Row = dict[str, str]
MUCH = 0.3  # of the parameters; a quarter stays where every width is halved


def summary(rows: Sequence[Row]) -> str:
    """Count what held, and list what was left whole or refused.

    Args:
        rows: Those of the CSV.

    Returns:
        Markdown.
    """
    pruned = [row for row in rows if row["parameters_after"]]
    partial = [row for row in pruned if _left(row) != ("0", "0")]
    shown = [row for row in pruned if row in partial or _share(row) > MUCH]
    refused = [row for row in rows if not row["parameters_after"]]
    lines = [
        f"- {len(pruned)} of {len(rows)} architectures are pruned; "
        f"{len(pruned) - len(partial)} in every group of channels that the graph shows, "
        f"{len(partial)} with some groups left whole or not followed.",
        f"- {_count(pruned, 'reloads_bit_for_bit')} of them reload by name, in a new process, with "
        "the same logits bit for bit.",
        f"- {_count(pruned, 'trained_reloads_bit_for_bit')} are expanded, trained a step, "
        "contracted, saved and reloaded with the same logits bit for bit.",
        f"- The largest error of the mask check is {_largest(pruned, 'mask_error')}, of the "
        f"expansion {_largest(pruned, 'expand_error')} (both in float64).",
        "",
        f"Those of which something was left, or more than {MUCH:.0%} of the parameters stay:",
        "",
        "| architecture | groups left whole | layers not followed | parameters that stay |",
        "|---|---|---|---|",
        *(_partial_line(row) for row in shown),
    ]
    if refused:
        lines += ["", "| refused | why |", "|---|---|", *(_refused_line(row) for row in refused)]
    return "\n".join(lines)


def _count(rows: Sequence[Row], column: str) -> int:
    return sum(row[column] == "True" for row in rows)


def _largest(rows: Sequence[Row], column: str) -> str:
    return max((row[column] for row in rows if row[column]), key=float, default="unknown")


def _partial_line(row: Row) -> str:
    whole, lost = _left(row)
    groups = f"{whole} of {row['groups']}"
    return f"| {row['architecture']} | {groups} | {lost} | {_share(row):.0%} |"


def _share(row: Row) -> float:
    return int(row["parameters_after"]) / int(row["parameters_before"])


def _left(row: Row) -> tuple[str, str]:
    return row["groups_left_whole"], row["layers_not_followed"]


def _refused_line(row: Row) -> str:
    return f"| {row['architecture']} | {row['reason'].removeprefix('prune: ')} |"
