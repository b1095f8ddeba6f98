"""What of timm's a recipe gets: groups of parameters, schedules, mixing, losses, clipping."""

from __future__ import annotations

import re
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn import functional as F

import timm_linop  # noqa: F401
from tests.slims import QUICK, images, lively
from timm_linop.average import WeightAverage, warn_of_short_run
from timm_linop.decay import parameter_groups
from timm_linop.errors import RecipeError
from timm_linop.expand import contract, expand
from timm_linop.expanded import chain_of, factors_of
from timm_linop.optim import (
    check_training,
    clip_gradients,
    is_plain_sgd,
    make_criterion,
    make_mixup,
    make_optimizer,
    make_scheduler,
    set_mixing,
    total_epochs,
)
from timm_linop.recipe import OptimConfig, ScheduleConfig

DECAY = 0.05
# Stems, heads and norms of several kinds; the last three have no group_matcher, or list their own
# names in no_weight_decay().
MODELS = [*QUICK, "pit_ti_224", "caformer_s18", "swinv2_cr_tiny_224"]


def settings_of(model: nn.Module, optim: OptimConfig) -> dict[str, tuple[Any, float]]:
    """Learning-rate scale and weight decay of each parameter; each is in one group."""
    groups = make_optimizer(model, optim).param_groups
    members = [id(p) for group in groups for p in group["params"]]
    assert len(members) == len(set(members)) == len(list(model.parameters()))
    found = {id(p): (g.get("lr_scale"), g["weight_decay"]) for g in groups for p in g["params"]}
    return {name: found[id(p)] for name, p in model.named_parameters()}


def slim_name(name: str) -> str:
    return re.sub(r"parametrizations\.weight\.original\d", "weight", name)


@pytest.mark.parametrize("layer_decay", [None, 0.5])
@pytest.mark.parametrize("name", MODELS)
def test_a_factor_learns_and_decays_as_its_weight(name: str, layer_decay: float | None) -> None:
    optim = OptimConfig(opt="adamw", weight_decay=DECAY, layer_decay=layer_decay)
    dense = timm.create_model(name, device="meta")
    wide = timm.create_model(f"linop_{name}", rate=1, device="meta")
    timms = create_optimizer_v2(
        dense, "adamw", lr=0.01, weight_decay=DECAY, layer_decay=layer_decay
    )
    expected = {
        id(p): (g.get("lr_scale"), g["weight_decay"])
        for g in timms.param_groups
        for p in g["params"]
    }
    wanted = {n: expected[id(p)] for n, p in dense.named_parameters()}
    assert settings_of(dense, optim) == wanted
    got = settings_of(wide, optim)
    assert {slim_name(factor) for factor in got} == set(wanted)
    assert all(wanted[slim_name(factor)] == setting for factor, setting in got.items())
    if layer_decay:
        assert len({scale for scale, _ in got.values()}) > 2


@pytest.mark.parametrize("layer_decay", [None, 0.5])
@pytest.mark.parametrize("chain_decay", ["factors", "none"])
def test_weight_decay_of_chains(chain_decay: str, layer_decay: float | None) -> None:
    model = expand(lively("test_resnet"), 2, exclude=["fc"], seed=0)
    optim = OptimConfig(weight_decay=DECAY, chain_decay=chain_decay, layer_decay=layer_decay)
    decays = {name: decay for name, (_, decay) in settings_of(model, optim).items()}
    factors = [name for name in decays if "parametrizations" in name]
    assert len(factors) > 20
    assert {decays[name] for name in factors} == {DECAY if chain_decay == "factors" else 0}
    assert decays["fc.weight"] == DECAY  # a layer that is no chain
    vectors = [name for name, p in model.named_parameters() if p.ndim == 1]
    assert vectors and not any(decays[name] for name in vectors)


