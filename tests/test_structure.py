"""Structure against timm's own tensors, hand-cut models, and files that nobody vouches for."""

from __future__ import annotations

import copy
import json
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import timm_linop
from tests.slims import CLASSES, FAMILIES, images, lively, slim, twin
from timm_linop.errors import LinOPError, StructureError, UnknownModelError
from timm_linop.structure import Structure

SHAPE = "layer1.0.conv1.weight"  # of test_resnet, dense 32x32x3x3


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def data(**entries: Any) -> dict[str, Any]:
    """A right structure of test_resnet, some of whose entries are replaced."""
    right = {"version": 1, "base": "test_resnet", "shapes": {}, "attributes": {}}
    return right | entries


def dense_and_one_head(head: int) -> tuple[nn.Module, nn.Module]:
    """A ViT without one head of its first block: by zeroing its output, and by cutting it out."""
    dense = lively("test_vit")
    cut: Any = copy.deepcopy(dense)
    attention = cut.blocks[0].attn
    width = attention.head_dim
    kept = torch.arange(width) + width * (1 - head)
    rows = torch.cat([kept + part * attention.num_heads * width for part in range(3)])
    attention.qkv.weight = nn.Parameter(attention.qkv.weight.detach()[rows].clone())
    attention.qkv.bias = nn.Parameter(attention.qkv.bias.detach()[rows].clone())
    attention.proj.weight = nn.Parameter(attention.proj.weight.detach()[:, kept].clone())
    attention.num_heads, attention.attn_dim = 1, width
    with torch.no_grad():
        dense.blocks[0].attn.proj.weight[:, width * head : width * (head + 1)] = 0
    return dense, cut


def dense_and_two_groups() -> tuple[nn.Module, nn.Module]:
    """A RegNetX without the last of three groups of a convolution: masked, and cut out."""
    dense: Any = lively("regnetx_002")
    cut: Any = copy.deepcopy(dense)
    with torch.no_grad():
        for layer in (dense.s1.b1.conv1, dense.s1.b1.conv2):
            layer.bn.weight[16:], layer.bn.bias[16:] = 0, 0  # dead after the ReLU
    block = cut.s1.b1
    for layer in (block.conv1, block.conv2):
        for tensor in (layer.conv.weight, layer.bn.weight, layer.bn.bias):
            tensor.data = tensor.data[:16].clone()
        layer.bn.running_mean = layer.bn.running_mean[:16].clone()
        layer.bn.running_var = layer.bn.running_var[:16].clone()
        layer.bn.num_features = layer.conv.out_channels = 16
    block.conv3.conv.weight.data = block.conv3.conv.weight.data[:, :16].clone()
    block.conv3.conv.in_channels = block.conv2.conv.in_channels = 16
    block.conv2.conv.groups = 2
    return dense, cut


# --- reading a structure ------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_it_lists_exactly_the_tensors_that_differ(name: str) -> None:
    model, dense = slim(name), timm.create_model(name, num_classes=CLASSES)
    full = shapes(dense)
    differing = {key: shape for key, shape in shapes(model).items() if shape != full[key]}
    assert len(differing) > 10
    structure = Structure.of(model)
    assert structure.base == name
    assert structure.shapes.keys() == differing.keys()
    for key, shape in structure.shapes.items():
        assert [s for s in shape if s is not None] == [
            size for size, s in zip(differing[key], shape, strict=True) if s is not None
        ]
    free = {key for key, shape in structure.shapes.items() if None in shape}
    cfg = dense.pretrained_cfg
    assert free <= {f"{cfg['classifier']}.weight", f"{cfg['first_conv']}.weight"}
    assert f"{cfg['classifier']}.weight" in free


@pytest.mark.parametrize("name", FAMILIES)
def test_it_survives_json_and_rebuilds_the_shapes(name: str) -> None:
    model = slim(name)
    structure = Structure.of(model)
    again = Structure.from_dict(json.loads(json.dumps(structure.to_dict())))
    assert again == structure
    dense = timm.create_model(name, num_classes=CLASSES)
    rebuilt = again.build(dense)
    assert rebuilt is dense
    assert shapes(rebuilt) == shapes(model)
    rebuilt.load_state_dict(model.state_dict())
    x = images(name)
    assert torch.equal(rebuilt.eval()(x), model(x))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_it_fixes_neither_classes_nor_input_channels(name: str) -> None:
    structure = Structure.of(slim(name))
    built = structure.build(timm.create_model(name, num_classes=11, in_chans=4)).eval()
    assert built(images(name, channels=4)).shape == (2, 11)
    headless = structure.build(timm.create_model(name, num_classes=0)).eval()
    assert headless(images(name)).shape == (2, slim(name).num_features)


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv2_035", "regnetx_002"])
def test_shapes_alone_tell_a_plain_network(name: str) -> None:
    model = slim(name)
    told = Structure.from_state_dict(model.state_dict(), name, num_classes=CLASSES)
    assert told == Structure.of(model)
    assert not told.attributes


