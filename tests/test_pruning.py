"""Pruning against hand-made networks, channel masks, and counts."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import timm_linop
from tests.slims import CLASSES, FAMILIES, NORMED, dense_and_slim, images, lively, slim, twin
from timm_linop.channels import groups
from timm_linop.channels.assist import equal_parts, outputs_to_keep
from timm_linop.errors import PruningError, StructureError
from timm_linop.pruning import prune, pruned


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_untouched(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]), name
        assert tensor.dtype == before[name].dtype


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def kept_of(narrow: Tensor, wide: Tensor) -> Tensor:
    """Positions in ``wide`` of the numbers of ``narrow``; random numbers tell channels apart."""
    match = narrow[:, None] == wide[None, :]
    assert (match.sum(1) == 1).all()
    return match.int().argmax(1)


# --- what comes out -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_fewer_parameters_the_same_classes_an_untouched_model(name: str) -> None:
    model, pruned = dense_and_slim(name)
    before = lively(name)
    assert_untouched(model, state(before))
    assert model.training and not pruned.training
    assert vars(model)["_model_args"] == vars(before)["_model_args"]
    assert all(p.requires_grad for p in model.parameters())
    # about a quarter: half of the inputs by half of the outputs; depthwise layers only halve
    assert 0.2 * size(model) < size(pruned) < 0.6 * size(model)
    assert pruned(images(name)).shape == (2, CLASSES)
    assert pruned.num_classes == CLASSES
    assert type(pruned) is type(model)
    assert pruned.pretrained_cfg["architecture"] == f"linop_{name}"


@pytest.mark.parametrize("round_to", [1, 4, 8, None])
def test_channels_come_in_multiples(round_to: int | None) -> None:
    pruned = prune(lively("test_efficientnet"), ratio=0.3, round_to=round_to)
    widths = [m.num_features for m in pruned.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(width % (round_to or 1) == 0 for width in widths)
    if round_to in (1, None):
        assert any(width % 4 for width in widths)


def test_a_higher_ratio_removes_more() -> None:
    model = lively("test_resnet")
    sizes = [size(prune(model, ratio=ratio, round_to=1)) for ratio in (0.1, 0.5, 0.9)]
    assert size(model) > sizes[0] > sizes[1] > sizes[2]


def test_it_is_deterministic() -> None:
    again = prune(lively("test_resnet"), images("test_resnet"), ratio=0.5)
    assert_untouched(again, state(slim("test_resnet")))


@pytest.mark.parametrize("name", NORMED)
def test_the_slim_model_computes_what_a_masked_one_does(name: str) -> None:
    """Silencing the removed channels of the dense model gives the slim model's logits."""
    dense, narrow = lively(name), slim(name)
    norms = {n: m for n, m in narrow.named_modules() if isinstance(m, nn.BatchNorm2d)}
    masked = 0
    with torch.no_grad():
        for key, norm in norms.items():
            wide = dense.get_submodule(key)
            kept = kept_of(norm.running_mean, wide.running_mean)
            assert torch.equal(wide.weight[kept], norm.weight)
            removed = torch.ones(wide.num_features, dtype=torch.bool)
            removed[kept] = False
            wide.weight[removed], wide.bias[removed] = 0, 0
            masked += int(removed.sum())
        for key, reduce in narrow.named_modules():  # squeeze-excitation: a ReLU follows, no norm
            if key.endswith("conv_reduce"):
                wide = dense.get_submodule(key)
                removed = torch.ones(wide.out_channels, dtype=torch.bool)
                removed[kept_of(reduce.bias, wide.bias)] = False
                wide.weight[removed], wide.bias[removed] = 0, 0
    assert masked > 100
    x = images(name)
    assert torch.allclose(dense(x), narrow(x), rtol=1e-4, atol=1e-5)


