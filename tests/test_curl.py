"""CURL: scores against models whose numbers are zero, and the walk up the ranking."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.commands import run_script
from timm_linop.channels.coupled import ChannelGroup
from timm_linop.channels.masked import with_lively_numbers
from timm_linop.errors import PruningError
from timm_linop.pruning import curl
from timm_linop.pruning.curl import as_scored, kl_scores
from timm_linop.pruning.ranking import ranking
from timm_linop.pruning.rerun import reruns


def lively(name: str, **options: Any) -> nn.Module:
    return with_lively_numbers(timm.create_model(name, num_classes=5, **options).double().eval())


def tied(model: nn.Module, *layers: str) -> ChannelGroup:
    """The outputs of layers and norms, one unit a channel."""
    found = dict(model.named_parameters())
    names = [f"{layer}.{key}" for layer in layers for key in ("weight", "bias")]
    size = len(found[names[0]])
    return ChannelGroup(
        layers[0], size, {(name, 0): torch.arange(size) for name in names if name in found}
    )


@torch.no_grad()
def with_zeros(model: nn.Module, group: ChannelGroup, unit: int) -> nn.Module:
    model = copy.deepcopy(model)
    for (name, axis), units in group.units.items():
        rows = (units == unit).nonzero().flatten()
        model.get_parameter(name).index_fill_(axis, rows, 0)
    return model


@torch.no_grad()
def check_against_zeros(model: nn.Module, group: ChannelGroup, units: list[int], size: int) -> None:
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    scored, laid_out, called = as_scored(model, images)
    with reruns(scored, group, laid_out, called) as (logits, without):
        found = {unit: without(unit) for unit in units}
        again = without(units[0])
    whole = model(images)
    torch.testing.assert_close(logits, whole, rtol=1e-9, atol=1e-9)
    assert torch.equal(again, found[units[0]])  # nothing is left behind
    torch.testing.assert_close(scored(laid_out), whole, rtol=1e-9, atol=1e-9)
    seen = 0.0  # a unit behind a ReLU may be silent on these images, but not all of them
    for unit in units:
        expected = with_zeros(model, group, unit)(images)
        seen = max(seen, (expected - whole).abs().max().item())
        torch.testing.assert_close(found[unit], expected, rtol=1e-9, atol=1e-9)
    assert seen > 1e-6


# --- one unit silenced ----------------------------------------------------------------------------

RESNET = [
    ["conv1.0", "conv1.1"],
    ["conv1.6", "bn1", "layer1.0.conv2", "layer1.0.bn2"],
    ["layer2.0.conv1", "layer2.0.bn1"],
    ["layer2.0.conv2", "layer2.0.bn2", "layer2.0.downsample.1", "layer2.0.downsample.2"],
    ["layer3.0.conv3", "layer3.0.bn3", "layer3.0.downsample.1", "layer3.0.downsample.2"],
    ["layer4.0.conv1", "layer4.0.bn1"],
]
EFFICIENTNET = [
    ["conv_stem", "bn1"],
    ["blocks.0.0.conv", "blocks.0.0.bn1"],
    [f"blocks.3.0.{name}" for name in ("conv_pw", "bn1", "conv_dw", "bn2", "se.conv_expand")],
    ["blocks.3.0.se.conv_reduce"],
    ["blocks.4.0.conv_pwl", "blocks.4.0.bn3"],
    ["conv_head", "bn2"],
]


@pytest.mark.parametrize("act", ["relu", "silu"])  # in place, and not the same when done twice
@pytest.mark.parametrize("layers", RESNET, ids=lambda layers: layers[0])
def test_a_unit_of_a_resnet(layers: list[str], act: str) -> None:
    model = lively("test_resnet", act_layer=act)
    check_against_zeros(model, tied(model, *layers), [0, 5, 14], 32)


@pytest.mark.parametrize("layers", EFFICIENTNET, ids=lambda layers: layers[0])
def test_a_unit_of_an_efficientnet(layers: list[str]) -> None:
    model = lively("test_efficientnet")
    check_against_zeros(model, tied(model, *layers), [0, 3, 7], 32)


def test_a_residual_stream_of_tokens() -> None:
    """Embeddings of places are masked, too; they are nobody's output."""
    model = lively("test_vit")
    layers = ["patch_embed.proj", "norm"]
    for block in range(6):
        layers += [f"blocks.{block}.{name}" for name in ("norm1", "attn.proj", "norm2", "mlp.fc2")]
    group = tied(model, *layers)
    places = {(name, 2): torch.arange(64) for name in ("cls_token", "pos_embed")}
    group = ChannelGroup(group.layer, 64, {**group.units, **places})
    check_against_zeros(model, group, [0, 63], 160)


