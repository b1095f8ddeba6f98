"""What timm's own test suite leaves out: a twin, slim or expanded, does as the model it wraps.

Run timm's suite itself on twins with ``python -m tests.timm_suite``; docs/timm_contract.md tells.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import resolve_model_data_config
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from tests.slims import CLASSES, images, lively, slim, twin
from timm_linop.errors import StructureError
from timm_linop.expand import contract, expand, is_expanded
from timm_linop.structure import Structure

RATE = 1.5
FORMS = [0, RATE]  # slim, expanded
both_forms = pytest.mark.parametrize("rate", FORMS, ids=["slim", "expanded"])
families = pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
two_families = pytest.mark.parametrize("name", ["test_resnet", "test_vit"])


def made(name: str, rate: float = RATE, **args: Any) -> Any:
    return twin(name, slim(name), rate=rate, seed=0, **args)


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).detach().norm() / expected.detach().norm())


def slim_name(parameter: str) -> str:
    """The slim model's name of the weight that a factor belongs to."""
    return parameter.replace("parametrizations.", "").split(".original")[0]


# --- arguments of create_model ------------------------------------------------------------------


@families
@pytest.mark.parametrize("args", [{"num_classes": 0}, {"in_chans": 1}], ids=str)
def test_an_expanded_twin_takes_timms_arguments_as_the_slim_one(
    name: str, args: dict[str, Any]
) -> None:
    x = images(name, args.get("in_chans", 3))
    expected = made(name, rate=0, **args)(x)
    assert relative_error(made(name, **args)(x), expected) < 1e-5


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_another_pooling(name: str) -> None:
    wide, x = made(name, global_pool="max"), images(name)
    expected = made(name, rate=0, global_pool="max")(x)
    assert relative_error(expected, slim(name)(x)) > 1e-2
    assert relative_error(wide(x), expected) < 1e-5


@pytest.mark.parametrize(("name", "pool"), [("test_resnet", "catavgmax"), ("test_vit", "avg")])
def test_a_pooling_the_weights_do_not_fit_is_refused_as_timm_does(
    name: str, pool: str, tmp_path: Path
) -> None:
    """Twice as many features for the classifier, or a norm that the slim model has not."""
    torch.save(lively(name).state_dict(), tmp_path / "dense.pth")
    overlay = {"file": str(tmp_path / "dense.pth"), "num_classes": CLASSES}
    args = {"num_classes": CLASSES, "global_pool": pool}
    with pytest.raises(RuntimeError):
        timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **args)
    with pytest.raises(StructureError, match="contradict"):
        made(name, **args)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_dropout_falls_where_it_falls_in_the_slim_model(name: str) -> None:
    args = {"drop_rate": 0.3, "drop_path_rate": 0.3}
    outputs = []
    for rate in (0, 0, RATE):
        model = made(name, rate=rate, **args).train()
        for module in model.modules():  # batch statistics over two images amplify rounding
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        torch.manual_seed(len(outputs) == 1)
        outputs.append(model(images(name)))
    torch.manual_seed(0)
    one, other_draw, expanded = outputs
    assert relative_error(other_draw, one) > 1e-2  # it does fall
    assert relative_error(expanded, one) < 1e-4


@both_forms
def test_checkpoint_path(rate: float, tmp_path: Path) -> None:
    name, model, x = "test_resnet", slim("test_resnet"), images("test_resnet")
    save_file(model.state_dict(), tmp_path / "slim.safetensors")
    wide = made(name)
    torch.save(wide.state_dict(), tmp_path / "wide.pth")
    args = {"num_classes": CLASSES, "rate": rate, "seed": 1}
    path = str(tmp_path / "slim.safetensors")
    built = twin(name, Structure.of(model), checkpoint_path=path, **args)
    assert is_expanded(built) == (rate != 0)
    assert relative_error(built(x), model(x)) < 1e-5
    if rate:
        path = str(tmp_path / "wide.pth")
        assert torch.equal(
            twin(name, Structure.of(model), checkpoint_path=path, **args)(x), wide(x)
        )