def test_the_channels_of_smallest_norm_go() -> None:
    """conv1 and bn1 of one residual branch: the only group of which a hand can set every norm."""
    dense: Any = lively("test_resnet")
    block = dense.layer1[0]
    small = torch.tensor([1, 4, 5, 10, 11, 13, 20, 25, 26, 31, 2, 17, 29, 8, 3, 7])
    small = small[: block.bn1.num_features // 2]
    with torch.no_grad():
        block.conv1.weight[small] *= 1e-3
        block.bn1.weight[small] *= 1e-3
        block.bn1.bias[small] *= 1e-3
        block.conv2.weight[:, small] *= 1e-3
    pruned: Any = prune(dense, ratio=0.5)
    kept = kept_of(pruned.layer1[0].bn1.running_mean, block.bn1.running_mean)
    assert set(kept.tolist()) == set(range(block.bn1.num_features)) - set(small.tolist())
    assert kept.tolist() == sorted(kept.tolist())  # in their old order


def test_attention_keeps_its_heads_and_their_scale() -> None:
    narrow: Any = slim("test_vit")
    for block, dense in zip(narrow.blocks, timm.create_model("test_vit").blocks, strict=True):
        attention = block.attn
        assert attention.num_heads == dense.attn.num_heads == 2
        assert attention.qkv.out_features == 3 * 2 * attention.head_dim
        assert attention.head_dim < dense.attn.head_dim
        assert attention.scale == attention.head_dim**-0.5
    fused = narrow(images("test_vit"))
    plain: Any = copy.deepcopy(narrow)
    for block in plain.blocks:
        block.attn.fused_attn = False
    assert torch.allclose(plain(images("test_vit")), fused, atol=1e-5)


def test_pruning_twice_and_pruning_a_twin() -> None:
    once = slim("test_resnet")
    twice = prune(twin("test_resnet", once), images("test_resnet"), ratio=0.5)
    assert size(twice) < size(once)
    x = images("test_resnet")
    assert torch.equal(twin("test_resnet", twice)(x), twice(x))


@pytest.mark.parametrize(
    "args", [{"in_chans": 1}, {"num_classes": 0}, {"global_pool": "max"}], ids=str
)
def test_what_the_model_was_built_with_stays(args: dict[str, Any]) -> None:
    model = lively("test_resnet", **args)
    pruned = prune(model, ratio=0.5)
    x = images("test_resnet", args.get("in_chans", 3))
    assert pruned(x).shape[1] == (CLASSES if args.get("num_classes", 1) else pruned.num_features)
    assert torch.equal(twin("test_resnet", pruned)(x), pruned(x))
    if "global_pool" in args:
        assert pruned.global_pool.pool_type == "max"


def test_an_image_size_of_ones_own() -> None:
    model = lively("test_vit", img_size=96)
    pruned = prune(model, ratio=0.5)
    assert pruned(torch.randn(1, 3, 96, 96)).shape == (1, CLASSES)
    assert pruned.pos_embed.shape[1] == model.pos_embed.shape[1] == 1 + (96 // 16) ** 2


def test_double_precision_stays() -> None:
    x = images("test_resnet")
    pruned = prune(lively("test_resnet").double(), x, ratio=0.5)
    assert {p.dtype for p in pruned.parameters()} == {torch.float64}
    assert torch.allclose(pruned(x.double()), slim("test_resnet")(x).double(), atol=1e-4)


def test_no_warning_filter_is_left_behind() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filters = list(warnings.filters)
        prune(lively("test_resnet"), images("test_resnet"), ratio=0.5)
        assert warnings.filters == filters


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0, 1, 0.0, 1.0, -1, 2, float("nan"), float("inf"), "0.5"])
def test_a_ratio_out_of_range(ratio: Any) -> None:
    model = lively("test_resnet")
    before = state(model)
    with pytest.raises(PruningError, match=r"^ratio=.*between 0 and 1; 0\.5 removes half"):
        prune(model, ratio=ratio)
    assert_untouched(model, before)


@pytest.mark.parametrize("round_to", [-8, 2.5, "8", True, float("nan")])
def test_a_multiple_that_is_none(round_to: Any) -> None:
    with pytest.raises(PruningError, match=r"^round_to=.*a whole number from 1 on"):
        prune(lively("test_resnet"), ratio=0.5, round_to=round_to)


def test_nothing_to_remove_is_said() -> None:
    with pytest.raises(PruningError, match=r"nothing was removed; .* smaller round_to"):
        prune(lively("test_resnet"), images("test_resnet"), ratio=0.5, round_to=1_000)


def test_an_expanded_model() -> None:
    wide = timm_linop.expand(lively("test_resnet"), 1, seed=0)
    before = state(wide)
    with pytest.raises(PruningError, match=r"expanded; contract\(model\) it before"):
        prune(wide, ratio=0.5)
    assert_untouched(wide, before)
    assert size(prune(timm_linop.contract(wide), ratio=0.5)) == size(slim("test_resnet"))


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Sequential()], ids=["Linear", "empty"])
def test_a_model_that_timm_did_not_make(model: nn.Module) -> None:
    with pytest.raises(StructureError, match="does not say which timm architecture it is"):
        prune(model, torch.randn(1, 2), ratio=0.5)


@pytest.mark.parametrize(
    "example",
    [torch.randn(1, 5, 64, 64), torch.randn(3), torch.zeros(0, 3, 64, 64), torch.randn(1, 3, 1, 1)],
    ids=["channels", "axes", "empty", "tiny"],
)
def test_images_that_do_not_fit(example: Tensor) -> None:
    model = lively("test_convnext")
    before = state(model)
    with pytest.raises(PruningError, match=r"^(test_convnext cannot be pruned|example holds no)"):
        prune(model, example, ratio=0.5)
    assert_untouched(model, before)


def test_a_backbone_of_features_only() -> None:
    backbone = timm.create_model("test_resnet", features_only=True)
    with pytest.raises(StructureError, match=r"no tensor 'fc\.bias'"):
        prune(backbone, images("test_resnet"), ratio=0.5)


# --- what the pruner is told --------------------------------------------------------------------


def test_the_classifiers_are_kept() -> None:
    model: Any = timm.create_model("test_resnet")
    assert outputs_to_keep(model) == [model.fc]
    assert outputs_to_keep(nn.Linear(2, 2)) == []


def test_heads_are_told() -> None:
    model: Any = timm.create_model("test_vit")
    assert equal_parts(model) == {block.attn.qkv: 2 for block in model.blocks}


def test_what_the_graph_cannot_follow_is_whole_and_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_scores = groups._with_scores

    def walks_in_circles(graph: Any, group: Any, *rest: Any) -> Any:
        if "layer2.0.conv1" in group[0].dep.target.name:
            raise TimeoutError
        return with_scores(graph, group, *rest)

    monkeypatch.setattr(groups, "_with_scores", walks_in_circles)
    dense = timm.create_model("test_resnet")
    slim_model, report = pruned(dense, ratio=0.5)
    assert report.not_followed == ("layer2.0.conv1",)
    assert slim_model.layer2[0].conv1.out_channels == dense.layer2[0].conv1.out_channels
    assert slim_model.layer3[0].conv1.out_channels < dense.layer3[0].conv1.out_channels
    assert "could not be followed from these layers: layer2.0.conv1" in caplog.text
