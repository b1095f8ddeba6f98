"""Coupled channels: cuts against hand-made networks, and a mask check that can fail."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import timm
import torch
import torch_pruning as tp
from torch import Tensor, nn

from timm_linop.channels.assist import (
    add_missing_biases,
    call_fused_layers,
    parameters_without_channels,
    without_channels,
)
from timm_linop.channels.coupled import ChannelGroup
from timm_linop.channels.cut import Cut, cut_tensors, kept_by
from timm_linop.channels.graph import ChannelGraph, Clock
from timm_linop.channels.groups import describe, find_groups, least, stay
from timm_linop.channels.masked import MaskCheck, masked, with_lively_numbers
from timm_linop.channels.units import passing
from timm_linop.rebuild import resize
from timm_linop.structure import Structure


def proposed(model: nn.Module, example: Tensor) -> list[Cut]:
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    spoilt = copy.deepcopy(model).double().eval()
    found = find_groups(spoilt, example.double(), importance)
    return [
        group.cut(least(found.scores[group.layer], group.size - stay(group, 0.5, None)))
        for group in found.groups
    ]


def checked(model: nn.Module, example: Tensor) -> MaskCheck:
    return MaskCheck(model, example, lambda slim, shapes: resize(slim, shapes, {}))


class Net(nn.Module):
    """A convolution whose outputs are split; the second half is used first."""

    def __init__(self, split: str, axis: int) -> None:
        super().__init__()
        self.split, self.axis = split, axis
        self.first = nn.Conv2d(3, 8, 1)
        self.on_left = nn.Conv2d(4, 6, 1)
        self.on_right = nn.Conv2d(4, 6, 1)
        self.last = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        left, right = y.chunk(2, 1) if self.split == "chunk" else y.split(4, self.axis)
        a = self.on_right(right).relu()
        b = self.on_left(left).sigmoid() + a
        return self.last(torch.cat([b, a], 1)).mean((2, 3))


# --- what is cut --------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "axis"), [("chunk", 1), ("split", 1), ("split", -3)])
def test_halves_that_are_used_in_another_order(split: str, axis: int) -> None:
    """torch-pruning alone gives each half to the wrong layer, and says nothing."""
    torch.manual_seed(3)
    model, x = Net(split, axis), torch.randn(2, 3, 4, 4)
    cuts = proposed(model, x)
    check = checked(model, x)
    # the split makes equal halves, so half of one half would not run; channels still go together
    first = next(cut for cut in cuts if ("first.weight", 0) in cut.removed)
    gone = first.removed["first.weight", 0]
    assert first.removed.get(("on_left.weight", 1), frozenset()) == {i for i in gone if i < 4}
    assert first.removed.get(("on_right.weight", 1), frozenset()) == {i - 4 for i in gone if i > 3}
    inner = [cut for cut in cuts if ("on_right.weight", 0) in cut.removed]
    assert len(inner) == 1 and ("on_left.weight", 0) in inner[0].removed  # added to each other
    assert check.passes(inner)


def test_a_concatenation_that_several_groups_take_from() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
            self.last = nn.Conv2d(10, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.cat([self.a(x), self.b(x)], 1))

    model, x = Two(), torch.randn(1, 3, 4, 4)
    cuts = [cut for cut in proposed(model, x) if ("last.weight", 0) not in cut.removed]
    assert len(cuts) == 2
    taken = [cut.removed["last.weight", 1] for cut in cuts]
    assert not taken[0] & taken[1] and sorted(map(len, taken)) == [2, 3]
    kept = kept_by(cuts, model)["last.weight"][1]
    assert sorted({*kept.tolist(), *taken[0], *taken[1]}) == list(range(10))
    assert checked(model, x).passes(cuts)


def test_depthwise_and_grouped_convolutions() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1, groups=2), nn.ReLU()
    )
    model.append(nn.Conv2d(8, 2, 1))
    x = torch.randn(1, 3, 5, 5)
    cuts = [cut for cut in proposed(model, x) if ("4.weight", 0) not in cut.removed]
    assert checked(model, x).passes(cuts)
    kept = kept_by(cuts, model)
    assert [len(axis) for axis in kept["1.weight"]] == [4, 1, 3, 3]
    assert [len(axis) for axis in kept["2.weight"]][:2] == [4, 2]


def test_what_stays_is_copied_out() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    cut = Cut("0", {("0.weight", 0): frozenset({1, 3}), ("1.weight", 1): frozenset({1, 3})})
    state = cut_tensors(model, kept_by([cut], model))
    weight: Any = model[0].weight
    assert torch.equal(state["0.weight"], weight[[0, 2]])
    assert state["1.weight"].shape == (2, 2) and state["1.bias"].shape == (2,)


@pytest.mark.parametrize(
    ("parts", "ratio", "round_to", "kept"),
    [(1, 0.5, None, 12), (1, 0.5, 8, 8), (2, 0.5, 8, 8), (3, 0.5, 8, 24), (1, 0.9, 8, 8),
     (4, 0.99, None, 4), (1, 0.01, None, 23)],
)  # fmt: skip
def test_how_many_stay(parts: int, ratio: float, round_to: int | None, kept: int) -> None:
    group = ChannelGroup("qkv", 24 // parts, {}, parts)
    assert stay(group, ratio, round_to) * parts == kept


def test_a_unit_takes_one_channel_of_each_part() -> None:
    """Each position's unit is read off by its binary digits: here by hand."""
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1, groups=2), nn.Conv2d(6, 2, 1))
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    found = find_groups(copy.deepcopy(model).double(), torch.randn(1, 3, 4, 4).double(), importance)
    first = next(group for group in found.groups if group.layer == "0")
    assert (first.size, first.parts) == (3, 2)
    assert first.units["0.weight", 0].tolist() == [0, 1, 2, 0, 1, 2]
    assert first.units["1.weight", 1].tolist() == [0, 1, 2]
    assert first.cut([1]).removed["0.bias", 0] == {1, 4}
    assert found.scores["0"].shape == (3,)