@both_forms
def test_pretrained_cfg_overlay(rate: float, tmp_path: Path) -> None:
    name, model, x = "test_vit", slim("test_vit"), images("test_vit")
    save_file(model.state_dict(), tmp_path / "slim.safetensors")
    overlay = {
        "file": str(tmp_path / "slim.safetensors"),
        "num_classes": CLASSES,
        "mean": (0.1, 0.2, 0.3),
    }
    args = {"rate": rate, "num_classes": CLASSES, "pretrained": True}
    built = twin(name, Structure.of(model), pretrained_cfg_overlay=overlay, **args)
    assert resolve_model_data_config(built)["mean"] == (0.1, 0.2, 0.3)
    assert built.pretrained_cfg["architecture"] == f"linop_{name}"
    assert relative_error(built(x), model(x)) < 1e-5


def test_weights_of_an_overlay_go_before_those_of_pruned(tmp_path: Path) -> None:
    name, model, x = "test_resnet", slim("test_resnet"), images("test_resnet")
    weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    weights["fc.bias"] += 1
    overlay = {"state_dict": weights, "num_classes": CLASSES}
    built = twin(name, model, pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.allclose(built(x), model(x) + 1)


@families
def test_images_are_prepared_as_for_the_base(name: str) -> None:
    dense = timm.create_model(name)
    assert resolve_model_data_config(made(name)) == resolve_model_data_config(dense)


@both_forms
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_device_and_dtype_at_creation(rate: float, device: str) -> None:
    args = {"rate": rate, "num_classes": CLASSES, "device": device, "dtype": torch.bfloat16}
    built = twin("test_vit", Structure.of(slim("test_vit")), **args)
    assert {(p.device.type, p.dtype) for p in built.parameters()} == {(device, torch.bfloat16)}
    x = images("test_vit").to(device, torch.bfloat16)
    assert (built(x).shape, built(x).dtype) == ((2, CLASSES), torch.bfloat16)


# --- features -----------------------------------------------------------------------------------


@both_forms
@families
@pytest.mark.parametrize("indices", [(-1,), (0, 2)], ids=str)
def test_features_only_at_chosen_layers(name: str, rate: float, indices: tuple[int, ...]) -> None:
    x = images(name)
    backbone = made(name, rate, features_only=True, out_indices=indices)
    maps = backbone(x)
    assert backbone.feature_info.channels() == [m.shape[1] for m in maps]
    own = slim(name).forward_intermediates(
        x, indices=list(indices), intermediates_only=True, norm=False
    )
    assert [m.shape for m in maps] == [m.shape for m in own]
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(maps, own, strict=True))


@families
def test_forward_intermediates(name: str) -> None:
    x, model, wide = images(name), slim(name), made(name)
    for args in ({}, {"indices": 2, "norm": True}, {"indices": [0], "stop_early": True}):
        final, maps = model.forward_intermediates(x, **args)
        wide_final, wide_maps = wide.forward_intermediates(x, **args)
        assert len(maps) == len(wide_maps) > 0
        pairs = zip([final, *maps], [wide_final, *wide_maps], strict=True)
        assert all(relative_error(got, expected) < 1e-5 for expected, got in pairs)


@both_forms
@families
def test_widths_are_the_slim_ones(name: str, rate: float) -> None:
    built, dense, x = made(name, rate), timm.create_model(name), images(name)
    features = built.forward_features(x)
    channels = features.shape[1 if features.ndim == 4 else -1]
    assert built.num_features == channels < dense.num_features
    hidden = built.forward_head(features, pre_logits=True).shape[1]
    assert built.head_hidden_size == hidden < dense.head_hidden_size


# --- the head -----------------------------------------------------------------------------------


@both_forms
@families
def test_the_classifier_is_reset_and_found(name: str, rate: float) -> None:
    built, x = made(name, rate), images(name)
    assert built.get_classifier().out_features == CLASSES
    hidden = built.forward_head(built.forward_features(x), pre_logits=True)
    built.reset_classifier(3)
    new = built.get_classifier()
    assert (new.in_features, new.out_features) == (hidden.shape[1], 3)
    assert relative_error(new(hidden), built(x)) < 1e-5
    assert not is_expanded(new)  # timm makes it anew
    built.reset_classifier(0)
    assert built.num_classes == 0 and torch.equal(built(x), hidden)


def test_an_expanded_model_with_a_new_head_contracts() -> None:
    built, x = made("test_resnet"), images("test_resnet")
    built.reset_classifier(3, "max")
    logits = built(x)
    contract(built)
    assert relative_error(built(x), logits) < 1e-5
    assert list(built.state_dict()) == list(slim("test_resnet").state_dict())
    assert expand(built, 1, seed=0).num_classes == 3


