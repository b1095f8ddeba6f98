"""Criteria by name against what they say, computed by hand on a chain of two layers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timm_linop.channels.groups import find_groups
from timm_linop.errors import PruningError
from timm_linop.pruning.criteria import importance_of
from timm_linop.recipe.pruning import BY_GRADIENT, CRITERIA

IMAGES = [
    (torch.randn(3, 3, 4, 4), torch.tensor([0, 1, 1])),
    (torch.randn(2, 3, 4, 4), torch.tensor([1, 0])),
]


def network() -> nn.Module:
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(6)
    nn.init.uniform_(norm.weight, 0.5, 2)
    return nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)).eval()


def scores(criterion: str, model: nn.Module) -> Tensor:
    """Of the convolution's channels."""
    spoilt = copy.deepcopy(model).double()
    importance = importance_of(criterion, spoilt, IMAGES)
    return find_groups(spoilt, torch.randn(1, 3, 4, 4).double(), importance).scores["0"]


def gradients(model: nn.Module) -> list[dict[str, Tensor]]:
    """Of each image's loss, by tensor."""
    found = []
    for x, labels in IMAGES:
        for image, label in zip(x.split(1), labels.split(1), strict=True):
            model.zero_grad()
            F.cross_entropy(model(image), label).backward()
            found.append({n: p.grad.clone() for n, p in model.named_parameters()})  # type: ignore[union-attr]
    return found


def by_channel(name: str, numbers: Tensor) -> Tensor:
    """Sum over everything of a tensor that belongs to each of the six channels."""
    if name == "4.weight":  # 4 places of each channel
        return numbers.view(2, 6, 4).sum((0, 2))
    return numbers.flatten(1).sum(1) if numbers.ndim > 1 else numbers


def mean_of(parts: list[Tensor]) -> Tensor:
    total = torch.stack(parts).mean(0)
    return total / total.mean()


@pytest.mark.parametrize("power", [1, 2])
def test_norms_of_weights(power: int) -> None:
    model = network()
    parts = [
        by_channel(name, model.get_parameter(name).detach().abs() ** power)
        for name in ("0.weight", "1.weight")
    ]
    # torch-pruning takes the linear layer's 24 inputs one by one: four for each channel
    inputs = by_channel("4.weight", model.get_parameter("4.weight").detach().abs() ** power)
    found = scores(f"l{power}", model).float()
    assert torch.allclose(found, mean_of([*parts, inputs]), rtol=1e-5)


def test_scales_of_norms() -> None:
    model: Any = network()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([3.0, -1.0, 2.0, 0.5, 4.0, -6.0]))
    expected = torch.tensor([3.0, 1.0, 2.0, 0.5, 4.0, 6.0])
    assert torch.allclose(scores("bn_scale", model).float(), expected / expected.mean())


def test_curvature_is_summed_over_all_images() -> None:
    """torch-pruning 1.6 alone would keep the last image's gradients only."""
    model = network()
    each = gradients(model)
    parts = []
    for name in ("0.weight", "1.weight", "4.weight"):
        weight = model.get_parameter(name).detach()
        squares = torch.stack([gradient[name] ** 2 for gradient in each]).sum(0)
        parts.append(by_channel(name, weight**2 * squares / len(each)))
    assert torch.allclose(scores("hessian", model).float(), mean_of(parts), rtol=1e-4)
    last = [
        by_channel(name, model.get_parameter(name).detach() ** 2 * each[-1][name] ** 2)
        for name in ("0.weight", "1.weight", "4.weight")
    ]
    assert not torch.allclose(scores("hessian", model).float(), mean_of(last), rtol=1e-2)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_each_gives_a_number_for_every_channel(criterion: str) -> None:
    found = scores(criterion, network())
    assert found.shape == (6,) and found.isfinite().all() and found.std() > 0


@pytest.mark.parametrize("criterion", BY_GRADIENT)
def test_a_gradient_needs_images(criterion: str) -> None:
    with pytest.raises(PruningError, match=r"asks what images do to the loss; pass batches="):
        importance_of(criterion, network(), [])
