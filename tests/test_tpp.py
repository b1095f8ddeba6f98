"""TPP: its Gram loss against the formula, its marks, its schedule, and a run that is resumed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from timm_linop.channels.coupled import ChannelGroup
from timm_linop.errors import CheckpointError, PruningError, RecipeError
from timm_linop.pruning.tpp import (
    TrainabilityPreserving,
    gram_penalty,
    marked_units,
)
from timm_linop.recipe import TPPConfig
from timm_linop.regulariser import Regulariser


def kept_but(size: int, gone: set[int]) -> Tensor:
    return torch.tensor([i not in gone for i in range(size)])


def by_pairs(weight: Tensor, kept: Tensor) -> float:
    """L_gram of the paper, one pair of filters after the other."""
    rows = [row.flatten().tolist() for row in weight]
    total = 0.0
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            if not (kept[i] and kept[j]):
                total += math.fsum(x * y for x, y in zip(a, b, strict=True)) ** 2
    return total / len(rows) ** 2


# --- the Gram loss ------------------------------------------------------------------------------


def test_the_gram_loss_has_its_stated_value_and_gradient() -> None:
    weight = torch.randn(8, 5, 3, 3, dtype=torch.float64).requires_grad_()
    kept = kept_but(8, {1, 4, 6})
    loss = gram_penalty(weight, kept)
    assert abs(loss.item() - 133.38766979520756) < 1e-12
    loss.backward()
    w, m = weight.detach().flatten(1), kept.double()
    formula = 4 / 8**2 * ((1 - torch.outer(m, m)) * (w @ w.T)) @ w
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad.flatten(1), formula, rtol=1e-13, atol=1e-13)
    small = weight.detach()[:4, :2, :2, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda w: gram_penalty(w, kept[:4]), small)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 6), st.data())
def test_what_the_gram_loss_is(seed: int, filters: int, numbers: int, data: Any) -> None:
    weight = torch.randn(
        filters, numbers, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    kept = torch.tensor(data.draw(st.lists(st.booleans(), min_size=filters, max_size=filters)))
    order = torch.tensor(data.draw(st.permutations(range(filters))))
    loss = gram_penalty(weight, kept).item()
    assert loss == pytest.approx(by_pairs(weight, kept), rel=1e-12)
    assert loss == pytest.approx(gram_penalty(weight[order], kept[order]).item(), rel=1e-12)
    assert loss == pytest.approx(gram_penalty(3 * weight, kept).item() / 81, rel=1e-12)
    assert (loss == 0) == bool(kept.all())  # the diagonal of what goes is in it
    weight[~kept] = 0
    assert gram_penalty(weight, kept).item() == 0


# --- which units --------------------------------------------------------------------------------


def conv_group() -> tuple[nn.Sequential, ChannelGroup]:
    """Two convolutions tied to each other (as in a residual stream), each with a norm."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
    )
    model.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)))
    units = torch.arange(6)
    outputs = ["0.weight", "0.bias", "2.weight", "2.bias"]
    norms = [f"{i}.{name}" for i in (1, 3) for name in ("weight", "bias", "running_mean")]
    axes = {(name, 0): units for name in outputs + norms}
    return model, ChannelGroup("0", 6, axes | {("2.weight", 1): units, ("4.2.weight", 1): units})


def weights(model: nn.Module, name: str) -> Tensor:
    return model.get_parameter(name).data


def test_the_smallest_mean_over_all_tied_filters_is_marked() -> None:
    model, group = conv_group()
    expected = []
    for unit in range(6):
        numbers = [*weights(model, "0.weight")[unit].flatten().tolist()]
        numbers += weights(model, "2.weight")[unit].flatten().tolist()
        expected.append((sum(map(abs, numbers)) / len(numbers), unit))
    assert marked_units(model, group, 2) == sorted(unit for _, unit in sorted(expected)[:4])
    weights(model, "0.weight")[[1, 5]] = 0
    weights(model, "2.weight")[[1, 5]] = 0
    assert marked_units(model, group, 4) == [1, 5]
    assert marked_units(model, group, 5) == [1]  # of equal ones the first
    assert marked_units(model, group, 6) == []


def test_rows_that_interleave_or_belong_to_no_unit() -> None:
    model = nn.Sequential(nn.Linear(2, 7), nn.Linear(7, 1))
    weights(model, "0.weight")[:] = torch.tensor([9, 5, 1, 0, 3, 5, 1.0])[:, None]
    units = torch.tensor([0, 1, 2, -1, 0, 1, 2])
    group = ChannelGroup("0", 3, {("0.weight", 0): units, ("0.bias", 0): units})
    assert marked_units(model, group, 2) == [2]
    tpp = TrainabilityPreserving(model, [group], {"0": 2}, steps=1)
    kept = kept_but(7, {2, 6})
    assert tpp.penalty().item() == pytest.approx(
        1000 * by_pairs(weights(model, "0.weight"), kept)
        + (4 + weights(model, "0.bias")[~kept].square().sum().item()) / 2
    )


