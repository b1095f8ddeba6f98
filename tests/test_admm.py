"""Filter-wise ADMM: the projection is the nearest point, the steps are the paper's, zeros hold."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks import admm as digits
from timm_linop.channels.coupled import ChannelGroup
from timm_linop.errors import CheckpointError, PruningError, RecipeError
from timm_linop.pruning.admm import ADMM, check_stable, project
from timm_linop.pruning.silence import silence
from timm_linop.recipe import ADMMConfig
from timm_linop.regulariser import Regulariser


@st.composite
def tied_filters(draw: st.DrawFn) -> tuple[list[Tensor], list[Tensor], int, int]:
    """Up to three tensors of small whole numbers, so that many norms are equal."""
    size = draw(st.integers(1, 5))
    tied, units = [], []
    for _ in range(draw(st.integers(1, 3))):
        unit = draw(st.lists(st.integers(-1, size - 1), min_size=1, max_size=7))
        values = st.lists(st.integers(-3, 3), min_size=2 * len(unit), max_size=2 * len(unit))
        tied.append(torch.tensor(draw(values), dtype=torch.float64).view(len(unit), 2, 1))
        units.append(torch.tensor(unit))
    return tied, units, draw(st.integers(0, size)), size


def without(tied: list[Tensor], units: list[Tensor], gone: tuple[int, ...]) -> list[Tensor]:
    """Zero units row by row."""
    found = [tensor.clone() for tensor in tied]
    for tensor, unit in zip(found, units, strict=True):
        for row, number in enumerate(unit.tolist()):
            if number in gone:
                tensor[row] = 0
    return found


def distance(one: list[Tensor], other: list[Tensor]) -> float:
    return sum(float((a - b).square().sum()) for a, b in zip(one, other, strict=True))


@settings(max_examples=50)
@given(tied_filters())
def test_no_choice_of_units_is_nearer(case: tuple[list[Tensor], list[Tensor], int, int]) -> None:
    tied, units, keep, size = case
    found, kept = project(tied, units, keep, size)
    choices = list(itertools.combinations(range(size), size - keep))
    distances = [distance(tied, without(tied, units, gone)) for gone in choices]
    assert distance(tied, found) == min(distances)
    # Of the nearest the one whose zeros stand last: ties go to the lowest index.
    nearest = [c for c, far in zip(choices, distances, strict=True) if far == min(distances)]
    assert tuple((~kept).nonzero().flatten().tolist()) == max(nearest)
    # Tied rows go together, and those of unit -1 never.
    expected = without(tied, units, max(nearest))
    assert all(map(torch.equal, found, expected))


@settings(max_examples=50)
@given(tied_filters())
def test_projecting_twice_is_projecting_once(
    case: tuple[list[Tensor], list[Tensor], int, int],
) -> None:
    tied, units, keep, size = case
    once = project(tied, units, keep, size).tensors
    assert all(map(torch.equal, project(once, units, keep, size).tensors, once))


def two_layers() -> tuple[nn.Module, list[ChannelGroup]]:
    """Four channels with a norm, in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double()
    outputs = "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"
    axes = {(name, 0): torch.arange(4) for name in outputs} | {("3.weight", 1): torch.arange(4)}
    return model, [ChannelGroup("0", 4, axes)]


