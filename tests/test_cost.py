"""The cost benchmark: its ratios, its file, and a section of it on a tiny layer."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from benchmarks import cost
from benchmarks import cost_works as works
from benchmarks.cost_summary import summary
from timm_linop.bench import medians


def test_medians_tell_slow_from_quick_and_run_each_equally_often() -> None:
    runs: list[str] = []

    def slow() -> None:
        runs.append("slow")
        time.sleep(0.01)

    found = medians({"slow": slow, "quick": lambda: runs.append("quick")}, repeats=3, warmup=2)
    assert found["slow"] > 0.009 > found["quick"]
    assert runs.count("slow") == runs.count("quick") == 5
    assert runs[:4] == ["slow", "quick", "quick", "slow"]  # there and back


def test_ratios_are_to_the_baseline() -> None:
    rows = list(cost.rows_against("step", "w", {"vanilla": 2.0, "wide": 3.0}, "vanilla"))
    assert [row.ratio for row in rows] == [1.0, 1.5]


@pytest.mark.parametrize("arm", ["vanilla", "compact", "wide", "literal"])
def test_every_arm_computes_the_slim_models_outputs(arm: str) -> None:
    workload = works.Workload("test_resnet", 0.5, 64, 2)
    images, _ = works.batch_of(workload)
    expected = works.slim("test_resnet", 0.5).eval()(images)
    model = works.arm(arm, workload)
    torch.testing.assert_close(model.eval()(images), expected, rtol=1e-4, atol=1e-4)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    works.step_of(model.train(), workload)()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_section_is_measured_written_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "GROWTH_WIDTHS", (8,))
    monkeypatch.setattr(cost, "GROWTH_POSITIONS", (64, 256))
    path = tmp_path / "cost.csv"
    for _ in range(2):  # the second run replaces the rows of the first
        assert cost.main(["--only", "growth", "--output", str(path)]) == 0
    rows = cost.read(path)
    assert [row["arm"] for row in rows] == ["vanilla", "compact", "wide"] * 2
    assert [float(row["expected"]) for row in rows][1:3] == [1 + 2 * 8 / 64, 1 + 12 * 8 / 64]
    assert (tmp_path / "cost_growth.png").stat().st_size > 5000
    assert "n=8 P=64" in summary(rows) and (tmp_path / "cost.json").exists()


def test_rows_keep_the_order_of_the_sections(tmp_path: Path) -> None:
    some = [asdict(cost.Row(s, "w", "a", 1.0, "a", 1.0)) for s in ("growth", "step", "expand")]
    cost.write(some, tmp_path / "rows.csv")
    assert [r["section"] for r in cost.read(tmp_path / "rows.csv")] == ["step", "expand", "growth"]


def test_the_document_holds_the_tables_of_the_results_in_the_repository() -> None:
    document = (Path(__file__).parents[1] / "docs" / "cost.md").read_text()
    assert summary(cost.read(cost.RESULTS)) in document
    told = json.loads(cost.RESULTS.with_suffix(".json").read_text())
    assert set(told) == set(cost.SECTIONS)


@pytest.mark.slow
def test_the_peak_of_training_holds_parameters_gradients_and_momentum() -> None:
    command = [sys.executable, "-m", "benchmarks.cost_memory", "2", "vanilla"]  # resnet18, 64 px
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    held = works.state_bytes(works.arm("vanilla", works.WORKLOADS[2]))
    assert held < float(done.stdout.splitlines()[-1]) < 10 * held
