"""The expansion sweep: its two checks, resuming, and the result file against real reruns."""

from __future__ import annotations

import csv
import json
from dataclasses import fields
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from benchmarks import expand_check, sweep, sweep_expand
from benchmarks.expand_check import (
    DOUBLE_TOLERANCE,
    TOLERANCE,
    DoubleCheck,
    exactness_of,
    structure_of,
)
from benchmarks.expand_summary import summary
from benchmarks.models import lively, relative_error
from benchmarks.sweep_expand import RESULTS, Row, check_in_double, read, structure_row
from timm_linop.chain import LinearChain


def test_the_structure_check_counts_what_timm_says() -> None:
    model = timm.create_model("test_efficientnet")
    kinds = (nn.Conv2d, nn.Linear)
    found = structure_of("test_efficientnet")
    assert found.expanded == sum(isinstance(m, kinds) for m in model.modules())
    assert (found.left_alone, found.because, found.same) == (0, "", True)
    assert found.before == sum(p.numel() for p in model.parameters()) < found.after
    assert found.kinds.split("; ") == [
        "Conv2d dense kernel",
        "Conv2d dense pointwise",
        "Conv2d depthwise kernel",
        "Linear",
    ]


def test_the_structure_check_groups_the_reasons() -> None:
    assert structure_of("test_maxvit").because == (
        "8 x relative_position_bias_table is a bare parameter of RelPosBias, not a layer's weight"
    )


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_the_exactness_check_sees_every_layer(name: str) -> None:
    found = exactness_of(name)
    assert 0 < found.evaluating <= TOLERANCE and found.training <= TOLERANCE
    assert (found.blind, found.lost) == (0, 0)
    assert found.layers == structure_of(name).expanded


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_the_exactness_check_sees_one_wrong_chain(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = expand_check.expand

    def wrong(model: nn.Module, *args: object, **settings: object) -> nn.Module:
        right(model, *args, **settings)
        chain = next(layer for layer in model.modules() if isinstance(layer, LinearChain))
        forward = chain.forward
        chain.forward = lambda *factors: forward(*factors) * 1.001
        return model

    monkeypatch.setattr(expand_check, "expand", wrong)
    assert exactness_of(name).evaluating > TOLERANCE


def test_an_error_that_float32_cannot_judge_is_measured_again_in_float64() -> None:
    small, large = {"relative_error": "2e-6", "training_relative_error": "2e-6"}, {}
    for mode in small:
        large[mode] = Row("test_resnet", image_size="64", **(small | {mode: "2e-3"}))
    assert all(check_in_double(row) and row.failure == "" for row in large.values())
    row = large["relative_error"]
    assert 0 < float(row.relative_error_float64) < 1e-12
    assert 0 < float(row.training_relative_error_float64) < 1e-12
    assert 1e-8 < float(row.rounding_error) < 1e-5
    assert not check_in_double(row)  # once
    assert not check_in_double(Row("test_resnet", **small))


def test_a_fault_that_float64_shows_too_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    found = DoubleCheck(evaluating=1e-13, training=1e-4, rounding=1e-7)
    monkeypatch.setattr(sweep_expand, "in_double", lambda *_: found)
    row = Row("x", image_size="64", relative_error="2e-5", training_relative_error="1e-4")
    assert check_in_double(row) and row.failure == "outputs moved by more than 1e-07 in float64"


def test_a_large_model_is_checked_by_two_layers_of_each_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(expand_check, "WHOLE", 0)
    assert 6 <= exactness_of("test_resnet").layers < structure_of("test_resnet").expanded


def test_a_lively_model_hides_nothing() -> None:
    model = lively(timm.create_model("test_efficientnet", num_classes=7))
    assert all(p.any() for p in model.parameters())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(m.running_mean.any() and m.running_var.std() > 0.1 for m in norms)


def test_relative_errors_are_of_the_largest_output_and_refuse_outputs_that_say_nothing() -> None:
    a, b = torch.tensor([4.0, 2.0]), torch.tensor([4.0, 1.0])
    assert relative_error([a, a], [a, b]) == 0.25
    for blind in (torch.zeros(2), torch.tensor([1.0, torch.inf])):
        with pytest.raises(ValueError, match="an output of the dense model is"):
            relative_error([blind], [blind])


def test_a_sweep_resumes_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out" / "sweep.csv"
    command = ["expand", "--output", str(output), "--only"]
    assert sweep.main([*command, "test_convnext"]) == 0
    first = output.read_text().splitlines()
    assert sweep.main([*command, "test_convnext*"]) == 0
    rows = read(output)
    assert list(rows) == ["test_convnext", "test_convnext2", "test_convnext3"]
    assert output.read_text().splitlines()[:2] == first  # kept, seconds and all
    assert [row.represented_by for row in rows.values()] == ["test_convnext"] * 3
    assert [bool(row.relative_error) for row in rows.values()] == [True, False, False]
    monkeypatch.setattr(sweep_expand, "structure_of", None)
    monkeypatch.setattr(sweep_expand, "exactness_of", None)
    assert sweep.main([*command, "test_convnext*"]) == 0  # nothing left to do
    told = json.loads(output.with_suffix(".json").read_text())
    assert told["seed"] == 0 and {"cpu", "torch", "timm", "dtype"} <= set(told["machine"])


def test_a_failure_is_a_row_and_an_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(sweep_expand, "structure_of", broken)
    output = tmp_path / "sweep.csv"
    assert sweep_expand.main(["--only", "test_resnet", "--output", str(output)]) == 1
    assert read(output)["test_resnet"].failure == "RuntimeError: first line"
    assert "test_resnet: RuntimeError: first line" in capsys.readouterr().err
    monkeypatch.undo()  # mended, and done anew
    assert sweep_expand.main(["--only", "test_resnet", "--output", str(output)]) == 0
    assert read(output)["test_resnet"].relative_error


@pytest.mark.parametrize("arguments", [[], ["shrink"], ["expand", "--only", "nothing_such"]])
def test_wrong_commands_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        sweep.main(arguments)


def test_the_result_file_holds_every_architecture_and_no_failure() -> None:
    with RESULTS.open(newline="") as file:
        table = csv.DictReader(file)
        assert table.fieldnames == [field.name for field in fields(Row)]
    rows = read(RESULTS)
    swept = json.loads(RESULTS.with_suffix(".json").read_text())["machine"]["timm"]
    if swept == timm.__version__:
        assert set(rows) == set(timm.list_models(exclude_filters="linop_*"))
    for row in rows.values():
        assert row.failure == "" and row.state_dict_keys_equal == "true"
        if row.relative_error:
            assert row.represented_by == row.architecture
            assert row.lost_gradients == "0"
            errors = float(row.relative_error), float(row.training_relative_error)
            assert bool(row.relative_error_float64) == (max(errors) > TOLERANCE)
        for error in (row.relative_error_float64, row.training_relative_error_float64):
            assert float(error or 0) <= DOUBLE_TOLERANCE


def test_the_document_holds_the_tables_of_the_result_file() -> None:
    document = (Path(__file__).parents[1] / "docs" / "expansion.md").read_text()
    assert summary(read(RESULTS).values()) in document


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "coat_lite_tiny"])
def test_the_result_file_agrees_with_a_rerun(name: str) -> None:
    kept, now = read(RESULTS)[name], structure_row(name)
    for column in ("layers_expanded", "layers_left_alone", "left_alone_because", "layer_kinds"):
        assert getattr(kept, column) == getattr(now, column)
    assert (kept.parameters_before, kept.parameters_after, kept.state_dict_keys_equal) == (
        now.parameters_before,
        now.parameters_after,
        now.state_dict_keys_equal,
    )
