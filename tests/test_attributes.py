"""The table of settable attributes: each rule must say of the dense module what it says itself."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from timm_linop.architecture import dense_model
from timm_linop.limits import rules_of, table_row
from timm_linop.probing import set_attribute, settle
from timm_linop.structure import ATTRIBUTES, Structure

# The smallest architecture that holds each class of the table.
HOLDERS = {
    "attention.Attention": "test_vit",
    "beit.Attention": "beit_base_patch16_224",
    "blur_pool.BlurPool2d": "resnetblur18",
    "cait.ClassAttn": "cait_xxs24_224",
    "cait.TalkingHeadAttn": "cait_xxs24_224",
    "coat.ConvRelPosEnc": "coat_lite_tiny",
    "coat.FactorAttnConvRelPosEnc": "coat_lite_tiny",
    "conv._ConvNd": "test_resnet",
    "convit.MHSA": "convit_tiny",
    "crossvit.CrossAttention": "crossvit_tiny_240",
    "cspnet.CrossStage": "cspresnet50",
    "cspnet.CrossStage3": "cs3darknet_s",
    "davit.WindowAttention": "davit_tiny",
    "dla.DlaBottle2neck": "dla60_res2next",
    "fasternet.Partial_conv3": "fasternet_t0",
    "focalnet.FocalModulation": "focalnet_tiny_srf",
    "gcvit.WindowAttentionGlobal": "gcvit_xxtiny",
    "ghostnet.GhostModule": "ghostnet_050",
    "ghostnet.GhostModuleV3": "ghostnetv3_050",
    "hiera.MaskUnitAttention": "hiera_tiny_224",
    "hieradet_sam2.MultiScaleAttention": "sam2_hiera_tiny",
    "inception_next.InceptionDWConv2d": "inception_next_atto",
    "mambaout.GatedConvBlock": "test_mambaout",
    "maxxvit.Attention2d": "test_coatnet",
    "maxxvit.AttentionCl": "test_maxvit",
    "metaformer.Attention": "caformer_s18",
    "metaformer.Scale": "caformer_s18",
    "mixed_conv2d.MixedConv2d": "mixnet_s",
    "mobilevit.LinearSelfAttention": "mobilevitv2_050",
    "mvitv2.MultiScaleAttention": "mvitv2_tiny",
    "nest.Attention": "nest_tiny",
    "nextvit.EfficientAttention": "nextvit_small",
    "pvt_v2.Attention": "pvt_v2_b0",
    "res2net.Bottle2neck": "res2net50_14w_8s",
    "rexnet.LinearBottleneck": "rexnet_100",
    "selective_kernel.SelectiveKernel": "skresnet18",
    "shvit.SHSA": "shvit_s1",
    "swin_transformer.WindowAttention": "swin_tiny_patch4_window7_224",
    "tnt.Attention": "tnt_s_patch16_224",
    "tnt.PixelEmbed": "tnt_s_patch16_224",
    "twins.GlobalSubSampleAttn": "twins_svt_small",
    "twins.LocallyGroupedAttn": "twins_svt_small",
    "vision_transformer_relpos.RelPosAttention": "test_vit_relpos",
    "visformer.Attention": "visformer_tiny",
    "volo.Attention": "volo_d1_224",
    "volo.ClassAttention": "volo_d1_224",
}


def of_class(model: nn.Module, key: str) -> list[tuple[str, Any]]:
    return [(n, m) for n, m in model.named_modules() if table_row(m, {key: {"training": None}})]


def test_each_row_of_the_table_is_held_by_some_architecture() -> None:
    assert HOLDERS.keys() == ATTRIBUTES.keys()


@pytest.mark.parametrize("name", sorted(set(HOLDERS.values())))
def test_a_dense_model_follows_every_rule(name: str) -> None:
    model = dense_model(name, num_classes=5)
    rules = rules_of(model, {}, ATTRIBUTES)
    modules = dict(model.named_modules())
    before = {
        (module, attribute): getattr(modules[module], attribute)
        for module, own in rules.items()
        for attribute in own
    }
    for key in (key for key, holder in HOLDERS.items() if holder == name):
        assert of_class(model, key), f"no {key} in {name}"
    for (module, attribute), value in before.items():  # a rule must set what was spoilt, too
        if isinstance(value, int):
            setattr(modules[module], attribute, value + 1 if attribute != "channels" else value)
    settle(model, rules, new_classifier=False)
    for (module, attribute), value in before.items():
        after = getattr(modules[module], attribute)
        assert after == pytest.approx(value), f"{module}.{attribute}"
        assert type(after) is type(value)


@pytest.mark.parametrize("name", ["coat_lite_tiny", "crossvit_tiny_240"])
def test_modules_that_are_shared_keep_their_numbers(name: str) -> None:
    """One module under two names: a probe must not leave either without its numbers."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval()
    x = torch.randn(1, *model.pretrained_cfg["input_size"])
    expected = model(x)
    Structure(name).build(model)
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    assert torch.equal(model(x), expected)


def test_a_tuple_stays_a_tuple_and_a_fixed_filter_fits() -> None:
    pool: Any = timm.layers.BlurPool2d(channels=8)
    set_attribute(pool, "channels", 3)
    assert pool.channels == 3 and pool.filt.shape == (3, 1, 3, 3)
    assert pool(torch.ones(1, 3, 8, 8)).shape == (1, 3, 4, 4)


def test_attributes_that_a_file_tells_outweigh_the_rules() -> None:
    model: Any = timm.create_model("test_vit", num_classes=3)
    told = {"blocks.0.attn": {"num_heads": 1}}
    Structure("test_vit", attributes=told).build(model)
    assert model.blocks[0].attn.num_heads == 1
    assert model.blocks[0].attn.head_dim == 64
    assert model.blocks[0].attn.scale == 64**-0.5
    assert model.blocks[1].attn.num_heads == 2
    assert Structure.of(model).attributes == told
