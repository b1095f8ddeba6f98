"""linop_* twins against timm's own models: what timm does, a twin does."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import _builder, adapt_input_conv, get_pretrained_cfg
from torch import Tensor, nn

import timm_linop
import timm_linop.registry
from tests.slims import CLASSES, FAMILIES, QUICK, images, lively, slim, twin, write_folder
from timm_linop.errors import CheckpointError, ExpansionError, StructureError
from timm_linop.expand import is_expanded
from timm_linop.structure import Structure

TIMMS_OWN = _builder.adapt_model_from_file
OWN_PRUNED = "efficientnet_b1_pruned"  # one of the five that timm itself adapts


@pytest.fixture(autouse=True)
def timms_function_is_in_place() -> Iterator[None]:
    """No test may begin or end with a function of ours in timm's place."""
    assert _builder.adapt_model_from_file is TIMMS_OWN
    yield
    assert _builder.adapt_model_from_file is TIMMS_OWN
    assert TIMMS_OWN.__module__ == "timm.models._prune"


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).detach().norm() / expected.detach().norm())


# --- the names ----------------------------------------------------------------------------------


def test_every_architecture_has_its_twin() -> None:
    bases = set(timm.list_models(exclude_filters="linop_*"))
    twins = set(timm.list_models("linop_*"))
    assert len(bases) > 1_300
    assert twins == {f"linop_{base}" for base in bases} | {"linop_mobilenetv2"}
    assert timm.list_models("linop_*", pretrained=True) == []
    assert all(timm.is_model(name) for name in ("resnet18", "linop_resnet18"))


def test_the_module_names_only_what_it_holds() -> None:
    for name in timm_linop.registry.__all__:
        assert hasattr(timm_linop.registry, name)


def test_the_short_alias() -> None:
    dense = timm.create_model("mobilenetv2_100", num_classes=CLASSES)
    structure = Structure.of(dense)
    alias = timm.create_model("linop_mobilenetv2", pruned=structure, rate=0, num_classes=CLASSES)
    full = timm.create_model("linop_mobilenetv2_100", pruned=structure, rate=0, num_classes=CLASSES)
    assert alias.pretrained_cfg == full.pretrained_cfg
    assert alias.pretrained_cfg["architecture"] == "linop_mobilenetv2_100"
    alias.load_state_dict(dense.state_dict())
    x = images("mobilenetv2_100")
    assert torch.equal(alias.eval()(x), dense.eval()(x))


@pytest.mark.parametrize("name", QUICK)
def test_the_config_is_the_bases_but_for_its_name(name: str) -> None:
    base = get_pretrained_cfg(name)
    for cfg in (
        twin(name, None).pretrained_cfg,
        twin(name, slim(name)).pretrained_cfg,
        vars(get_pretrained_cfg(f"linop_{name}")),
    ):
        for key in ("input_size", "mean", "std", "interpolation", "crop_pct", "pool_size"):
            assert cfg[key] == getattr(base, key)
        assert (cfg["classifier"], cfg["first_conv"]) == (base.classifier, base.first_conv)
        assert cfg["architecture"] == f"linop_{name}"


# --- logits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_the_slim_twin_is_the_pruned_model_bit_for_bit(name: str) -> None:
    model, x = slim(name), images(name)
    built = twin(name, model)
    assert built is not model
    assert built.state_dict().keys() == model.state_dict().keys()
    for key, tensor in built.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key])
    logits = model(x)
    assert logits.std() > 1e-3  # they do tell models apart
    assert torch.equal(built(x), logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_expanded_twin_gives_the_same_logits(name: str) -> None:
    model, x = slim(name), images(name)
    wide = twin(name, model, rate=1.5, seed=3)
    assert is_expanded(wide)
    size = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in wide.parameters()) > 1.5 * size
    assert relative_error(wide(x), model(x)) < 1e-5
    timm_linop.contract(wide)
    assert wide.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("init", ["normal", "balanced", "orthogonal"])