def test_what_cannot_be_marked() -> None:
    model, group = conv_group()
    with pytest.raises(PruningError, match="0 of 6 channels of 0 cannot stay"):
        marked_units(model, group, 0)
    with pytest.raises(PruningError, match="no filters"):
        marked_units(model, ChannelGroup("1", 6, {("1.weight", 0): torch.arange(6)}), 3)
    for kept, what in (({}, "these have only one"), ({"0": 3, "8": 1}, "8"), ({"0": 6}, "every")):
        with pytest.raises(PruningError, match=what):
            TrainabilityPreserving(model, [group], kept, steps=10)
    with pytest.raises(PruningError, match="0 steps"):
        TrainabilityPreserving(model, [group], {"0": 3}, steps=0)
    for wrong in ({"tpp_gram": -1.0}, {"tpp_top": 0.0}, {"tpp_stabilise": 1.0}):
        with pytest.raises(RecipeError, match="out of range"):
            TPPConfig(**wrong)


# --- the schedule -------------------------------------------------------------------------------


def test_lambda_is_the_papers_and_scales() -> None:
    model, group = conv_group()
    cifar = TrainabilityPreserving(model, [group], {"0": 3}, steps=110_000)
    told = [cifar.coefficient(step) for step in (9, 10, 19, 20, 50_000, 99_999, 100_000, 110_000)]
    assert told == pytest.approx([0, 1e-4, 1e-4, 2e-4, 0.5, 0.9999, 1, 1], abs=1e-12)
    longer = TPPConfig(tpp_stabilise=40 / 90)
    imagenet = TrainabilityPreserving(model, [group], {"0": 3}, 90_000, longer)
    told = [imagenet.coefficient(step) for step in (4, 5, 49_999, 50_000)]
    assert told == pytest.approx([0, 1e-4, 0.9999, 1], abs=1e-12)
    short = TrainabilityPreserving(model, [group], {"0": 3}, 11, TPPConfig(tpp_top=4.0))
    assert [short.coefficient(step) for step in range(1, 12)] == pytest.approx(
        [0.4, 0.8, 1.2, 1.6, 2, 2.4, 2.8, 3.2, 3.6, 4, 4]
    )
    assert TrainabilityPreserving(model, [group], {"0": 3}, steps=1).coefficient(1) == 1


# --- the penalty --------------------------------------------------------------------------------


def test_the_penalty_is_the_specified_sum() -> None:
    model, group = conv_group()
    for name in ("1.weight", "1.bias", "3.weight", "3.bias"):
        weights(model, name).normal_()
    tpp: Regulariser = TrainabilityPreserving(model, [group], {"0": 2}, steps=4)
    gone = tpp.removed()["0"]
    kept = kept_but(6, set(gone))
    tpp.penalty().backward()
    parameters = dict(model.named_parameters())
    for name in ("0.bias", "2.bias", "1.weight", "1.bias", "3.weight", "3.bias"):
        grad = parameters[name].grad
        assert grad is not None and (grad[kept] == 0).all()
        torch.testing.assert_close(grad[gone], 0.25 * weights(model, name)[gone])
    for name in ("0.weight", "2.weight"):
        w, m = weights(model, name).flatten(1), kept.float()
        expected = 1000 * 4 / 36 * ((1 - torch.outer(m, m)) * (w @ w.T)) @ w
        expected[gone] += w[gone]
        grad = parameters[name].grad
        assert grad is not None
        torch.testing.assert_close(grad.flatten(1), 0.25 * expected)
    assert parameters["4.2.weight"].grad is None


def test_groups_that_share_a_layer_are_one_gram_matrix() -> None:
    """Such as queries, keys and values made by one layer, with groups of their own."""
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 2))
    none = torch.full((3,), -1)
    first, second = torch.cat([torch.arange(3), none]), torch.cat([none, torch.arange(3)])
    groups = [ChannelGroup(n, 3, {("0.weight", 0): u}) for n, u in (("a", first), ("b", second))]
    tpp = TrainabilityPreserving(model, groups, {"a": 1, "b": 2}, steps=1)
    gone = tpp.removed()
    rows = {*gone["a"], *(3 + unit for unit in gone["b"])}
    assert len(rows) == 3
    weight = weights(model, "0.weight")
    expected = 1000 * by_pairs(weight, kept_but(6, rows)) + weight[list(rows)].square().sum() / 2
    assert tpp.penalty().item() == pytest.approx(float(expected), rel=1e-5)


def test_half_precision_around_it_changes_nothing() -> None:
    model, group = conv_group()
    tpp = TrainabilityPreserving(model, [group], {"0": 2}, steps=4)
    expected = tpp.penalty()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tpp.penalty(), expected)


# --- a run --------------------------------------------------------------------------------------

STEPS = 22


def start() -> tuple[nn.Sequential, TrainabilityPreserving, torch.optim.Optimizer]:
    torch.manual_seed(7)
    model, group = conv_group()
    tpp = TrainabilityPreserving(model, [group], {"0": 2}, STEPS)
    return model, tpp, torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-3)