@pytest.mark.parametrize("args", [{}, {"num_classes": 3}, {"in_chans": 1}], ids=str)
def test_a_dense_model_differs_in_nothing(args: dict[str, int]) -> None:
    model = timm.create_model("test_resnet", **args)
    assert Structure.of(model) == Structure("test_resnet")


def test_a_removed_head_is_recorded() -> None:
    for head in (0, 1):
        masked, cut = dense_and_one_head(head)
        x = images("test_vit")
        assert torch.allclose(cut(x), masked(x), atol=1e-5)  # the hand-made case itself is right
        structure = Structure.of(cut)
        assert structure.attributes == {"blocks.0.attn": {"num_heads": 1}}
        assert torch.equal(twin("test_vit", cut)(x), cut(x))


def test_a_removed_group_is_recorded() -> None:
    masked, cut = dense_and_two_groups()
    x = images("regnetx_002")
    assert torch.allclose(cut(x), masked(x), atol=1e-5)
    structure = Structure.of(cut)
    assert structure.attributes == {"s1.b1.conv2.conv": {"groups": 2}}
    assert structure.shapes["s1.b1.conv2.conv.weight"] == (16, 8, 3, 3)
    assert torch.equal(twin("regnetx_002", cut)(x), cut(x))


def test_layers_without_weights_that_a_user_added_do_no_harm() -> None:
    model: Any = copy.deepcopy(slim("test_resnet"))
    model.noise = nn.Dropout(0.5)
    assert Structure.of(model) == Structure.of(slim("test_resnet"))


def test_an_architecture_whose_default_has_no_classifier() -> None:
    name = "vit_small_patch14_dinov2"
    dense = timm.create_model(name, num_classes=4, img_size=28)
    entry = {"head.weight": [None, 100], "fc_norm.weight": [100]}
    structure = Structure.from_dict(data(base=name, shapes={"head.weight": [None, 384]}))
    assert structure.build(dense) is dense
    headless = timm.create_model(name, img_size=28)
    assert structure.build(headless).num_classes == 0
    with pytest.raises(StructureError, match=r"no tensor 'fc_norm\.weight'"):
        Structure.from_dict(data(base=name, shapes=entry)).build(headless)


# --- models that are no slim form of the architecture -------------------------------------------


@pytest.mark.parametrize(
    ("make", "base", "says"),
    [
        (lambda: slim("test_resnet"), "test_vit", "another architecture than test_vit"),
        (lambda: timm.create_model("resnet18"), "resnet34", r"no tensor 'layer1\.2\.bn1\.bias'"),
        (lambda: timm.create_model("resnet34"), "resnet18", r"resnet18 has no tensor 'layer1\.2"),
        (lambda: timm.create_model("test_resnet", features_only=True), None, r"no tensor 'fc\."),
        (lambda: nn.Linear(2, 2), None, r"does not say .* timm\.create_model"),
        (
            lambda: timm_linop.expand(timm.create_model("test_resnet"), 1, seed=0),
            None,
            r"contract\(model\) first",
        ),
    ],
)
def test_what_it_cannot_be_read_off(
    make: Callable[[], nn.Module], base: str | None, says: str
) -> None:
    with pytest.raises(StructureError, match=says):
        Structure.of(make(), base)


def test_a_wider_model_is_refused() -> None:
    wide: Any = timm.create_model("test_resnet")
    wide.layer1[0].bn1 = nn.BatchNorm2d(999)
    with pytest.raises(StructureError, match=r"999.*pruning only makes it smaller"):
        Structure.of(wide)


# --- dicts that nobody vouches for --------------------------------------------------------------

RIGHT = [
    data(),
    {"version": 1, "base": "test_resnet"},
    data(base="linop_test_resnet.r160_in1k"),
    data(shapes={"fc.weight": [None, 96]}),
    data(base="test_vit", attributes={"blocks.0.attn": {"num_heads": 2}}),
    data(attributes={"conv1.0": {"groups": 1}}),
]


