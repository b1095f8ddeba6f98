"""The prune sweep: one tiny architecture through both processes, and what its rows say."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm

from benchmarks import sweep_prune
from benchmarks.prune_summary import summary
from benchmarks.rows import read_table
from benchmarks.sweep_prune import ARCHITECTURES, COLUMNS, RESULTS, append, main, run


def test_the_list_names_architectures_of_many_families() -> None:
    names = ARCHITECTURES.read_text().split()
    assert len(names) == len(set(names)) >= 105
    assert set(names) <= set(timm.list_models(exclude_filters="linop_*"))
    families = {timm.models.model_entrypoint(name).__module__ for name in names}
    assert len(families) >= 80


@pytest.mark.slow
def test_one_architecture_through_both_processes(tmp_path: Path) -> None:
    row = run("test_resnet", timeout=300)
    assert "reason" not in row
    assert row["reloads_bit_for_bit"] is row["trained_reloads_bit_for_bit"] is True
    assert row["groups"] == 11 and row["groups_left_whole"] == 0
    assert row["parameters_after"] < 0.3 * row["parameters_before"]
    assert float(row["mask_error"]) < 1e-12 and float(row["expand_error"]) < 1e-12
    append(tmp_path / "rows.csv", row)
    (read,) = read_table(tmp_path / "rows.csv")
    assert read == {column: str(row.get(column, "")) for column in COLUMNS}


def test_a_failure_is_a_row_with_its_reason() -> None:
    row = run("no_such_model", timeout=300)
    assert row["reason"].startswith("prune: RuntimeError: Unknown model (no_such_model)")
    assert run("test_resnet", timeout=1)["reason"] == "prune: more than 1 s"


def test_a_rerun_goes_on_where_the_last_one_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def note(name: str, timeout: int) -> dict[str, str]:
        done.append(name)
        return {"architecture": name}

    monkeypatch.setattr(sweep_prune, "run", note)
    path = tmp_path / "rows.csv"
    main(["--only", "dla*", "--output", str(path)])
    main(["--only", "d*", "--output", str(path)])
    assert done[:2] == ["dla34", "dla60_res2next"]
    assert len(done) == len(set(done)) == len(read_table(path)) > 5


def test_the_summary_counts() -> None:
    def row(name: str, **values: str) -> dict[str, str]:
        return {**dict.fromkeys(COLUMNS, ""), "architecture": name, **values}

    whole = {"parameters_before": "100", "parameters_after": "25", "groups": "4",
             "groups_left_whole": "0", "layers_not_followed": "0", "reloads_bit_for_bit": "True",
             "trained_reloads_bit_for_bit": "True", "mask_error": "2e-16",
             "expand_error": "3e-07"}  # fmt: skip
    rows = [
        row("lost", **{**whole, "layers_not_followed": "2"}),
        row("a", **whole),
        row("b", **{**whole, "groups_left_whole": "1", "mask_error": "1e-15"}),
    ]
    said = summary([*rows, row("c", reason="prune: why")])
    assert "3 of 4 architectures are pruned; 1 in every group of channels" in said
    assert "| lost | 0 of 4 | 2 | 25% |" in said
    assert "| b | 1 of 4 | 0 | 25% |" in said and "| c | why |" in said and "is 1e-15" in said


def test_the_results_in_the_repository_hold_what_the_documents_say() -> None:
    rows = read_table(RESULTS)
    assert sorted(row["architecture"] for row in rows) == sorted(ARCHITECTURES.read_text().split())
    pruned = [row for row in rows if not row["reason"]]
    assert len(pruned) >= 100
    for row in pruned:
        assert int(row["parameters_after"]) < int(row["parameters_before"])
        assert row["reloads_bit_for_bit"] == row["trained_reloads_bit_for_bit"] == "True"
        assert float(row["mask_error"]) < 1e-9 and float(row["expand_error"]) < 1e-7
    assert summary(rows) in (RESULTS.parents[2] / "docs" / "pruning.md").read_text()