def test_a_unit_has_rows_in_each_part_of_a_fused_layer() -> None:
    model = lively("test_vit")
    units = (torch.arange(32).repeat(2) % 16).repeat(3)  # one in each head, of q, k and v
    units[32:64] = -1
    name = "blocks.2.attn.qkv"
    group = ChannelGroup(name, 16, {(f"{name}.{key}", 0): units for key in ("weight", "bias")})
    check_against_zeros(model, group, [0, 15], 160)


@pytest.mark.parametrize("last", [True, False])
def test_channels_that_come_last(last: bool) -> None:
    model = lively("test_convnext", conv_mlp=not last, ls_init_value=1.0)
    check_against_zeros(model, tied(model, "stages.1.blocks.0.mlp.fc1"), [0, 127], 64)
    norm = "stages.1.blocks.0.norm"
    check_against_zeros(model, tied(model, "stages.1.blocks.0.conv_dw", norm), [0, 31], 64)


def test_a_layer_that_is_read_and_not_called() -> None:
    model = Reader().double()
    check_against_zeros(model, tied(model, "0"), [0, 3], 2)


class Reader(nn.Sequential):
    """It takes no maps with channels last, either."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(12, 4), nn.Linear(4, 5))

    def forward(self, images: Tensor) -> Tensor:
        inner = nn.functional.linear(images.view(len(images), 12), self[0].weight, self[0].bias)
        return self[1](inner.relu())


def test_tensors_that_are_changed_in_place() -> None:
    model = InPlace().double()
    check_against_zeros(model, tied(model, "stem", "dense", "depthwise"), [0, 1, 2], 4)


class InPlace(nn.Module):
    """A stream with nothing between its layers, and what came before it; both are overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.stem = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.dense, self.depthwise = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, groups=4)
        self.last = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        before = self.before(images)
        stream = self.stem(images)
        stream += self.dense(stream)
        stream = self.depthwise(stream)
        before.mul_(2).add_(1)
        return self.last(torch.cat([before, stream], 1).sigmoid_().mean((2, 3)) - 0.5)


def test_only_what_a_unit_changes_is_computed() -> None:
    """Multiply-adds behind the last layer of the group that passes each channel on by itself."""
    model, images = lively("test_efficientnet"), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    scored, laid_out, called = as_scored(model, images)
    block = ["blocks.4.0.conv_pw", "blocks.4.0.bn1", "blocks.4.0.conv_dw", "blocks.4.0.bn2"]
    behind = {"conv_head": 256 * 5, block[0]: 2 * 192 * 12 + 192 * 64 + 64 * 256 + 256 * 5}
    for group in (tied(model, "conv_head", "bn2"), tied(model, *block)):
        with (
            reruns(scored, group, laid_out, called) as (_, without),
            FlopCounterMode(display=False) as counter,
        ):
            without(0)
        assert counter.get_total_flops() == 2 * len(images) * behind[group.layer]


# --- scores ---------------------------------------------------------------------------------------


def small() -> tuple[nn.Module, list[ChannelGroup], Tensor]:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)
    )
    return model, [tied(model, "0"), tied(model, "3")], torch.randn(7, 4)


def test_scores_are_the_mean_divergence_of_masked_from_whole_predictions() -> None:
    model, groups, images = small()
    scores = kl_scores(model, groups, images, batch_size=3)
    assert model.training and list(scores) == ["0", "3"]
    exact, images = copy.deepcopy(model).eval().double(), images.double()
    for group in groups:
        for unit in range(group.size):
            p = exact(images).softmax(1)
            masked = with_zeros(exact, group, unit)(images).softmax(1)
            expected = (masked * (masked / p).log()).sum(1).mean().item()
            assert scores[group.layer][unit].item() == pytest.approx(expected, rel=1e-4)


def test_a_score_may_be_tiny() -> None:
    """As the divergence is of second order: half the variance of what is added to the logits."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[1].weight.copy_(torch.tensor([[1e-4, 0.0], [0.0, 0.0]]))
    score = kl_scores(model, [tied(model, "0")], torch.ones(4, 2))["0"]
    assert score.tolist() == [pytest.approx(1e-8 / 2 / 4, rel=1e-3), 0]


def test_known_scores_are_not_computed_again() -> None:
    model, groups, images = small()
    all_scores = kl_scores(model, groups, images)
    told: list[str] = []
    known = {"0": torch.zeros(6)}
    scores = kl_scores(
        model, groups, images, done=known, after_group=lambda layer, _: told.append(layer)
    )
    assert told == ["3"] and scores["0"].eq(0).all() and torch.equal(scores["3"], all_scores["3"])
    with pytest.raises(PruningError, match=r"known for \[5\] units, but it has 6"):
        kl_scores(model, groups, images, done={"0": torch.zeros(5)})


def test_what_cannot_be_scored() -> None:
    model, groups, images = small()
    with pytest.raises(PruningError, match="0 images"):
        kl_scores(model, groups, images[:0])
    with pytest.raises(PruningError, match="not finite with units of 0"):
        kl_scores(model, groups, images * float("nan"))


def test_shares_of_processes_make_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes, one after the other: each gathers what all have."""
    model, groups, images = small()
    shares: list[Any] = []

    def gather(mine: list[tuple[int, float]]) -> list[tuple[int, float]]:
        shares.append(mine)
        return [pair for share in shares[-3:] for pair in share]

    monkeypatch.setattr(curl, "gather_object", gather)
    for index in range(3):
        accelerator: Any = SimpleNamespace(process_index=index, num_processes=3)
        found = kl_scores(model, groups[1:], images, accelerator=accelerator)
    assert [len(share) for share in shares] == [2, 2, 1]  # of five units
    torch.testing.assert_close(found["3"], kl_scores(model, groups, images)["3"])


