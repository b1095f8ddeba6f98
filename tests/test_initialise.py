"""The draws of the outer factors, and what a gradient step on them does to the weight."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from timm_linop.chain import ConvChain, DenseChain, LinearChain, chain_for
from timm_linop.expand import expand
from timm_linop.expanded import expand_layer, factors_of
from timm_linop.initialise import INITS

WEIGHTS = {
    "random": lambda n, m, k: torch.randn(n, m, k, k),
    "zero": lambda n, m, k: torch.zeros(n, m, k, k),
    "rank one": lambda n, m, k: torch.ones(n, m, k, k),
    "steep": lambda n, m, k: torch.randn(n, m, k, k) * 10.0 ** -torch.arange(n).view(-1, 1, 1, 1),
    "one dead input": lambda n, m, k: (
        torch.randn(n, m, k, k) * (torch.arange(m) > 0)[:, None, None]
    ),
    "tiny": lambda n, m, k: torch.randn(n, m, k, k) * 1e-30,
}


def per_group(factor: Tensor, groups: int) -> Tensor:
    return torch.stack(factor.detach().chunk(groups))


def eye(n: int, groups: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64).expand(groups, n, n)


@pytest.mark.parametrize("rate", [1, 1.5, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_orthogonal_factors_have_orthonormal_columns_and_keep_the_norm(
    rate: float, groups: int
) -> None:
    weight = torch.randn(12, 3, 3, 3, dtype=torch.float64)
    a, c, b = ConvChain(rate, "orthogonal", 5, groups).right_inverse(weight)
    a, b = per_group(a, groups), per_group(b, groups)
    torch.testing.assert_close(a.mT @ a, eye(3, groups), rtol=0, atol=1e-13)
    torch.testing.assert_close(b @ b.mT, eye(12 // groups, groups), rtol=0, atol=1e-13)
    torch.testing.assert_close(c.norm(), weight.norm(), rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    "slim",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Linear(4, 6),
    ],
    ids=str,
)
def test_a_step_on_the_solved_factor_alone_is_plain_sgd(slim: nn.Module) -> None:
    """The drawn factors stand still: C moves W by -lr G exactly; in a linear chain, B does."""
    slim = copy.deepcopy(slim).double()
    chained = expand(copy.deepcopy(slim), seed=1)
    x = torch.randn(3, 4, *([7, 7] if slim.weight.ndim == 4 else []), dtype=torch.float64)
    for layer, weight in ((slim, slim.weight), (chained, factors_of(chained)[1])):
        layer(x).sin().sum().backward()
        torch.optim.SGD([weight], lr=0.3).step()
    torch.testing.assert_close(chained.weight, slim.weight, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("gain", [0.7, 1.0, 1.6])
def test_a_step_on_all_factors_is_the_specs_first_order_formula(gain: float) -> None:
    """dW = -lr [g^4 G + (W W^T G + G W^T W) / g^2] for A = g Q_A and B = g Q_B."""
    w = torch.randn(5, 4, 1, 1, dtype=torch.float64)
    target = torch.randn(5, 4, dtype=torch.float64)
    chain = ConvChain(3, "orthogonal", 2, 1)
    a, c, b = chain.right_inverse(w)
    factors = [(a * gain), (c / gain**2), (b * gain)]
    for factor in factors:
        factor.requires_grad_()
    weight = chain(*factors).flatten(1)
    ((weight - target) ** 4).sum().backward()
    rate = 1e-8
    with torch.no_grad():
        stepped = chain(*(f - rate * f.grad for f in factors)).flatten(1)
        w, g = weight, 4 * (weight - target) ** 3
        formula = -rate * (gain**4 * g + (w @ w.T @ g + g @ w.T @ w) / gain**2)
        assert ((stepped - w) - formula).norm() <= 1e-4 * formula.norm()
        plain = -rate * g
        assert (formula - plain).norm() > 0.1 * plain.norm()  # the terms that were tested matter


def with_spectrum(values: list[float], n: int, m: int) -> Tensor:
    u = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q[:, : len(values)]
    v = torch.linalg.qr(torch.randn(m, m, dtype=torch.float64)).Q[:, : len(values)]
    return u @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ v.T


@pytest.mark.parametrize("rate", [1, 2, 3])
def test_balanced_factors_share_the_singular_values(rate: float) -> None:
    values = [7.0, 2.0, 1.0, 0.5]
    w = with_spectrum(values, 4, 4)
    expected = torch.tensor(values, dtype=torch.float64)
    dense = DenseChain(rate, "balanced", 0).right_inverse(w)
    conv = ConvChain(rate, "balanced", 0, 1).right_inverse(w[:, :, None, None])
    for factors, share in ((dense, 1 / 2), (conv, 1 / 3)):
        for factor in factors:
            found = torch.linalg.svdvals(factor.flatten(1))[:4]
            torch.testing.assert_close(found, expected**share, rtol=1e-10, atol=0)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize(("rate", "groups"), [(1, 1), (1, 3), (1.2, 1), (3, 3)])
def test_no_drawn_factor_is_worse_conditioned_than_ten(
    kind: str, init: str, rate: float, groups: int
) -> None:
    weight = WEIGHTS[kind](12, 8, 3).double()
    a, c, b = ConvChain(rate, init, 3, groups).right_inverse(weight)
    rows = [*per_group(a, groups), *per_group(b, groups)]
    if groups == 1:
        rows.append(DenseChain(rate, init, 3).right_inverse(weight[:, :, 0, 0])[0])
    worst = max(torch.linalg.cond(factor).item() for factor in rows)
    assert worst <= 10 * (1 + 1e-9)
    assert c.isfinite().all()
    composed = ConvChain(rate, init, 3, groups)(a, c, b)
    torch.testing.assert_close(composed, weight, rtol=0, atol=1e-12 * weight.norm().item())


def test_normal_draws_have_variance_one_over_fan_in() -> None:
    a, _, b = ConvChain(3, "normal", 0, 1).right_inverse(torch.randn(60, 50, 1, 1).double())
    assert a.shape == (150, 50) and a.var().item() == pytest.approx(1 / 50, rel=0.05)
    assert b.shape == (60, 180) and b.var().item() == pytest.approx(1 / 180, rel=0.05)
    a, _ = DenseChain(3, "normal", 0).right_inverse(torch.randn(60, 50).double())
    assert a.var().item() == pytest.approx(1 / 50, rel=0.05)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("chain", [ConvChain(2, "", 0, 2), DenseChain(2, "", 0)], ids=["C", "D"])
def test_a_seed_names_one_draw(chain: LinearChain, init: str) -> None:
    weight = torch.randn(*((4, 2, 3) if isinstance(chain, ConvChain) else (4, 2)))
    chain.init, chain.seed = init, 7
    torch.manual_seed(1)
    first = chain.right_inverse(weight)
    torch.manual_seed(2)
    again = chain.right_inverse(weight)
    chain.seed = 8
    other = chain.right_inverse(weight)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(first, other, strict=True))


def test_drawing_leaves_torchs_global_generator_alone() -> None:
    layer = nn.Conv2d(3, 4, 3)
    state = torch.get_rng_state()
    expand_layer(layer, chain_for(layer, 3, "normal", 0))
    assert torch.equal(torch.get_rng_state(), state)


def drawn(seed: int | None) -> list[Tensor]:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    for layer in model:
        nn.init.eye_(layer.weight)
    return [factors_of(layer)[0].detach() for layer in expand(model, seed=seed)]


def test_without_a_seed_torchs_own_decides_and_layers_draw_apart() -> None:
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(drawn(None))
    assert all(torch.equal(x, y) for x, y in zip(results[0], results[1], strict=True))
    assert not torch.equal(results[0][0], results[2][0])
    assert not torch.equal(results[0][0], results[0][1])
    assert torch.equal(drawn(9)[1], drawn(9)[1]) and not torch.equal(drawn(9)[1], drawn(10)[1])
