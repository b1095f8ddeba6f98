"""Ways to expand that only the recovery study tries: they are exact, and move as they say."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import timm_linop
from benchmarks.recovery_arms import ARMS
from benchmarks.recovery_branches import NormalisedBranches, branch, fold
from benchmarks.recovery_chains import DECAY, branched, decaying, expand_by, gained, half_std
from benchmarks.recovery_trials import TRIALS
from timm_linop.expand import contract, expand, is_expanded


@pytest.fixture(scope="module")
def slim() -> nn.Module:
    torch.manual_seed(0)
    dense = timm.create_model("test_resnet", num_classes=10).double().eval()
    return timm_linop.prune(dense, torch.zeros(1, 3, 32, 32).double(), ratio=0.5, round_to=1)


@pytest.mark.parametrize("arm", TRIALS)
def test_a_trial_begins_at_the_slim_model_and_goes_back_into_its_shape(
    arm: str, slim: nn.Module
) -> None:
    model, trial = slim.eval(), copy.deepcopy(slim)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    TRIALS[arm](trial, 0, images)
    wanted = model(images)
    torch.testing.assert_close(trial.eval()(images), wanted, rtol=1e-10, atol=1e-10)
    back = contract(trial) if is_expanded(trial) else fold(trial)
    shapes = {name: tensor.shape for name, tensor in back.state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()}.items() <= (
        shapes.items()
    )
    torch.testing.assert_close(back(images), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("arm", TRIALS)
def test_a_trial_is_an_arm_whose_flags_expand_nothing(arm: str) -> None:
    assert "--rate 0" in ARMS[arm]


def step(layer: nn.Module, gradient: Tensor, lr: float) -> Tensor:
    """What SGD does to the layer's weight."""
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr)
    (layer.weight * gradient).sum().backward()
    optimizer.step()
    return (layer.weight.detach() - before) / lr


@pytest.mark.parametrize("kappa", [0.1, 1.0, 3.0])
def test_a_gain_bounds_what_is_added_to_plain_sgd(kappa: float) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(5, 7, 1, bias=False).double()
    weight, gradient = layer.weight.detach().squeeze() * 40, torch.randn(7, 5).double()
    layer.weight.data.copy_(weight[..., None, None])
    expand_by(gained(kappa), layer, seed=0)
    squared = float(torch.linalg.matrix_norm(weight, 2)) ** 2 / kappa
    wanted = gradient + (weight @ weight.T @ gradient + gradient @ weight.T @ weight) / squared
    moved = step(layer, gradient[..., None, None], lr=1e-8).squeeze()
    torch.testing.assert_close(moved, -wanted, rtol=1e-5, atol=1e-5)


def test_a_gain_of_a_linear_layer_is_one_sided() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 7, bias=False).double()
    weight, gradient = layer.weight.detach() * 40, torch.randn(7, 5).double()
    layer.weight.data.copy_(weight)
    expand_by(gained(1.0), layer, seed=0)
    squared = float(torch.linalg.matrix_norm(weight, 2)) ** 2
    wanted = gradient + weight @ weight.T @ gradient / squared
    torch.testing.assert_close(step(layer, gradient, lr=1e-8), -wanted, rtol=1e-5, atol=1e-5)


def test_branches_move_the_centre_of_a_kernel_twice() -> None:
    """Where the weight is small, orthogonal chains are plain SGD, each branch by itself."""
    torch.manual_seed(0)
    layer: Any = nn.Conv2d(4, 6, 3, bias=False).double()
    layer.weight.data.mul_(1e-4)
    gradient = torch.randn_like(layer.weight)
    expand_by(branched, layer, seed=0)
    wanted = -gradient.clone()
    wanted[:, :, 1, 1] *= 2
    torch.testing.assert_close(step(layer, gradient, lr=1e-8), wanted, rtol=1e-4, atol=1e-4)


def test_half_the_std_is_half_of_the_outer_factors() -> None:
    plain: Any = nn.Conv2d(4, 6, 3).double()
    half = copy.deepcopy(plain)
    expand(plain, 3, "normal", seed=0)
    expand_by(half_std, half, seed=0)
    for nth, share in ((0, 0.5), (1, 4.0), (2, 0.5)):
        name = f"parametrizations.weight.original{nth}"
        torch.testing.assert_close(half.get_parameter(name), share * plain.get_parameter(name))


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, groups=2), nn.Linear(5, 7)])
def test_the_decay_of_a_product_is_a_penalty_on_the_weight(layer: nn.Module) -> None:
    penalised: Any = expand(copy.deepcopy(layer).double(), 3, "orthogonal", seed=0)
    trial: Any = layer.double()
    expand_by(decaying, trial, seed=0)
    trial.load_state_dict(penalised.state_dict())
    gradient = DECAY * torch.randn_like(trial.weight)  # as large as the decay
    (trial.weight * gradient).sum().backward()
    penalty = DECAY / 2 * penalised.weight.square().sum()
    ((penalised.weight * gradient).sum() + penalty).backward()
    for name, factor in penalised.parametrizations.named_parameters():
        torch.testing.assert_close(trial.parametrizations.get_parameter(name).grad, factor.grad)
    assert all(each.grad.abs().max() > 0 for each in trial.parametrizations.parameters())


def test_normalised_branches_change_nothing_in_training_mode_and_fold_after_a_step(
    slim: nn.Module,
) -> None:
    torch.manual_seed(0)
    images = torch.randn(64, 3, 32, 32, dtype=torch.float64)
    conv: Any = nn.Conv2d(3, 8, 3, 2, 1, bias=False).double()
    holder = nn.Sequential(copy.deepcopy(conv))
    branch(holder, images)
    torch.testing.assert_close(holder.train()(images), conv(images), rtol=1e-3, atol=1e-3)
    model = copy.deepcopy(slim)
    branch(model, images)
    assert sum(isinstance(each, NormalisedBranches) for each in model.modules()) > 2
    optimizer = torch.optim.SGD(model.train().parameters(), 0.01)
    nn.functional.cross_entropy(model(images), torch.arange(64) % 10).backward()
    optimizer.step()
    trained = model.eval()(images)
    assert not torch.allclose(trained, slim.eval()(images), rtol=1e-3)
    torch.testing.assert_close(fold(model)(images), trained, rtol=1e-9, atol=1e-9)
    assert not any(isinstance(each, NormalisedBranches) for each in model.modules())