@pytest.mark.slow
def test_two_processes_score_as_one(tmp_path: Path) -> None:
    """One of the groups has a single unit, so one of the processes has nothing to do."""
    script = """
import sys, torch
from accelerate import Accelerator
from timm_linop.pruning.curl import kl_scores
from tests.test_curl import small, tied
model, groups, images = small()
model[3], model[5] = torch.nn.Linear(6, 1), torch.nn.Linear(1, 3)
groups[1], accelerator = tied(model, "3"), Accelerator(cpu=True)
alone = kl_scores(model, groups, images)
shared = kl_scores(model, groups, images, accelerator=accelerator)
assert accelerator.num_processes == 2
for layer, scores in alone.items():
    torch.testing.assert_close(shared[layer], scores)
"""
    (tmp_path / "script.py").write_text(script)
    run_script([f"{tmp_path}/script.py"], 2)


# --- who goes -------------------------------------------------------------------------------------

SCORES = st.dictionaries(
    st.sampled_from("abcd"),
    st.lists(st.integers(0, 9).map(float), min_size=1, max_size=12).map(torch.tensor),
    min_size=1,
)
FLOORS = st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0])


def walk(scores: dict[str, Tensor], count: float, floor: float) -> list[tuple[str, int]]:
    """As the paper has it: up the list, until so many are gone."""
    units = [(v, g, u) for g, values in scores.items() for u, v in enumerate(values.tolist())]
    names = list(scores)
    units.sort(key=lambda unit: (unit[0], names.index(unit[1]), unit[2]))
    gone: list[tuple[str, int]] = []
    for _, group, unit in units:
        if len(gone) == count:
            break
        left = len(scores[group]) - sum(name == group for name, _ in gone)
        if left / len(scores[group]) < floor or left == 1:
            continue
        gone.append((group, unit))
    return gone


def global_choice(scores: dict[str, Tensor], count: int, floor: float) -> dict[str, list[int]]:
    chosen: dict[str, list[int]] = {group: [] for group in scores}
    for group, unit in ranking(scores, floor)[:count]:
        chosen[group].append(unit)
    return {group: sorted(units) for group, units in chosen.items()}


@given(SCORES, FLOORS, st.data())
def test_the_choice_is_the_papers_walk(
    scores: dict[str, Tensor], floor: float, data: st.DataObject
) -> None:
    order = ranking(scores, floor)
    assert order == walk(scores, float("inf"), floor)
    count = data.draw(st.integers(0, len(order)))
    chosen = global_choice(scores, count, floor)
    assert list(chosen) == list(scores)
    pairs = {(group, unit) for group, units in chosen.items() for unit in units}
    assert pairs == set(walk(scores, count, floor)) == set(order[:count])  # and so they are nested


@given(SCORES, FLOORS, st.data())
def test_who_goes_scores_no_more_than_who_could_have_gone(
    scores: dict[str, Tensor], floor: float, data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, len(ranking(scores, floor))))
    chosen = global_choice(scores, count, floor)
    highest = max((scores[g][u].item() for g, us in chosen.items() for u in us), default=-1.0)
    for group, units in chosen.items():
        size = len(scores[group])
        left = size - len(units)
        assert left >= 1 and (not units or (left + 1) / size >= floor)
        if left > 1 and left / size >= floor:
            stay = [scores[group][unit].item() for unit in range(size) if unit not in units]
            assert min(stay) >= highest


def test_the_last_to_go_may_take_a_group_below_the_floor() -> None:
    chosen = global_choice({"a": torch.arange(10.0), "b": 20 + torch.arange(3.0)}, 10, floor=0.3)
    assert chosen == {"a": list(range(8)), "b": [0, 1]}  # 2 of 10, and one that always stays


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda scores: ranking(scores, floor=1.5), r"floor=1\.5"),
        (lambda scores: ranking({"b": torch.tensor([float("nan")])}), "units of b"),
    ],
)
def test_what_cannot_be_chosen(call: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    with pytest.raises(PruningError, match=message):
        call({"a": torch.zeros(4)})