@pytest.mark.parametrize("right", RIGHT, ids=str)
def test_a_right_dict_builds(right: dict[str, Any]) -> None:
    structure = Structure.from_dict(right)
    structure.build(timm.create_model(structure.base, num_classes=CLASSES))


WRONG: list[tuple[Any, str]] = [
    ([], "structure is list, not dict"),
    (None, "structure is NoneType, not dict"),
    ({}, "version None is not 1"),
    (data(version=2), r"version 2 is not 1.*upgrade"),
    (data(version=True), "version True is not 1"),
    (data(version=1.0), r"version 1\.0 is not 1"),
    (data(code="x"), "unknown entry 'code'"),
    (data(base=3), "base is int, not str"),
    (data(shapes=[]), "shapes is list, not dict"),
    (data(attributes="x"), "attributes is str, not dict"),
    (data(shapes={f"a{i}": [1] for i in range(50_001)}), "50,001 entries"),
    (data(shapes={SHAPE: 8}), "not a list of sizes"),
    (data(shapes={SHAPE: []}), "not a list of sizes"),
    (data(shapes={SHAPE: [1] * 7}), "not a list of sizes"),
    (data(shapes={SHAPE: [8, 8.0, 3, 3]}), "not a list of sizes"),
    (data(shapes={SHAPE: [8, True, 3, 3]}), "not a list of sizes"),
    (data(shapes={SHAPE: [8, "8", 3, 3]}), "not a list of sizes"),
    (data(shapes={SHAPE: [8, float("nan"), 3, 3]}), "not a list of sizes"),
    (data(shapes={SHAPE: [8, float("inf"), 3, 3]}), "not a list of sizes"),
    (data(shapes={SHAPE: [8, 0, 3, 3]}), "not a list of sizes"),
    (data(shapes={SHAPE: [-8, 8, 3, 3]}), "not a list of sizes"),
    (data(shapes={SHAPE: [[8], 8, 3, 3]}), "not a list of sizes"),
    (data(shapes={"": [1]}), "no name of a module or tensor"),
    (data(shapes={"a..b": [1]}), "no name of a module or tensor"),
    (data(shapes={"a b": [1]}), "no name of a module or tensor"),
    (data(shapes={"a\n": [1]}), "no name of a module or tensor"),
    (data(shapes={"../../etc/passwd": [1]}), "no name of a module or tensor"),
    (data(shapes={"a" * 301: [1]}), "no name of a module or tensor"),
    (data(shapes={3: [1]}), "no name of a module or tensor"),
    (data(attributes={"layer1": 3}), "is int, not dict"),
    (data(attributes={"layer1": {"__class__": 3}}), "would set '__class__'"),
    (data(attributes={"layer1": {"forward": 3}}), "would set 'forward'; only"),
    (data(attributes={"layer1": {"stride": 3}}), "would set 'stride'"),
    (data(attributes={"conv1.0": {"groups": 0}}), "not a whole number >= 1"),
    (data(attributes={"conv1.0": {"groups": 1.5}}), "not a whole number >= 1"),
    (data(attributes={"conv1.0": {"groups": True}}), "not a whole number >= 1"),
    (data(attributes={"conv1.0": {"groups": [True]}}), "not a whole number >= 1"),
    (data(attributes={"conv1.0": {"groups": [-1]}}), "not a whole number >= 1"),
    (data(attributes={"conv1.0": {"groups": [1] * 65}}), "not a whole number >= 1"),
    (data(attributes={"conv1.0": {"groups": [1]}}), r"is \[1\], but test_resnet's own is 1"),
    # well-formed, but not of this architecture
    (data(shapes={"layer9.weight": [1]}), r"has no tensor 'layer9\.weight'"),
    (data(shapes={"layer1.0.conv1.weigth": [1]}), r"Close names: .*conv1\.weight"),
    (data(shapes={"__class__.weight": [1]}), r"has no tensor '__class__\.weight'"),
    (data(shapes={"layer1.0.conv1": [1]}), r"has no tensor 'layer1\.0\.conv1'"),
    (data(shapes={SHAPE: [33, 32, 3, 3]}), "pruning only makes it smaller"),
    (data(shapes={SHAPE: [10**12, 32, 3, 3]}), "pruning only makes it smaller"),
    (data(shapes={SHAPE: [10**400, 32, 3, 3]}), "pruning only makes it smaller"),
    (data(shapes={SHAPE: [8, 8]}), "pruning only makes it smaller"),
    (data(attributes={"layer9": {"groups": 1}}), "has no module 'layer9'"),
    (data(attributes={"": {"groups": 1}}), "may not set this attribute of a ResNet"),
    (data(attributes={"layer1.0": {"groups": 1}}), r"it may set none"),
    (data(attributes={"conv1.0": {"num_heads": 1}}), r"it may set \['groups'\]"),
    (data(attributes={"conv1.0": {"groups": 2}}), "own is 1 and pruning only makes it smaller"),
    (data(attributes={"conv1.0": {"groups": 10**12}}), "pruning only makes it smaller"),
    # each entry fits, together they do not
    (data(shapes={SHAPE: [8, 32, 3, 3]}), "shapes contradict each other"),
    (data(shapes={"layer1.0.bn1.weight": [8]}), "shapes contradict each other"),
    (data(shapes={"fc.weight": [None, 8]}), "shapes contradict each other"),
]


