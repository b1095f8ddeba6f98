"""How much goes: ratios, targets, files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from timm_linop.bench import Cost
from timm_linop.channels.coupled import ChannelGroup
from timm_linop.channels.groups import stay
from timm_linop.errors import PruningError, RecipeError, UnknownLayerError
from timm_linop.pruning.amount import counts, first_within, read_ratios
from timm_linop.recipe import PruneConfig


def group(layer: str, size: int, *others: str) -> ChannelGroup:
    units = torch.arange(size)
    return ChannelGroup(layer, size, {(f"{name}.weight", 0): units for name in (layer, *others)})


GROUPS = [group("stem", 16), group("layer1.0.conv1", 32), group("layer1.0.conv2", 64, "stem.down")]


def free(_: Any) -> Cost:
    raise AssertionError("a ratio needs no costs")


def test_a_ratio_is_every_groups() -> None:
    assert counts(GROUPS, PruneConfig(ratio=0.75, round_to=1), free) == {
        "stem": 4, "layer1.0.conv1": 8, "layer1.0.conv2": 16,
    }  # fmt: skip
    assert counts(GROUPS, PruneConfig(), free)["layer1.0.conv2"] == 32  # half, if nothing is said


@pytest.mark.parametrize("name", ["target_params", "target_macs"])
@pytest.mark.parametrize("target", [0.3, 3000])
def test_a_target_is_met_and_no_more_is_taken_than_that(name: str, target: float) -> None:
    def cost(kept: dict[str, int]) -> Cost:
        amount = sum(kept.values()) * 100
        return Cost(amount, 0) if name == "target_params" else Cost(0, amount)

    config = PruneConfig(round_to=1, **{name: target})
    kept = counts(GROUPS, config, cost)
    wanted = target * 11_200 if target <= 1 else target
    assert sum(kept.values()) * 100 <= wanted
    all_sums = [sum(stay(g, step / 1000, 1) for g in GROUPS) for step in range(1000)]
    assert sum(kept.values()) == max(each for each in all_sums if each * 100 <= wanted)


def test_a_target_out_of_reach() -> None:
    with pytest.raises(PruningError, match=r"target_macs=0\.01 .* 1,000 macs, and 300 stay"):
        first_within(PruneConfig(target_macs=0.01), 7, lambda stage: Cost(0, 1000 - 100 * stage))


@given(st.integers(1, 999), st.integers(1, 60))
def test_the_first_stage_within_is_the_first(target: int, most: int) -> None:
    amounts = [1000 - 1000 * stage // (most + 1) for stage in range(most + 1)]
    within = [stage for stage, amount in enumerate(amounts) if amount <= target]
    config = PruneConfig(target_params=target if target > 1 else 1.0001)
    if within:
        assert first_within(config, most, lambda stage: Cost(amounts[stage], 0)) == within[0]
    else:
        with pytest.raises(PruningError, match="out of reach"):
            first_within(config, most, lambda stage: Cost(amounts[stage], 0))


@pytest.mark.parametrize("target", [1, 1000, 5000])
def test_a_target_that_removes_nothing(target: float) -> None:
    with pytest.raises(PruningError, match="removes nothing: the dense model has 1,000 parameters"):
        first_within(PruneConfig(target_params=target), 7, lambda _: Cost(1000, 0))


def test_ratios_of_layers(tmp_path: Path) -> None:
    (tmp_path / "ratios.yaml").write_text("layer1.*: 0.5\nstem: 0.75\n")
    config = PruneConfig(ratios=str(tmp_path / "ratios.yaml"), round_to=1)
    # stem.down goes with layer1.0.conv2 and lies below "stem", so two ratios would be its own
    with pytest.raises(PruningError, match=r"stem\.down: 0\.75"):
        counts(GROUPS, config, free)
    given_here = PruneConfig(ratios={"layer1.0.conv1": 0.5}, round_to=1)
    assert counts(GROUPS, given_here, free) == {
        "stem": 16, "layer1.0.conv1": 16, "layer1.0.conv2": 64,
    }  # fmt: skip
    with pytest.raises(UnknownLayerError, match=r"'layer1\.0\.conv3'.* Close names: "):
        counts(GROUPS, PruneConfig(ratios={"layer1.0.conv3": 0.5}), free)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("", "must hold lines"), ("- 0.5", "must hold lines"), ("conv1: 1.0", "no fraction"),
     ("conv1: half", "no fraction"), ("conv1: true", "no fraction"), ("a: [", "cannot be read")],
)  # fmt: skip
def test_a_file_that_holds_no_ratios(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "ratios.yaml").write_text(text)
    with pytest.raises(PruningError, match=problem):
        read_ratios(str(tmp_path / "ratios.yaml"))


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(PruningError, match=r"'no\.yaml' cannot be read: .*No such file"):
        read_ratios("no.yaml")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"ratio": 0.5, "target_params": 0.5}, "both say how much"),
        ({"target_params": 0}, "target_params=0 is out of range"),
        ({"target_macs": float("nan")}, "target_macs=nan is out of range"),
        ({"method": "admn"}, r"method='admn' is unknown.*Close names: 'admm'"),
        ({"method": "tpp", "criterion": "l1"}, "criterion='l1' is of --method magnitude"),
        ({"method": "curl", "ratios": "file.yaml"}, "a global ranking decides that itself"),
        ({"scope": "global", "iterative_steps": 2}, "use --scope local"),
        ({"floor": 1.0}, r"floor=1\.0 is out of range"),
        ({"iterative_steps": 0}, "iterative_steps=0 is out of range"),
        ({"recalibrate": -1}, "recalibrate=-1 is out of range"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        PruneConfig(**options)
