"""What the cost benchmark's CSV says: tables, and the figure of how the cost grows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Row = dict[str, str]
TITLES = {
    "step": "One training step, against vanilla fine-tuning",
    "accumulate": "A step over 256 images in batches of 16, weights composed once, against vanilla",
    "memory": "Peak memory of training, against vanilla "
    "(vanilla's + the factors' own state in brackets)",
    "distill": "One LinOP + SP-KD step, against a vanilla step + the teacher's forward pass",
    "expand": "Seconds of expand and contract",
    "evaluate": "Forward in eval mode, against the pruned model",
    "growth": "A 3x3 layer's step, against the plain layer (by multiply-adds in brackets)",
}


def summary(rows: Sequence[Row]) -> str:
    """Lay the ratios out, a table a section: workloads down, arms across.

    Args:
        rows: Those of the CSV.

    Returns:
        Markdown.
    """
    found = [section for section in TITLES if any(row["section"] == section for row in rows)]
    return "\n\n".join(
        f"### {TITLES[section]}\n\n" + _table([row for row in rows if row["section"] == section])
        for section in found
    )


def _table(rows: Sequence[Row]) -> str:
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    lines = [f"| workload | {' | '.join(arms)} |", "|---" * (len(arms) + 1) + "|"]
    for workload in dict.fromkeys(row["workload"] for row in rows):
        cells = {row["arm"]: _cell(row) for row in rows if row["workload"] == workload}
        lines.append(f"| {workload} | {' | '.join(cells.get(arm, '') for arm in arms)} |")
    return "\n".join(lines)


def _cell(row: Row) -> str:
    if row["section"] == "expand":
        return f"{float(row['value']):.2f} s"
    if row["arm"] == row["baseline"]:
        value = float(row["value"])
        return f"{value / 2**20:,.0f} MiB" if row["section"] == "memory" else f"{value:.3g} s"
    expected = f" ({float(row['expected']):.2f})" if row["expected"] else ""
    return f"{float(row['ratio']):.2f}{expected}"


def figure(rows: Sequence[Row], path: Path) -> None:
    """Draw a layer's step against its positions per channel, measured and by multiply-adds.

    Args:
        rows: Those of the section ``growth``.
        path: Where the PNG goes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shape, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for arm, colour in (("compact", "C0"), ("wide", "C1")):
        points = sorted(_point(row) for row in rows if row["arm"] == arm)
        across, measured, expected = zip(*points, strict=True)
        axes.plot(across, expected, colour, label=f"{arm}, by multiply-adds")
        axes.plot(across, measured, f"{colour}o", label=f"{arm}, measured")
    axes.set(xscale="log", yscale="log", xlabel="positions (batch x height x width) per channel")
    axes.set(ylabel="training step / that of the plain layer")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.legend()
    shape.savefig(path, dpi=120)
    plt.close(shape)


def _point(row: Row) -> tuple[float, float, float]:
    width, positions = (float(part.partition("=")[2]) for part in row["workload"].split())
    return positions / width, float(row["ratio"]), float(row["expected"])