@pytest.mark.parametrize(("wrong", "says"), WRONG, ids=[says for _, says in WRONG])
def test_a_wrong_dict_is_refused_in_one_sentence(wrong: Any, says: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(StructureError, match=says) as caught:
        Structure.from_dict(wrong).build(timm.create_model("test_resnet", num_classes=CLASSES))
    assert len(str(caught.value)) < 600
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ("resnet5O", "Close names: 'resnet50'"),
        ("mobilnetv2_100", "'mobilenetv2_100'"),
        ("linop_linop_resnet18", "no architecture of timm"),
        ("../resnet18", "no architecture of timm"),
        ("", "no architecture of timm"),
        ("x" * 10**6, "no architecture of timm"),
    ],
    ids=["typo", "typo2", "twice", "path", "empty", "long"],
)
def test_an_unknown_architecture_is_told_with_close_names(base: str, says: str) -> None:
    with pytest.raises(UnknownModelError, match=says) as caught:
        Structure.from_dict(data(base=base))
    assert len(str(caught.value)) < 400


def test_heads_that_contradict_the_width_are_refused() -> None:
    wrong = data(base="test_vit", attributes={"blocks.0.attn": {"num_heads": 1, "head_dim": 32}})
    with pytest.raises(StructureError, match="shapes contradict each other"):
        Structure.from_dict(wrong).build(timm.create_model("test_vit"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([SHAPE, "conv1.0", "groups", "__dict__", ""]), inner, max_size=2
        )
    ),
    max_leaves=6,
)


@settings(max_examples=150)
@given(shapes=JSON, attributes=JSON)
def test_no_json_raises_anything_foreign(shapes: Any, attributes: Any) -> None:
    given_data = data(shapes=shapes, attributes=attributes)
    try:
        structure = Structure.from_dict(given_data)
    except LinOPError as error:
        assert re.search(r"structure", str(error))
    else:
        assert structure.to_dict() == given_data


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
@settings(max_examples=10)
@given(choices=st.data())
def test_any_smaller_shapes_are_refused_or_run(name: str, choices: st.DataObject) -> None:
    """Fuzz: whatever is smaller entry by entry either gives a model that runs, or is refused."""
    right = Structure.of(slim(name)).to_dict()
    full = shapes(timm.create_model(name, num_classes=CLASSES))
    for key in choices.draw(st.lists(st.sampled_from(sorted(full)), min_size=1, max_size=2)):
        if full[key]:
            right["shapes"][key] = [choices.draw(st.integers(1, size)) for size in full[key]]
    dense = timm.create_model(name, num_classes=CLASSES)
    try:
        built = Structure.from_dict(right).build(dense).eval()
    except StructureError as error:
        assert "shapes contradict each other" in str(error)
    else:
        assert built(images(name)).shape[0] == 2


def test_a_scale_that_stayed_as_it_was_comes_along(tmp_path: Path) -> None:
    """torch-pruning narrows a ViT's heads and leaves the dense scale of their products."""
    slim_model = slim("test_vit")
    module = slim_model.blocks[0].attn
    ruled = module.scale
    module.scale = ruled / 2
    assert Structure.of(slim_model).attributes == {}  # fused attention does not look at it
    module.fused_attn = False
    for block in slim_model.blocks:
        with torch.no_grad():
            block.attn.qkv.weight.normal_(0, 0.3)
    x = images("test_vit")
    expected = slim_model(x)
    assert Structure.of(slim_model).attributes["blocks.0.attn"]["scale"] == ruled / 2
    timm_linop.save(slim_model, tmp_path / "slim")
    again = timm.create_model(f"local-dir:{tmp_path / 'slim'}", pretrained=True).eval()
    assert again.blocks[0].attn.scale == ruled / 2 and again.blocks[1].attn.scale == ruled
    torch.testing.assert_close(again(x), expected)