def test_no_weight_decay_at_all_and_frozen_layers() -> None:
    model = expand(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), 2, seed=0)
    model[0].requires_grad_(False)
    groups = parameter_groups(model, OptimConfig(weight_decay=0.0))
    assert [group["weight_decay"] for group in groups] == [0.0]
    assert {id(p) for p in groups[0]["params"]} == {id(p) for p in model[1].parameters()}


def test_a_shared_parameter_is_in_one_group() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv2d(3, 4, 3))
    model[1].weight = model[0].weight
    expand(model, 2, seed=0)
    assert chain_of(model[0]) is None and chain_of(model[2]) is not None
    members = [p for group in parameter_groups(model, OptimConfig()) for p in group["params"]]
    assert len(members) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("layer", "times"), [(nn.Conv2d(3, 4, 3), 3), (nn.Linear(4, 3), 2)], ids=["conv", "linear"]
)
def test_decay_of_the_factors_is_as_many_times_that_of_the_product(
    layer: nn.Module, times: int
) -> None:
    """docs/training.md says so: with no gradient, a step multiplies each factor by 1 - lr decay."""
    expand(layer.double(), 2, seed=0)
    before = layer.weight.detach().clone()  # type: ignore[union-attr,operator]
    optim = OptimConfig("momentum", lr=0.1, weight_decay=0.1, momentum=0.0)
    optimizer = make_optimizer(layer, optim)
    for p in layer.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert len(factors_of(layer)) == times
    torch.testing.assert_close(layer.weight, before * (1 - 0.01) ** times)


@pytest.mark.parametrize("chain_decay", ["factors", "none"])
def test_compact_chains_are_the_wide_ones_under_our_groups(chain_decay: str) -> None:
    optim = OptimConfig(lr=1e-3, weight_decay=0.01, chain_decay=chain_decay, layer_decay=0.8)
    assert is_plain_sgd(optim)
    trained = []
    for compact in (False, True):
        model = expand(lively("test_resnet").double(), 3, seed=0, compact=compact)
        optimizer = make_optimizer(model, optim)
        scheduler = make_scheduler(optimizer, ScheduleConfig(epochs=5), 1)
        for step in range(5):
            scheduler.step_update(step)
            optimizer.zero_grad()
            model(images("test_resnet").double()).square().mean().backward()
            optimizer.step()
        trained.append(contract(model).state_dict())
    for name, wide in trained[0].items():
        torch.testing.assert_close(trained[1][name], wide, rtol=1e-9, atol=1e-12, msg=name)


def test_the_optimiser_gets_what_the_recipe_says() -> None:
    layer = nn.Linear(4, 2)
    sgd = make_optimizer(layer, OptimConfig("momentum", momentum=0.5)).param_groups[0]
    assert (sgd["momentum"], sgd["nesterov"]) == (0.5, False)
    own = OptimConfig("adamw", opt_eps=1e-3, opt_betas=(0.5, 0.6), opt_kwargs={"amsgrad": True})
    adamw = make_optimizer(layer, own).param_groups[0]
    assert (adamw["eps"], adamw["betas"], adamw["amsgrad"]) == (1e-3, (0.5, 0.6), True)
    look = make_optimizer(layer, OptimConfig("lookahead_adamw"))
    assert type(look).__name__ == "Lookahead"
    assert not is_plain_sgd(OptimConfig(clip_grad=1.0, clip_mode="value"))