def test_the_iterations_are_those_of_the_paper() -> None:
    """Against the three lines of the algorithm, written out for one layer without tied filters."""
    model, groups = two_layers()
    stages = ADMMConfig(rho=0.5, rho_stages=2, admm_iterations=4)
    admm = ADMM(model, groups, {"0": 2}, steps=8, settings=stages)
    w: Any = model[0].weight

    def nearest(point: Tensor) -> Tensor:
        return point * (point.norm(dim=1) >= point.norm(dim=1).sort().values[2])[:, None]

    z, u = nearest(w.detach()), torch.zeros_like(w)
    for step in range(1, 9):
        rho = 0.5 if step <= 4 else 5.0
        assert admm.rho == rho
        (gradient,) = torch.autograd.grad(admm.penalty(), w)
        torch.testing.assert_close(gradient, rho * (w - z + u).detach())
        with torch.no_grad():
            w.add_(torch.randn_like(w))
        admm.after_step(step)
        if step % 2 == 0:
            z, before = nearest(w.detach() + u), z
            u = u + w.detach() - z
            u = u / 10 if step == 4 else u
            row = admm.history[-1]
            assert row["step"] == step and row["rho"] == rho
            torch.testing.assert_close(admm.state_dict()["z"]["0.weight"], z)
            torch.testing.assert_close(admm.state_dict()["u"]["0.weight"], u)
            assert (row["changed"] == 1) == (not torch.equal(z.any(1), before.any(1)))
    assert len(admm.history) == 4


def test_residuals_are_over_all_that_is_cut() -> None:
    model, groups = two_layers()
    admm = ADMM(model, groups, {"0": 3}, steps=1)
    cut = [model[0].weight, model[0].bias, model[1].weight, model[1].bias]
    gone = admm.removed()["0"]
    expected = sum(p[gone].detach().square().sum() for p in cut) / sum(
        p.detach().square().sum() for p in cut
    )
    admm.after_step(1)
    assert admm.history[0]["residual"] == pytest.approx(float(expected.sqrt()))
    assert admm.history[0]["dual_residual"] == 0 and not admm.converged


@pytest.mark.parametrize("steps", [1, 2, 7, 15, 16, 40, 331])
def test_iterations_are_spread_evenly_and_end_with_the_last_step(steps: int) -> None:
    model, groups = two_layers()
    admm = ADMM(model, groups, {"0": 2}, steps)
    for step in range(1, steps + 1):
        admm.after_step(step)
    at = [int(row["step"]) for row in admm.history]
    assert len(at) == min(15, steps) and at[-1] == steps
    gaps = {b - a for a, b in itertools.pairwise([0, *at])}
    assert max(gaps) - min(gaps) <= 1
    if steps >= 15:
        assert [row["rho"] for row in admm.history] == [0.1] * 5 + [1.0] * 5 + [10.0] * 5


def test_a_tensor_of_two_groups_is_one_copy() -> None:
    """A depthwise convolution behind a concatenation holds rows of both."""
    model = nn.Sequential(nn.Conv2d(4, 4, 1, groups=4, bias=False))
    one, two = torch.tensor([0, 1, -1, -1]), torch.tensor([-1, -1, 0, 1])
    groups = [ChannelGroup(name, 2, {("0.weight", 0): u}) for name, u in (("a", one), ("b", two))]
    model.get_parameter("0.weight").data[:] = torch.tensor([1.0, 2, 4, 3]).view(4, 1, 1, 1)
    admm = ADMM(model, groups, {"a": 1, "b": 1}, steps=4)
    assert admm.removed() == {"a": [0], "b": [1]}
    assert admm.penalty().item() == pytest.approx(0.05 * (1 + 9))


def test_what_is_removed_is_zero_in_the_projection_of_the_weights_as_they_are() -> None:
    model, groups = two_layers()
    admm = ADMM(model, groups, {"0": 2}, steps=4)
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([[1.0], [4], [2], [3]]).expand(4, 3))
    assert admm.removed() == {"0": [0, 2]}


def test_a_loop_that_is_resumed_goes_on_bit_for_bit(tmp_path: Path) -> None:
    images = torch.randn(20, 8, 3, dtype=torch.float64)

    def steps(model: nn.Module, admm: Regulariser, first: int, last: int) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        for step in range(first, last):
            optimizer.zero_grad()
            (model(images[step]).square().mean() + admm.penalty()).backward()
            optimizer.step()
            admm.after_step(step + 1)

    model, groups = two_layers()
    admm = ADMM(model, groups, {"0": 2}, steps=20)
    steps(model, admm, 0, 9)
    torch.save({"model": model.state_dict(), "admm": admm.state_dict()}, tmp_path / "state.pt")
    steps(model, admm, 9, 20)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    again, _ = two_layers()
    resumed = ADMM(again, groups, {"0": 2}, steps=20)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["admm"])
    steps(again, resumed, 9, 20)
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))
    assert admm.history == resumed.history and len(admm.history) == 15
    found, expected = resumed.state_dict(), admm.state_dict()
    for part in "z", "u", "kept":
        assert all(torch.equal(found[part][name], expected[part][name]) for name in expected[part])