@pytest.mark.parametrize("rate", [1, 3])
def test_rates_inits_and_seeds(rate: int, init: str) -> None:
    name, x = "test_resnet", images("test_resnet")
    once, again, other = (twin(name, slim(name), rate=rate, init=init, seed=s) for s in (7, 7, 8))
    assert relative_error(once(x), slim(name)(x)) < 1e-5
    pairs = zip(once.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    pairs = zip(once.parameters(), other.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_dense_model_has_its_twin_too(name: str) -> None:
    dense, x = lively(name), images(name)
    assert torch.equal(twin(name, dense)(x), dense(x))
    assert relative_error(twin(name, dense, rate=1, seed=0)(x), dense(x)) < 1e-5
    torch.manual_seed(5)
    plain = timm.create_model(name, num_classes=3).eval()
    torch.manual_seed(5)
    assert torch.equal(twin(name, None, num_classes=3)(x), plain(x))
    torch.manual_seed(5)
    wide = timm.create_model(f"linop_{name}", num_classes=3, seed=0).eval()  # rate=3 by default
    assert is_expanded(wide) and relative_error(wide(x), plain(x)) < 1e-5


@pytest.mark.parametrize(
    "settings", [{"rate": -1}, {"rate": 0.5}, {"rate": float("nan")}, {"rate": "3"}, {"init": "x"}]
)
def test_settings_without_meaning(settings: dict[str, Any]) -> None:
    with pytest.raises(ExpansionError, match=r"^(rate|init)="):
        timm.create_model("linop_test_resnet", **settings)


# --- what timm's create_model takes -------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("num_classes", [7, 0])
def test_another_number_of_classes_gives_a_new_head(name: str, num_classes: int) -> None:
    model, x = slim(name), images(name)
    built = twin(name, model, num_classes=num_classes)
    hidden = model.forward_head(model.forward_features(x), pre_logits=True)
    assert torch.equal(built.forward_head(built.forward_features(x), pre_logits=True), hidden)
    assert built(x).shape == (2, num_classes or hidden.shape[1])
    assert built.num_classes == num_classes


@pytest.mark.parametrize(("name", "channels"), [*((name, 1) for name in QUICK), ("test_resnet", 5)])
def test_other_input_channels_are_adapted_as_timm_does(name: str, channels: int) -> None:
    model = slim(name)
    first = f"{model.pretrained_cfg['first_conv']}.weight"
    built = twin(name, model, in_chans=channels)
    expected = dict(model.state_dict())
    expected[first] = adapt_input_conv(channels, expected[first])
    for key, tensor in built.state_dict().items():
        assert torch.equal(tensor, expected[key]), key
    assert built(images(name, channels)).shape == (2, CLASSES)
    if channels == 1:  # gray is the sum over the colours
        gray = images(name, 1)
        assert torch.allclose(built(gray), model(gray.expand(-1, 3, -1, -1)), atol=1e-4)


def test_dense_in_chans_are_those_timm_loads(tmp_path: Path) -> None:
    dense = lively("test_resnet")
    torch.save(dense.state_dict(), tmp_path / "dense.pth")
    overlay = {"file": str(tmp_path / "dense.pth"), "num_classes": CLASSES}
    args = {"num_classes": CLASSES, "in_chans": 1}
    timms = timm.create_model(
        "test_resnet", pretrained=True, pretrained_cfg_overlay=overlay, **args
    ).eval()
    x = images("test_resnet", 1)
    assert torch.equal(twin("test_resnet", dense, **args)(x), timms(x))
    back = twin("test_resnet", timms, in_chans=3)
    colour = images("test_resnet")
    assert torch.allclose(back(colour), timms(colour.mean(1, keepdim=True)), atol=1e-4)


@pytest.mark.parametrize(("name", "rate"), [*((n, 0) for n in FAMILIES), ("test_resnet", 1)])
def test_features_only(name: str, rate: int) -> None:
    model, x = slim(name), images(name)
    backbone = twin(name, model, features_only=True, rate=rate, seed=0)
    maps = backbone(x)
    assert backbone.feature_info.channels() == [m.shape[1] for m in maps]
    dense = timm.create_model(name, features_only=True)
    assert backbone.feature_info.reduction() == dense.feature_info.reduction()
    assert sum(backbone.feature_info.channels()) < sum(dense.feature_info.channels())
    own = copy.deepcopy(model).forward_intermediates(x, intermediates_only=True, norm=False)
    assert relative_error(maps[-1], own[-1]) < (1e-5 if rate else 1e-9)
    some = twin(name, model, features_only=True, out_indices=(0, 2))(x)
    assert [m.shape for m in some] == [maps[i].shape for i in (0, 2)]


def test_dropout_and_pooling_reach_the_model() -> None:
    built = twin("test_resnet", slim("test_resnet"), drop_rate=0.25, global_pool="max")
    assert built.drop_rate == 0.25
    assert built.global_pool.pool_type == "max"
    x = images("test_resnet")
    model = slim("test_resnet")
    expected = model.fc(model.forward_features(x).amax((2, 3)))
    assert torch.allclose(built(x), expected, atol=1e-5)

    def drop_probabilities(model: nn.Module) -> list[float]:
        return [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]

    plain = timm.create_model("test_convnext", drop_path_rate=0.3)
    built = twin("test_convnext", slim("test_convnext"), drop_path_rate=0.3)
    assert drop_probabilities(built) == drop_probabilities(plain) != []


@pytest.mark.parametrize("args", [{"foo": 3}, {"img_size": 64}, {"rates": 3}], ids=str)
@pytest.mark.parametrize("pruned", [True, False])
def test_unknown_arguments_raise_what_timm_raises(args: dict[str, int], pruned: bool) -> None:
    with pytest.raises(TypeError) as timms:
        timm.create_model("test_resnet", **args)
    with pytest.raises(TypeError) as ours:
        twin("test_resnet", slim("test_resnet") if pruned else None, **args)
    assert str(ours.value) == str(timms.value)


def test_an_unknown_argument_beside_a_folder_is_the_callers(tmp_path: Path) -> None:
    folder = write_folder(slim("test_resnet"), tmp_path / "slim")
    with pytest.raises(TypeError, match="'foo'"):
        timm.create_model(f"local-dir:{folder}", pretrained=True, foo=3)
    with pytest.raises(TypeError, match="'foo'"):
        twin("test_resnet", folder, foo=3)


@pytest.mark.parametrize("name", QUICK)
def test_the_optimizer_groups_of_timm_find_the_layers(name: str) -> None:
    built, dense = twin(name, slim(name)), timm.create_model(name, num_classes=CLASSES)
    assert [n for n, _ in built.named_parameters()] == [n for n, _ in dense.named_parameters()]
    assert built.group_matcher() == dense.group_matcher()


# --- round trips --------------------------------------------------------------------------------

RELOAD = """
import json, sys
import timm, timm_linop, torch

torch.set_num_threads(1)
jobs, out = json.loads(sys.argv[1]), sys.argv[2]
logits = {}
for name, (folder, images) in jobs.items():
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        logits[name] = model(torch.load(images))
torch.save(logits, out)
"""


def test_slim_and_dense_folders_reload_by_name_in_a_fresh_process(tmp_path: Path) -> None:
    models = {name: slim(name) for name in QUICK} | {"dense": lively("test_resnet")}
    jobs, expected = {}, {}
    for name, model in models.items():
        folder, x = write_folder(model, tmp_path / name), images(name)
        torch.save(x, tmp_path / f"{name}.pt")
        jobs[name] = [str(folder), str(tmp_path / f"{name}.pt")]
        with torch.no_grad():
            expected[name] = model(x)
            here = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
            assert torch.equal(here(x), expected[name]), name
    command = [sys.executable, "-c", RELOAD, json.dumps(jobs), str(tmp_path / "logits.pt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    there = torch.load(tmp_path / "logits.pt")
    assert there.keys() == expected.keys()
    for name, logits in there.items():
        assert torch.equal(logits, expected[name]), name


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_folder_takes_what_timm_takes(name: str, tmp_path: Path) -> None:
    model, x = slim(name), images(name)
    folder = f"local-dir:{write_folder(model, tmp_path / 'slim')}"
    wide = timm.create_model(folder, pretrained=True, rate=2, seed=0).eval()
    assert is_expanded(wide) and relative_error(wide(x), model(x)) < 1e-5
    other = timm.create_model(folder, pretrained=True, num_classes=7, in_chans=1).eval()
    assert other(images(name, 1)).shape == (2, 7)
    gray = images(name, 1)
    assert torch.allclose(
        other.forward_features(gray),
        model.forward_features(gray.expand(-1, 3, -1, -1)),
        atol=1e-4,
    )
    maps = timm.create_model(folder, pretrained=True, features_only=True).eval()(x)
    own = twin(name, model, features_only=True)(x)
    assert all(torch.equal(a, b) for a, b in zip(maps, own, strict=True))
    blank = timm.create_model(folder, pretrained=False).eval()
    assert blank(x).shape == (2, CLASSES) and not torch.equal(blank(x), model(x))
    again = write_folder(timm.create_model(folder, pretrained=True).eval(), tmp_path / "again")
    assert torch.equal(timm.create_model(f"local-dir:{again}", pretrained=True).eval()(x), model(x))


def test_an_explicit_pruned_goes_before_the_folders(tmp_path: Path) -> None:
    folder = write_folder(slim("test_resnet"), tmp_path / "slim")
    dense, x = lively("test_resnet"), images("test_resnet")
    built = timm.create_model(f"local-dir:{folder}", pretrained=True, pruned=dense).eval()
    assert torch.equal(built(x), dense(x))


def test_timms_own_pruned_models_have_twins() -> None:
    dense, x = timm.create_model(OWN_PRUNED, num_classes=2).eval(), images(OWN_PRUNED)
    assert torch.equal(twin(OWN_PRUNED, dense)(x), dense(x))
    maps = twin(OWN_PRUNED, dense, features_only=True)
    assert maps.feature_info.channels() == [m.shape[1] for m in maps(x)]


# --- timm's private function --------------------------------------------------------------------


def test_it_is_put_back_after_an_exception() -> None:
    wrong = Structure("test_resnet", {"layer1.0.conv1.weight": (8, 32, 3, 3)})
    with pytest.raises(StructureError, match="contradict"):
        twin("test_resnet", wrong)
    assert _builder.adapt_model_from_file is TIMMS_OWN
    with pytest.raises(TypeError):
        twin("test_resnet", slim("test_resnet"), foo=1)
    assert _builder.adapt_model_from_file is TIMMS_OWN


def during_a_build(monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    """Run ``act`` once, in the midst of the next build: where its structure is applied."""
    build = Structure.build

    def interrupted(self: Structure, model: nn.Module) -> nn.Module:
        if _builder.adapt_model_from_file is not TIMMS_OWN:  # Structure.of rebuilds outside
            monkeypatch.setattr(Structure, "build", build)
            act()
        return build(self, model)

    monkeypatch.setattr(Structure, "build", interrupted)


def shapes_of_timms_own() -> dict[str, Any]:
    model = timm.create_model(OWN_PRUNED)
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def test_timms_own_pruning_works_within_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[dict[str, Any]] = []
    during_a_build(monkeypatch, lambda: found.append(shapes_of_timms_own()))
    x = images("test_resnet")
    assert torch.equal(twin("test_resnet", slim("test_resnet"))(x), slim("test_resnet")(x))
    assert found == [shapes_of_timms_own()]


def test_timms_own_pruning_works_in_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even before ours has been adapted, when the function in place still waits for its model."""
    found: list[dict[str, Any]] = []
    entrypoint = timm_linop.registry.model_entrypoint

    def interrupted(name: str) -> Any:
        assert _builder.adapt_model_from_file is not TIMMS_OWN
        thread = threading.Thread(target=lambda: found.append(shapes_of_timms_own()))
        thread.start()
        thread.join()
        return entrypoint(name)

    monkeypatch.setattr(timm_linop.registry, "model_entrypoint", interrupted)
    x = images("test_resnet")
    assert torch.equal(twin("test_resnet", slim("test_resnet"))(x), slim("test_resnet")(x))
    assert found == [shapes_of_timms_own()]


def test_a_twin_built_within_a_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    inner: list[Any] = []
    during_a_build(
        monkeypatch, lambda: inner.append(twin("test_efficientnet", slim("test_efficientnet")))
    )
    outer = twin("test_resnet", slim("test_resnet"))
    for model, name in ((outer, "test_resnet"), (inner[0], "test_efficientnet")):
        assert torch.equal(model(images(name)), slim(name)(images(name)))


def test_many_threads_get_each_their_own() -> None:
    names = ["test_resnet", "test_efficientnet", "test_convnext"] * 4
    expected = {name: slim(name)(images(name)) for name in set(names)}
    with ThreadPoolExecutor(6) as pool:
        built = list(pool.map(lambda name: twin(name, slim(name)), names))
    for name, model in zip(names, built, strict=True):
        assert torch.equal(model(images(name)), expected[name])


def test_an_architecture_that_bypasses_timms_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    def bypass(pretrained: bool = False, pruned: bool = False, **kwargs: Any) -> nn.Module:
        return timm.create_model("test_resnet")

    monkeypatch.setattr(timm_linop.registry, "model_entrypoint", lambda name: bypass)
    with pytest.raises(StructureError, match=r"without its common builder.*leave pruned= out"):
        timm_linop.registry.build("test_resnet", pruned=Structure("test_resnet"), rate=0)


def test_weights_must_come_from_somewhere() -> None:
    with pytest.raises(CheckpointError, match="no weights for a bare structure of test_resnet"):
        twin("test_resnet", Structure.of(slim("test_resnet")), pretrained=True)