@pytest.mark.parametrize(
    ("optim", "schedule", "message"),
    [
        ({"opt_kwargs": {"nestrov": True}}, {}, "opt='sgd' refuses its settings.*nestrov"),
        ({"opt_kwargs": {"lr": 1.0}}, {}, "multiple values"),
        ({"momentum": 0.0}, {}, "Nesterov momentum requires"),
        ({}, {"sched": "rsqrt"}, "--warmup-epochs"),
        ({}, {"sched": "wsd", "decay_epochs": 200}, "sched='wsd' refuses.*--decay-epochs"),
        ({"lr": 0.1}, {"min_lr": 0.2}, "min_lr=0.2 is above lr=0.1"),
    ],
)
def test_what_timm_refuses_is_told_before_any_work(
    optim: dict[str, Any], schedule: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        check_training(OptimConfig(**optim), ScheduleConfig(**schedule))


@pytest.mark.parametrize("epochs", [1, 2, 15])
@pytest.mark.parametrize("sched", ["cosine", "tanh", "step", "multistep", "poly", "wsd"])
def test_every_schedule_works_in_short_runs(sched: str, epochs: int) -> None:
    schedule = ScheduleConfig(epochs=epochs, sched=sched)
    check_training(OptimConfig(), schedule)
    assert total_epochs(schedule) == epochs


def test_epochs_on_top() -> None:
    def total(**settings: Any) -> int:
        return total_epochs(ScheduleConfig(epochs=10, **settings))

    assert total(warmup_epochs=2) == 10
    assert total(warmup_epochs=2, warmup_prefix=True) == 12
    assert total(cooldown_epochs=3) == 13
    assert total(cooldown_epochs=3, warmup_epochs=2, warmup_prefix=True, sched="poly") == 15
    assert total(cooldown_epochs=3, sched="multistep") == 10  # as its flag says


def rates(schedule: ScheduleConfig, steps: int = 4) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = make_scheduler(optimizer, schedule, steps)
    found = []
    for update in range(total_epochs(schedule) * steps):
        scheduler.step_update(update)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_settings_reach_the_schedule() -> None:
    cool = rates(ScheduleConfig(epochs=3, cooldown_epochs=2, min_lr=0.1))
    assert cool[0] == 1 and min(cool[:12]) > 0.1 and set(cool[12:]) == {0.1}
    first = rates(ScheduleConfig(epochs=3, warmup_epochs=1, warmup_prefix=True, warmup_lr=0.2))
    assert first[0] == 0.2 and first[4:] == rates(ScheduleConfig(epochs=3))
    stairs = rates(ScheduleConfig(epochs=3, sched="step", decay_epochs=1, decay_rate=0.5))
    assert stairs == [1.0] * 4 + [0.5] * 4 + [0.25] * 4
    one_step_an_epoch = ScheduleConfig(epochs=3, sched="multistep", decay_milestones=(1,))
    assert rates(one_step_an_epoch, steps=1) == [1.0, 0.1, 0.1]


# --- mixing and losses --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("size", [2, 5, 8])
def test_mixing_any_number_of_images(mode: str, size: int) -> None:
    optim = OptimConfig(mixup=0.5, cutmix=0.5, mixup_mode=mode, smoothing=0.1)
    mixup = make_mixup(optim, SimpleNamespace(num_classes=10))
    assert mixup is not None
    x = torch.randn(size, 3, 8, 8)
    mixed, shares = mixup(x.clone(), torch.arange(size))
    assert mixed.shape == x.shape
    torch.testing.assert_close(shares.sum(1), torch.ones(size))
    if size % 2:
        assert torch.equal(mixed[-1], x[-1])
        assert shares[-1].argmax() == size - 1 and shares[-1].max() > 0.9
    assert torch.isfinite(make_criterion(optim)(torch.randn(size, 10), shares))


def test_settings_reach_the_mixing_and_it_ends() -> None:
    optim = OptimConfig(cutmix_minmax=(0.2, 0.8), mixup_prob=0.7, mixup_switch_prob=0.3)
    mixup = make_mixup(optim, SimpleNamespace(num_classes=10))
    assert mixup is not None
    assert (mixup.cutmix_minmax, mixup.mix_prob, mixup.switch_prob) == ((0.2, 0.8), 0.7, 0.3)
    ending = OptimConfig(mixup=1.0, mixup_off_epoch=2)
    enabled = []
    for epoch in range(4):
        set_mixing(mixup, ending, epoch)
        enabled.append(mixup.mixup_enabled)
    assert enabled == [True, True, False, False]
    _, shares = mixup(torch.ones(4, 3, 8, 8), torch.arange(4))
    assert torch.equal(shares, F.one_hot(torch.arange(4), 10).float())
    set_mixing(mixup, OptimConfig(mixup=1.0), 99)
    assert mixup.mixup_enabled
    set_mixing(None, ending, 3)
    assert make_mixup(OptimConfig(mixup_off_epoch=5), SimpleNamespace(num_classes=10)) is None


LOGITS, LABELS = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)), torch.arange(6)