def test_a_state_of_other_filters_is_refused() -> None:
    model, groups = two_layers()
    state = ADMM(model, groups, {"0": 2}, steps=4).state_dict()
    other = nn.Sequential(nn.Linear(5, 4))
    group = ChannelGroup("0", 4, {("0.weight", 0): torch.arange(4)})
    with pytest.raises(CheckpointError, match=r"no copy of 0.weight \(\[4, 5\]\)"):
        ADMM(other, [group], {"0": 2}, steps=4).load_state_dict(state)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"0": 0}, "keep at least 1"),
        ({"0": 5}, "no more"),
        ({"0": 4}, "stay whole"),
        ({}, "stay whole"),
        ({"O": 2}, "no group"),
    ],
)
def test_impossible_numbers_of_units_are_refused(kept: dict[str, int], message: str) -> None:
    with pytest.raises(PruningError, match=message):
        ADMM(*two_layers(), kept, steps=4)


@pytest.mark.parametrize(
    "wrong", [{"rho": 0.0}, {"rho_factor": 0.5}, {"rho_stages": 0}, {"admm_iterations": 2}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=f"{next(iter(wrong))}="):
        ADMMConfig(**wrong)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_what_is_called_stable_stays_and_twice_as_much_may_not(
    momentum: float, nesterov: bool
) -> None:
    """torch's own SGD on rho/2 w^2, with the least rho that is refused and twice that."""
    lr, limit = 0.1, (1 + momentum) / (1 + 2 * momentum) / 0.1
    check_stable(ADMMConfig(rho=0.999 * limit, rho_stages=1), lr, momentum)
    with pytest.raises(RecipeError, match="overshoot"):
        check_stable(ADMMConfig(rho=1.001 * limit, rho_stages=1), lr, momentum)

    def after_steps(rho: float) -> float:
        w = nn.Parameter(torch.ones(1, dtype=torch.float64))
        options = {"momentum": momentum, "nesterov": nesterov and momentum > 0}
        optimizer = torch.optim.SGD([w], lr=lr, **options)
        for _ in range(200):
            w.grad = rho * w.detach()
            optimizer.step()
        return abs(w.item())

    assert after_steps(limit) < 1e-3
    if nesterov and momentum:  # the kind that sets the limit
        assert after_steps(2.05 * limit) > 1e3


def test_on_digits_it_converges_and_the_cut_costs_next_to_nothing() -> None:
    data, test = digits.digits()
    model = digits.Residual()
    digits.train(model, data, epochs=6, lr=0.05, cosine=True)
    groups = digits.groups_of(model)
    at_once = digits.slim_of(model, ADMM(model, groups, digits.KEPT, steps=1).removed())
    admm = ADMM(model, groups, digits.KEPT, steps=12 * 21)
    check_stable(admm.settings, lr=0.01, momentum=0.9)
    digits.train(model, data, epochs=12, lr=0.01, method=admm)
    before = digits.accuracy(model, test)
    assert admm.converged and admm.history[0]["residual"] > 0.1
    removed = admm.removed()
    assert {layer: len(gone) for layer, gone in removed.items()} == {
        "stem": 10,
        "first": 10,
        "last": 20,
    }
    silence(model, groups, removed)
    after = digits.accuracy(digits.slim_of(model, removed), test)
    assert after > 90 and before - after < 1.5
    assert after > digits.accuracy(at_once, test) + 40