def go(
    model: nn.Module, tpp: Regulariser, optimizer: torch.optim.Optimizer, steps: range
) -> list[float]:
    said = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(8, 3, 6, 6, generator=generator)
        penalty = tpp.penalty()
        loss = nn.functional.cross_entropy(model(images), torch.arange(8) % 4) + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tpp.after_step(step + 1)
        said.append(penalty.item())
    return said


def test_marked_channels_are_zero_while_the_rest_settles_and_can_then_be_removed() -> None:
    model, tpp, optimizer = start()
    gone = tpp.removed()["0"]
    said = go(model, tpp, optimizer, range(19))
    assert min(said) > 0 and (weights(model, "0.weight")[gone] != 0).all()
    said = go(model, tpp, optimizer, range(19, STEPS))
    assert said[0] > 0 and said[1:] == [0, 0]  # 2 of 22 steps, an eleventh, to settle
    for name in ("0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "3.weight", "3.bias"):
        assert (weights(model, name)[gone] == 0).all()
    kept = [unit for unit in range(6) if unit not in gone]
    images = torch.randn(2, 3, 6, 6)
    whole = model.eval()[:2](images)
    assert (whole[:, gone] == 0).all() and (whole[:, kept] != 0).any()
    assert tpp.removed() == {"0": gone}  # fixed from the start


def test_the_history_tells_how_marked_filters_leave() -> None:
    model, tpp, optimizer = start()
    go(model, tpp, optimizer, range(STEPS))
    assert [row["step"] for row in tpp.history] == list(range(1, STEPS + 1))
    assert {*map(frozenset, tpp.history)} == {
        frozenset({"step", "coefficient", "gram", "marked", "kept"})
    }
    assert tpp.history[-1]["gram"] == tpp.history[-1]["marked"] == 0 < tpp.history[-1]["kept"]
    assert tpp.history[18]["gram"] < tpp.history[0]["gram"]
    long = TrainabilityPreserving(*conv_args(), steps=1001)
    for step in range(1001):
        long.after_step(step + 1)
    assert len(long.history) <= 201 and long.history[-1]["step"] == 1001


def conv_args() -> tuple[nn.Sequential, list[ChannelGroup], dict[str, int]]:
    model, group = conv_group()
    return model, [group], {"0": 2}


@pytest.mark.parametrize("at", [5, 20])  # while it grows, and while the rest settles
def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path, at: int) -> None:
    model, tpp, optimizer = start()
    go(model, tpp, optimizer, range(STEPS))
    other, first, its = start()
    go(other, first, its, range(at))
    torch.save((other.state_dict(), first.state_dict(), its.state_dict()), tmp_path / "state.pt")
    states = torch.load(tmp_path / "state.pt", weights_only=True)
    other, _, its = start()
    other.load_state_dict(states[0])  # which would be marked otherwise by now
    nn.init.normal_(other[0].weight)
    second = TrainabilityPreserving(other, [conv_group()[1]], {"0": 2}, STEPS)
    assert second.removed() != first.removed()
    other.load_state_dict(states[0])
    second.load_state_dict(states[1])
    its.load_state_dict(states[2])
    go(other, second, its, range(at, STEPS))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert second.history == tpp.history and second.removed() == tpp.removed()


def test_a_state_of_another_run_is_refused() -> None:
    model, group = conv_group()
    state = TrainabilityPreserving(model, [group], {"0": 3}, steps=5).state_dict()
    with pytest.raises(CheckpointError, match="pruning ratio"):
        TrainabilityPreserving(model, [group], {"0": 2}, steps=5).load_state_dict(state)


def test_a_timm_models_block() -> None:
    """The inner channels of a residual block: zeros there leave the block's outputs alone."""
    model = timm.create_model("test_resnet", num_classes=5)
    block = "layer2.0"
    size = model.get_submodule(f"{block}.conv1").out_channels
    units = torch.arange(size)
    names = ["conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"]
    axes = {(f"{block}.{name}", 0): units for name in names} | {(f"{block}.conv2.weight", 1): units}
    group = ChannelGroup(f"{block}.conv1", size, axes)
    tpp = TrainabilityPreserving(model, [group], {group.layer: size // 2}, 1)
    gone = tpp.removed()[group.layer]
    loss = tpp.penalty()
    loss.backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        f"{block}.{name}" for name in names[:3]
    }
    tpp.after_step(1)
    model.eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        model.get_parameter(f"{block}.conv2.weight")[:, gone] = 1e3  # nothing comes through
        assert torch.equal(model(images), expected)


def test_what_is_left_when_it_is_cut_off() -> None:
    """Without a step of training nothing fades."""
    model, group = conv_group()
    tpp = TrainabilityPreserving(model, [group], {"0": 3}, steps=22)
    for step in range(1, 23):
        tpp.after_step(step)
    rows = weights(model, "0.weight")
    assert tpp.removed()["0"] and (rows[tpp.removed()["0"]] == 0).all()
    assert 0.1 < tpp.left < 1
    assert tpp.left == tpp.history[0]["marked"] / tpp.history[0]["kept"]
