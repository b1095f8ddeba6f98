"""Trainability: Jacobians against torch's own, OrthP against its definition; the study's parts."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks import trainability as study
from benchmarks.rows import read_table
from benchmarks.trainability_summary import summary
from timm_linop.errors import DataError, PruningError
from timm_linop.expand import expand
from timm_linop.pruning.trainability import mean_jacobian_singular_value, orthogonalize

# --- the mean JSV -------------------------------------------------------------------------------


def test_a_linear_networks_jacobian_is_the_product_of_its_weights() -> None:
    model = nn.Sequential(nn.Linear(7, 6), nn.Linear(6, 5), nn.Linear(5, 3)).double()
    weights = [layer.weight.detach() for layer in model]
    values = torch.linalg.svdvals(weights[2] @ weights[1] @ weights[0])
    assert len(values) == 3
    images = torch.randn(5, 7, dtype=torch.float64)
    told = mean_jacobian_singular_value(model, images)
    assert told == pytest.approx(values.mean().item(), rel=1e-12)


def conv_net() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(36, 3),
    )  # fmt: skip
    model[1].running_mean.normal_()
    return model.double()


def test_a_nonlinear_networks_jacobian_is_torchs_image_by_image() -> None:
    model, images = conv_net(), torch.randn(5, 2, 5, 5, dtype=torch.float64)
    frozen = copy.deepcopy(model).eval()
    expected = []
    for image in images:
        jacobian: Any = torch.autograd.functional.jacobian(lambda x: frozen(x[None])[0], image)
        gram = jacobian.flatten(1) @ jacobian.flatten(1).T
        expected += torch.linalg.eigvalsh(gram).sqrt().tolist()
    mean = math.fsum(expected) / len(expected)
    assert len(set(expected)) == 15  # it does depend on the image
    for chunk in (1, 2, 16):
        assert mean_jacobian_singular_value(model, images, chunk) == pytest.approx(mean, rel=1e-12)


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = conv_net().train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mean_jacobian_singular_value(model, torch.randn(2, 2, 5, 5, dtype=torch.float64))
    assert model.training and model[3].training and not model[1].training
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_timm_models_are_measured(name: str) -> None:
    model = timm.create_model(name, num_classes=2)
    assert mean_jacobian_singular_value(model, torch.randn(1, *model.pretrained_cfg["input_size"]))


def test_what_has_no_jacobian_of_logits() -> None:
    with pytest.raises(DataError, match="there are none"):
        mean_jacobian_singular_value(nn.Linear(2, 2), torch.zeros(0, 2))
    model = nn.Conv2d(2, 3, 1).train()
    with pytest.raises(PruningError, match="whole classifier"):
        mean_jacobian_singular_value(model, torch.zeros(1, 2, 4, 4))
    assert model.training


# --- OrthP --------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 7), st.sampled_from([1.0, 2**0.5]))
def test_orthogonalised_weights(seed: int, outputs: int, inputs: int, gain: float) -> None:
    torch.manual_seed(seed)
    layer = nn.Linear(inputs, outputs).double()
    old, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    assert orthogonalize(layer, gain) is layer
    new = layer.weight.detach()
    gram = new @ new.T if outputs <= inputs else new.T @ new
    expected = gain**2 * torch.eye(len(gram), dtype=torch.float64)
    torch.testing.assert_close(gram, expected, rtol=0, atol=1e-12)
    assert torch.equal(layer.bias, bias)
    # Gram-Schmidt keeps the first vector's direction, and the side that the others point to.
    vectors = (old, new) if outputs < inputs else (old.T, new.T)
    first, turned = vectors[0][0], vectors[1][0]
    torch.testing.assert_close(turned, gain * first / first.norm(), rtol=0, atol=1e-9)
    assert ((vectors[0] * vectors[1]).sum(1) > 0).all()
    orthogonalize(layer, gain)  # what is orthogonal stays
    torch.testing.assert_close(layer.weight.detach(), new, rtol=0, atol=1e-12)


def test_convolutions_are_flattened_and_others_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 16, 1))
    model.append(nn.Conv2d(16, 16, 3, groups=16))
    norm = model[1].weight.detach().clone()
    twin = orthogonalize(copy.deepcopy(model), nn.init.calculate_gain("relu"))
    assert not torch.equal(twin[0].weight, model[0].weight)
    orthogonalize(model, 2**0.5)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)  # no chance in it
    assert torch.equal(model[1].weight, norm)
    wide, tall, depthwise = (model[i].weight.detach().flatten(1) for i in (0, 2, 3))
    for gram in (wide @ wide.T, tall.T @ tall, depthwise.T @ depthwise):
        torch.testing.assert_close(gram, 2 * torch.eye(len(gram)), rtol=0, atol=1e-5)


def test_weights_without_rank_and_expanded_ones() -> None:
    layer = nn.Linear(3, 3)
    nn.init.zeros_(layer.weight)
    rows = orthogonalize(layer).weight.detach()
    torch.testing.assert_close(rows @ rows.T, torch.eye(3))
    with pytest.raises(PruningError, match="contract"):
        orthogonalize(expand(nn.Sequential(nn.Linear(3, 3))))


# --- the study ----------------------------------------------------------------------------------


def test_units_leave_the_linear_network_as_masking_them_would() -> None:
    model = study.linear_mlp([5, 8, 8, 3])
    marked = {"0": [1, 7], "1": [0, 2, 3]}
    slim = study.without(model, marked)
    assert [tuple(layer.weight.shape) for layer in slim] == [(6, 5), (5, 6), (3, 5)]
    for layer, gone in ((model[0], marked["0"]), (model[1], marked["1"])):
        layer.weight.data[gone], layer.bias.data[gone] = 0, 0
    x = torch.randn(4, 5)
    torch.testing.assert_close(slim(x), model(x))


@pytest.mark.parametrize(
    ("ratio", "kept"), [(0.1, 90), (0.3, 70), (0.7, 30), (0.55, 45), (0.551, 44), (0.999, 1)]
)
def test_how_many_units_stay(ratio: float, kept: int) -> None:
    assert study.units_kept(100, ratio) == kept


def test_the_study_goes_on_where_it_stopped(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "images_of", functools.cache(study.images_of))
    tiny = study.Study(images=100, dense_steps=2, steps=2, seeds=(0,), ratios=(0.0, 0.5))
    output = tmp_path / "rows.csv"
    study.run("digits", tiny, output)
    whole = output.read_text()
    rows = read_table(output)
    assert [(row["method"], row["lr"]) for row in rows] == [
        (method, lr)
        for method in ("dense", *study.METHODS, *study.CONTROLS)
        for lr in ("0.01", "0.001")
    ]
    assert float(rows[4]["jsv_pruned"]) == pytest.approx(1)
    lines = whole.splitlines(keepends=True)
    output.write_text("".join(lines[:5]))
    study.run("digits", tiny, output)
    assert output.read_text() == whole
    assert study.main(["--summary", "--output", str(output)]) == 0
    assert "| 0.5 |" in capsys.readouterr().out and output.with_suffix(".png").stat().st_size
    with pytest.raises(SystemExit, match="other settings"):
        study.run("digits", dataclasses.replace(tiny, steps=3), output)


def test_the_tables_hold_means_over_seeds() -> None:
    rows = [
        dict(
            zip(study.COLUMNS, (str(seed), "0.5", method, "0.01", jsv, "9", "2", top), strict=True)
        )
        for seed, jsv, top in ((0, "0.1", "80"), (1, "0.4", "82"))
        for method in ("L1", "L1+OrthP", "TPP")
    ]
    cell = "0.2 → 2 | 81.0 ± 1.4"
    assert summary(rows).splitlines()[-1] == f"| 0.5 | {cell} | {cell} | {cell} |"