# --- training -----------------------------------------------------------------------------------


@two_families
def test_checkpointing_changes_neither_outputs_nor_gradients(name: str) -> None:
    plain, saving, x = made(name), made(name), images(name)
    saving.set_grad_checkpointing()
    results = []
    for model in (plain, saving):
        logits = model.train()(x)
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in model.parameters())])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@families
@pytest.mark.parametrize("coarse", [False, True])
def test_factors_are_in_the_group_of_their_weight(name: str, coarse: bool) -> None:
    model, wide = slim(name), made(name)
    groups = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
    of_factors = group_parameters(wide, wide.group_matcher(coarse=coarse), reverse=True)
    assert len(of_factors) > len(groups) > 0
    assert len(set(groups.values())) > 1
    assert all(groups[slim_name(factor)] == group for factor, group in of_factors.items())


def settings_of(model: nn.Module) -> dict[str, tuple[float, float]]:
    optimizer = create_optimizer_v2(model, opt="adamw", lr=0.1, weight_decay=0.05, layer_decay=0.5)
    found = {
        id(p): (g["lr_scale"], g["weight_decay"])
        for g in optimizer.param_groups
        for p in g["params"]
    }
    return {name: found[id(p)] for name, p in model.named_parameters()}


@families
def test_layer_decay_and_weight_decay_are_those_of_the_slim_model(name: str) -> None:
    model, wide = copy.deepcopy(slim(name)), made(name)
    expected, got = settings_of(model), settings_of(wide)
    assert {slim_name(factor) for factor in got} == set(expected)
    assert all(expected[slim_name(factor)] == setting for factor, setting in got.items())
    assert len(set(got.values())) > 4
    skipped = getattr(timm.create_model(name), "no_weight_decay", set)()
    assert getattr(wide, "no_weight_decay", set)() == skipped
    assert all(got[parameter][1] == 0 for parameter in skipped if parameter in got)


# --- timm itself --------------------------------------------------------------------------------

UNTOUCHED = """
import importlib, sys, threading
import timm, torch

def own():
    modules = [(n, m) for n, m in sorted(sys.modules.items()) if n.partition(".")[0] == "timm"]
    return {
        (name, key): id(value)
        for name, module in modules
        for key, value in vars(module).items()
        if callable(value)
    }

before, names_before = own(), timm.list_models()
import timm_linop, timm_linop.registry, timm_linop.structure

def check(when):
    now = own()
    assert all(now[key] == value for key, value in before.items()), when

check("after the import")
wide = timm.create_model("linop_test_resnet", pruned=timm_linop.Structure("test_resnet"), rate=1)
check("after a build")
failures = []
def elsewhere():
    try:
        check("in another thread")
    except AssertionError as error:
        failures.append(error)
thread = threading.Thread(target=elsewhere)
thread.start()
thread.join()
assert not failures

names, make = timm.list_models(), timm.model_entrypoint("linop_test_resnet")
for module in (timm_linop.structure, timm_linop.registry, timm_linop, timm_linop):
    importlib.reload(module)
timm_linop.register_twins()
assert timm.list_models() == names and len(names) == 2 * len(names_before) + 1
assert timm.model_entrypoint("linop_test_resnet") is make
slim = timm.create_model("linop_test_resnet", rate=0, num_classes=3)
assert timm.create_model("linop_test_resnet", pruned=slim, rate=0).num_classes == 3
check("after importing again")

@timm.models.register_model
def later_resnet(pretrained=False, **kwargs):
    return timm.create_model("test_resnet", **kwargs)

default_cfgs = {}
assert not timm.is_model("linop_later_resnet")
timm_linop.register_twins()
twins = timm.list_models("linop_*")
assert "linop_later_resnet" in twins
late = timm.create_model("linop_later_resnet", rate=1, num_classes=3)
assert late(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
assert timm_linop.audit(late)
timm_linop.register_twins()
assert timm.list_models("linop_*") == twins
"""


def test_timm_is_untouched_importing_again_is_harmless_and_later_models_get_their_twins() -> None:
    # timm_linop's own dependencies may warn while they are imported; registering must not
    command = [sys.executable, "-W", "error:Overwriting", "-c", UNTOUCHED]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