def test_losses_of_labels() -> None:
    def loss(**settings: Any) -> Tensor:
        found: Tensor = make_criterion(OptimConfig(**settings))(LOGITS, LABELS)
        return found

    one_hot = F.one_hot(LABELS, 10).float()
    torch.testing.assert_close(loss(), F.cross_entropy(LOGITS, LABELS))
    smooth = F.cross_entropy(LOGITS, LABELS, label_smoothing=0.1)
    torch.testing.assert_close(loss(smoothing=0.1), smooth)
    bce = F.binary_cross_entropy_with_logits
    torch.testing.assert_close(loss(bce_loss=True), bce(LOGITS, one_hot))
    torch.testing.assert_close(
        loss(bce_loss=True, smoothing=0.1), bce(LOGITS, one_hot * 0.9 + 0.01)
    )
    sharp = loss(bce_loss=True, smoothing=0.1, bce_target_thresh=0.2)
    torch.testing.assert_close(sharp, bce(LOGITS, one_hot))


def test_losses_of_shares() -> None:
    shares = torch.softmax(torch.randn(6, 10, generator=torch.Generator().manual_seed(1)), 1)
    # Smoothing is done by the mixing already, so the loss does not smooth again.
    soft = make_criterion(OptimConfig(mixup=0.2, smoothing=0.1))(LOGITS, shares)
    torch.testing.assert_close(soft, F.cross_entropy(LOGITS, shares))
    binary = make_criterion(OptimConfig(cutmix=1.0, smoothing=0.1, bce_loss=True))(LOGITS, shares)
    torch.testing.assert_close(binary, F.binary_cross_entropy_with_logits(LOGITS, shares))


# --- clipping and averages ----------------------------------------------------------------------


def test_clipping() -> None:
    def gradients(**settings: Any) -> dict[str, Tensor]:
        model = expand(lively("test_resnet"), 1, seed=0)
        (1000 * model(images("test_resnet")).square().sum()).backward()
        clip_gradients(model, OptimConfig(**settings))
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    whole = gradients()
    norm = torch.stack([g.norm() for g in gradients(clip_grad=2.0).values()]).norm()
    assert norm == pytest.approx(2.0, rel=1e-4)
    assert max(float(g.abs().max()) for g in whole.values()) > 0.1
    value = gradients(clip_grad=0.1, clip_mode="value")
    assert max(float(g.abs().max()) for g in value.values()) == pytest.approx(0.1)
    agc = gradients(clip_grad=0.01, clip_mode="agc")
    for name, gradient in whole.items():
        spared = name.startswith("fc.")
        assert torch.equal(agc[name], gradient) == spared, name


def test_an_average_longer_than_the_run_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="over about 1,000 steps .* the run has 32"):
        warn_of_short_run(OptimConfig(), 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_short_run(OptimConfig(model_ema_warmup=True), 32)
        warn_of_short_run(OptimConfig(), 1001)


def test_the_average_warms_up() -> None:
    average = WeightAverage(nn.Linear(2, 2), OptimConfig(model_ema=True, model_ema_warmup=True))
    assert average._ema.get_decay(10) < average._ema.get_decay(1000) <= 0.999


def test_refusals_name_the_optimiser() -> None:
    with pytest.raises(RecipeError, match="opt='adamw' refuses its settings"):
        make_optimizer(nn.Linear(2, 2), OptimConfig("adamw", opt_kwargs={"unheard_of": 1}))