# --- the check ----------------------------------------------------------------------------------


def shifted(cut: Cut, axis: tuple[str, int], size: int) -> Cut:
    """The same cut, but one layer loses its neighbours' channels."""
    moved = frozenset((position + 1) % size for position in cut.removed[axis])
    return dataclasses.replace(cut, removed={**cut.removed, axis: moved})


@pytest.mark.parametrize(
    "name",
    ["test_resnet", "test_efficientnet", "test_vit", "test_convnext", "test_nfnet", "resmlp_12_224",
     "ecaresnet26t"],
)  # fmt: skip
def test_a_layer_that_loses_other_channels_is_found_out(name: str) -> None:
    model = timm.create_model(name, num_classes=5).eval()
    x = torch.randn(1, *model.pretrained_cfg["input_size"])
    if name != "resmlp_12_224":
        x = x[..., :96, :96] if name != "test_vit" else x
    check = MaskCheck(model, x, Structure(name).narrow)
    cuts = proposed(model, x)
    cuts = [cuts[0], cuts[-1]]
    assert check.passes(cuts)
    for cut in cuts:
        axes = [axis for axis in cut.removed if axis[0].endswith("weight")]
        for axis in (axes[0], axes[-1]):
            size = model.get_parameter(axis[0]).shape[axis[1]]
            wrong = shifted(cut, axis, size)
            if wrong.removed != cut.removed:
                assert not check.passes([wrong]), axis


def test_a_masked_model_has_the_dense_shapes_and_silent_channels() -> None:
    model = with_lively_numbers(lively := nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).double())
    cut = Cut(
        "0", {(f"{i}.{key}", 0): frozenset({2}) for i in (0, 1) for key in ("weight", "bias")}
    )
    kept = kept_by([cut], model)
    slim = copy.deepcopy(lively)
    resize(slim, {name: tuple(map(len, axes)) for name, axes in kept.items()}, {})
    slim.load_state_dict(cut_tensors(model, kept))
    x = torch.randn(5, 3, dtype=torch.float64)
    wide = masked(model, slim, kept)(x)
    assert wide.shape == (5, 4) and (wide[:, 2] == 0).all()
    assert torch.allclose(wide[:, [0, 1, 3]], slim(x), atol=1e-12)  # the norm saw three channels


