"""Silenced channels can be cut without a trace; a filter of zeros alone cannot."""

from __future__ import annotations

import pytest
import torch

from benchmarks.admm import Residual, groups_of, slim_of
from timm_linop.channels.masked import with_lively_numbers
from timm_linop.pruning.silence import silence

REMOVED = {"stem": [0, 3, 15], "first": [2, 4], "last": [1, 7, 30, 31]}


@pytest.fixture
def model() -> Residual:
    return with_lively_numbers(Residual().double()).eval()  # norms with shifts and statistics


def test_a_cut_of_silenced_units_changes_no_logit(model: Residual) -> None:
    images = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    dense = model(images)
    silence(model, groups_of(model), REMOVED)
    silent, slim = model(images), slim_of(model, REMOVED)
    assert slim.get_parameter("last.weight").shape == (28, 13, 3, 3)
    torch.testing.assert_close(slim(images), silent, rtol=0, atol=1e-12)
    assert (silent - dense).abs().max() > 1e-2


@pytest.mark.parametrize("norm", ["stem_norm", "first_norm", "second_norm", "last_norm"])
def test_a_shift_that_is_left_is_missed(model: Residual, norm: str) -> None:
    images = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    bias = model.get_parameter(f"{norm}.bias")
    shift = bias.detach().abs() + 0.1
    silence(model, groups_of(model), REMOVED)
    bias.data[:] = shift
    assert (slim_of(model, REMOVED)(images) - model(images)).abs().max() > 1e-3


def test_only_what_is_named_is_zeroed(model: Residual) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    silence(model, groups_of(model), {"first": [2, 4]})
    for name, tensor in model.state_dict().items():
        if name in ("first.weight", "first_norm.weight", "first_norm.bias"):
            assert not tensor[[2, 4]].any()
            before[name][[2, 4]] = 0
        assert torch.equal(tensor, before[name])