def test_a_slim_model_that_cannot_run_has_an_infinite_error() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    cut = Cut("0", {("0.weight", 0): frozenset({2}), ("0.bias", 0): frozenset({2})})
    assert checked(model, torch.randn(1, 3)).error([cut]) == float("inf")


# --- unit by unit -------------------------------------------------------------------------------

NAMES = ["stem", *(f"blocks.{i}.{part}" for i in range(3) for part in ("attn", "mlp")), "head"]


def cuts_of(names: Sequence[str]) -> list[Cut]:
    return [Cut(name, {(f"{name}.weight", 0): frozenset({0})}) for name in names]


@pytest.mark.parametrize(
    ("sound", "left"),
    [
        (lambda names: True, set()),
        (lambda names: "blocks.1.mlp" not in names, {"blocks.1.mlp"}),
        (lambda names: not any("attn" in name for name in names), set(NAMES[1:7:2])),
        # two that pass together only, beside one that never does
        (lambda names: ("stem" in names) == ("head" in names) and "blocks.0.attn" not in names,
         {"blocks.0.attn"}),
        (lambda names: False, set(NAMES)),
    ],
    ids=["all", "one", "kind", "pair", "none"],
)  # fmt: skip
def test_as_many_as_pass(sound: Any, left: set[str]) -> None:
    cuts = cuts_of(NAMES)
    good = passing(cuts, lambda some: sound([cut.layer for cut in some]), seconds=60)
    assert {cut.layer for cut in cuts} - {cut.layer for cut in good} == left
    assert good == [cut for cut in cuts if cut in good]  # in their order


def test_what_touches_the_same_tensors_is_tried_together() -> None:
    """Two stages of one kind, each with a stream that must shrink with its own attention."""
    cuts = [
        Cut(f"stage{i}.{part}", {(f"stage{i}.qkv.weight", axis): frozenset({0})})
        for i in (0, 1)
        for axis, part in enumerate(("attn", "stream"))
    ]

    def sound(some: Sequence[Cut]) -> bool:
        names = {cut.layer for cut in some}
        both = ("stage0.attn" in names) == ("stage0.stream" in names)
        return both and not names & {"stage1.attn", "stage1.stream"}

    assert [cut.layer for cut in passing(cuts, sound, 60)] == ["stage0.attn", "stage0.stream"]


def test_time_is_up() -> None:
    asked: list[int] = []

    def never(some: Sequence[Cut]) -> bool:
        asked.append(len(some))
        return len(some) == 1

    assert passing(cuts_of(NAMES), never, seconds=0) == []
    assert asked == [len(NAMES)]  # all at once, and no more


def test_few_names_stand_in_a_message() -> None:
    assert describe(cuts_of(["a", "b"])) == "a, b"
    assert describe(cuts_of(list("abcde"))) == "a, b, c and 2 more"


# --- the graph ----------------------------------------------------------------------------------


def test_a_graph_is_given_up_when_its_time_is_over() -> None:
    graph = ChannelGraph(channels_last=False)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    graph.build_dependency(model, torch.randn(1, 3, 4, 4))
    graph.clock.allow(-1)
    with pytest.raises(TimeoutError, match="in the time allowed"):
        graph.get_pruning_group(model[0], tp.prune_conv_out_channels, [0])
    assert Clock().deadline == float("inf")


def test_what_the_graph_is_told() -> None:
    cait = timm.create_model("cait_xxs24_224", num_classes=3)
    assert len(without_channels(cait)) == 2 * 24
    beit: Any = timm.create_model("beit_base_patch16_224", num_classes=3)
    biases = parameters_without_channels(beit)
    assert len(biases) == 12 and all(bias.shape == (732, 12) for bias in biases)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = beit(x)
        call_fused_layers(beit)
        assert torch.allclose(beit(x), expected, atol=1e-5)
    assert beit.blocks[0].attn.q_bias is None and beit.blocks[0].attn.qkv.bias is not None
    norm: Any = nn.GroupNorm(1, 4)
    norm.bias = None
    add_missing_biases(norm)
    assert torch.equal(norm.bias, torch.zeros(4))
