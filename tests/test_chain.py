"""One layer: the chain against the slim layer, against loops, and against three real layers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from fractions import Fraction
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d
from torch import Tensor, nn
from torch.nn import functional as F

from timm_linop.chain import ConvChain, DenseChain, chain_for
from timm_linop.errors import ExpansionError
from timm_linop.expanded import chain_of, contract_layer, expand_layer, factors_of
from timm_linop.initialise import INITS

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
RATES = (1, 1.5, 2, 3, 5)

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (lambda: nn.Conv2d(3, 5, 3), (2, 3, 9, 8)),
    "strided": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), (2, 4, 9, 8)),
    "dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=2, padding=2), (2, 4, 9, 8)),
    "oblong": (lambda: nn.Conv2d(4, 5, (1, 4), stride=(2, 1), padding=(0, 2)), (2, 4, 9, 8)),
    "reflect": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 9, 8)),
    "circular": (lambda: nn.Conv2d(3, 4, 5, padding=2, padding_mode="circular"), (2, 3, 9, 8)),
    "replicate": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="replicate"), (2, 3, 9, 8)),
    "same": (lambda: nn.Conv2d(3, 4, 4, padding="same"), (2, 3, 9, 8)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6), (2, 6, 9, 8)),
    "multiplied": (lambda: nn.Conv2d(4, 8, 5, stride=2, padding=2, groups=4), (2, 4, 9, 8)),
    "grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2, padding=1), (2, 6, 9, 8)),
    "1x1": (lambda: nn.Conv2d(7, 3, 1), (2, 7, 5, 5)),
    "to one": (lambda: nn.Conv2d(7, 1, 3), (2, 7, 5, 5)),
    "from one": (lambda: nn.Conv2d(1, 7, 3), (2, 1, 5, 5)),
    "linear": (lambda: nn.Linear(6, 4), (3, 6)),
    "tall linear": (lambda: nn.Linear(3, 20, bias=False), (2, 5, 3)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, groups=2), (2, 4, 11)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (2, 3, 1), padding=1), (2, 2, 4, 5, 4)),
    "Conv2dSame": (lambda: Conv2dSame(3, 6, 3, stride=2), (2, 3, 9, 8)),
    "StdConv2d": (lambda: StdConv2d(4, 6, 3, padding=1), (2, 4, 9, 8)),
    "ScaledStdConv2d": (lambda: ScaledStdConv2d(4, 6, 3, padding=1), (2, 4, 9, 8)),
    "ScaledStdSame": (lambda: ScaledStdConv2dSame(4, 6, 3, stride=2, groups=2), (2, 4, 9, 8)),
}


def make(kind: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    build, shape = LAYERS[kind]
    return build().to(dtype).eval(), torch.randn(shape, dtype=dtype)


def expanded(
    layer: nn.Module, rate: float = 3, init: str = "orthogonal", seed: int = 0
) -> nn.Module:
    twin = copy.deepcopy(layer)
    expand_layer(twin, chain_for(twin, rate, init, seed))
    return twin


def relative(result: Tensor, truth: Tensor) -> float:
    return ((result - truth).double().norm() / truth.double().norm()).item()


def by_loops(a: Tensor, c: Tensor, b: Tensor, groups: int) -> Tensor:
    """W[o,i,k] = sum_{s,t} B[o,s] C[s,t,k] A[t,i], one number at a time, group by group."""
    m, p, n, q = a.shape[1], a.shape[0] // groups, b.shape[0] // groups, b.shape[1]
    kernel = math.prod(c.shape[2:])
    a_, c_, b_ = a.tolist(), c.flatten(2).tolist(), b.tolist()
    weight = torch.zeros(groups * n, m, kernel, dtype=torch.float64)
    for g, o, i, k in product(range(groups), range(n), range(m), range(kernel)):
        weight[g * n + o, i, k] = sum(
            b_[g * n + o][s] * c_[g * q + s][t][k] * a_[g * p + t][i]
            for s, t in product(range(q), range(p))
        )
    return weight.view(groups * n, m, *c.shape[2:])


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("kind", LAYERS)
def test_the_expanded_layer_is_the_slim_layer(kind: str, rate: float, init: str) -> None:
    for dtype, tolerance in TOLERANCE.items():
        slim, x = make(kind, dtype)
        chained = expanded(slim, rate, init)
        assert relative(chained(x), slim(x)) <= tolerance
        exact, count = Fraction(str(rate)), getattr(slim, "groups", 1)
        m, n = slim.weight.shape[1], slim.weight.shape[0] // count
        p, q = math.ceil(exact * m), math.ceil(exact * n)
        shapes = [tuple(f.shape) for f in factors_of(chained)]
        if isinstance(slim, nn.Linear):
            assert shapes == [(p, m), (n, p)]
        else:
            assert shapes == [(count * p, m), (count * q, p, *slim.kernel_size), (count * n, q)]


@settings(max_examples=60)
@given(
    groups=st.integers(1, 3),
    n=st.integers(1, 3),
    m=st.integers(1, 3),
    p=st.integers(1, 4),
    q=st.integers(1, 4),
    kernel=st.lists(st.integers(1, 3), min_size=1, max_size=3),
)
def test_contraction_is_the_sum_of_equation_1(
    groups: int, n: int, m: int, p: int, q: int, kernel: list[int]
) -> None:
    """Any factors, widths below the layer's too: the composition takes either order."""
    a = torch.randn(groups * p, m, dtype=torch.float64)
    c = torch.randn(groups * q, p, *kernel, dtype=torch.float64)
    b = torch.randn(groups * n, q, dtype=torch.float64)
    weight = ConvChain(1, "orthogonal", 0, groups)(a, c, b)
    torch.testing.assert_close(weight, by_loops(a, c, b, groups), rtol=1e-12, atol=1e-12)


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
def test_a_linear_chain_is_the_product_of_two_matrices(n: int, m: int, p: int) -> None:
    a, b = torch.randn(p, m, dtype=torch.float64), torch.randn(n, p, dtype=torch.float64)
    loops = [
        [sum(b[o, s].item() * a[s, i].item() for s in range(p)) for i in range(m)] for o in range(n)
    ]
    weight = DenseChain(1, "orthogonal", 0)(a, b)
    torch.testing.assert_close(weight, torch.tensor(loops, dtype=torch.float64), rtol=1e-12, atol=0)


@settings(max_examples=60)
@given(
    groups=st.integers(1, 4),
    n=st.integers(1, 4),
    m=st.integers(1, 4),
    kernel=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    rate=st.one_of(st.sampled_from(RATES), st.floats(1, 4)),
    init=st.sampled_from(INITS),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 2**40),
)
def test_expanding_and_contracting_any_weight_gives_it_back(
    groups: int,
    n: int,
    m: int,
    kernel: list[int],
    rate: float,
    init: str,
    dtype: torch.dtype,
    seed: int,
) -> None:
    weight = torch.randn(groups * n, m, *kernel, dtype=dtype)
    chain = ConvChain(rate, init, seed, groups)
    factors = chain.right_inverse(weight)
    assert relative(chain(*factors), weight) <= TOLERANCE[dtype]
    assert relative(by_loops(*factors, groups), weight) <= TOLERANCE[dtype]
    assert all(factor.is_contiguous() and factor.dtype == dtype for factor in factors)


@pytest.mark.parametrize(("rate", "m", "width"), [(1.1, 50, 55), (1.1, 51, 57), (2.3, 100, 230)])
def test_widths_round_up_the_decimal_rate_not_its_binary_noise(
    rate: float, m: int, width: int
) -> None:
    assert math.ceil(Fraction(str(rate)) * m) == width
    a, b = DenseChain(rate, "orthogonal", 0).right_inverse(torch.randn(2, m))
    assert a.shape == (width, m) and b.shape == (2, width)


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [(1, 0, 1, 1), (2, 1, 1, 1), (1, 2, 2, 2), ((2, 1), (0, 2), (1, 2), 3), (2, 1, 1, 6)],
)
@pytest.mark.parametrize("init", INITS)
def test_three_convolutions_in_a_row_are_the_slim_one(
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
    dilation: int | tuple[int, int],
    groups: int,
    init: str,
) -> None:
    """The paper's picture, by hand: a round trip alone would not see scrambled axes."""
    slim = nn.Conv2d(6, 12, 3, stride, padding, dilation, groups).double()
    a, c, b = (f.detach() for f in factors_of(expanded(slim, 2, init)))
    x = torch.randn(2, 6, 10, 11, dtype=torch.float64)
    y = F.conv2d(x, a[:, :, None, None], groups=groups)
    y = F.conv2d(y, c, None, stride, padding, dilation, groups)
    y = F.conv2d(y, b[:, :, None, None], slim.bias, groups=groups)
    assert relative(y, slim(x)) <= 1e-12


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_contracting_gives_the_slim_layer_back(kind: str, trainable: bool) -> None:
    slim, x = make(kind)
    slim.requires_grad_(trainable)
    chained = expanded(slim)
    before = chained(x)
    assert {p.requires_grad for p in chained.parameters()} == {trainable}
    contract_layer(chained)
    assert chain_of(chained) is None
    assert type(chained) is type(slim)
    assert list(chained.state_dict()) == list(slim.state_dict())
    assert [n for n, _ in chained.named_parameters()] == [n for n, _ in slim.named_parameters()]
    assert relative(chained(x), before) <= 1e-12
    assert chained.weight.stride() == slim.weight.stride()  # safetensors refuses other ones
    assert isinstance(chained.weight, nn.Parameter) and chained.weight.is_leaf
    assert chained.weight.requires_grad is trainable
    assert not chained._load_state_dict_pre_hooks


def test_a_layer_with_one_trained_factor_contracts_to_a_trainable_weight() -> None:
    chained = expanded(make("plain")[0])
    a, _, b = factors_of(chained)
    a.requires_grad_(False), b.requires_grad_(False)
    contract_layer(chained)
    assert chained.weight.requires_grad


@pytest.mark.parametrize("kind", ["grouped", "linear", "ScaledStdConv2d"])
def test_contracting_a_copy_leaves_the_original_expanded(kind: str) -> None:
    slim, x = make(kind)
    chained = expanded(slim)
    first, second = copy.deepcopy(chained), copy.deepcopy(chained)
    contract_layer(first)
    assert chain_of(chained) is not None and relative(chained(x), slim(x)) <= 1e-12
    chained(x).sum().backward()
    assert all(f.grad is not None for f in factors_of(chained))
    contract_layer(chained)
    assert chain_of(second) is not None and relative(second(x), slim(x)) <= 1e-12


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", ["plain", "linear"])
def test_layers_expanded_and_contracted_without_grad_still_train(
    kind: str, mode: Callable[[], torch.no_grad]
) -> None:
    slim, x = make(kind)
    chained, contracted = copy.deepcopy(slim), expanded(slim)
    with mode():
        expand_layer(chained, chain_for(chained, 3, "orthogonal", 0))
        contract_layer(contracted)
    for layer in (chained, contracted):
        assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in layer.parameters())
        assert not any(p.is_inference() for p in layer.parameters())
        layer(x).square().sum().backward()
        assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("kind", ["plain", "depthwise", "linear"])
def test_under_bfloat16_autocast_the_weight_is_composed_as_outside(kind: str) -> None:
    chained = expanded(make(kind, torch.float32)[0])
    x = make(kind, torch.float32)[1]
    outside = chained.weight
    with torch.autocast("cpu", torch.bfloat16):
        inside = chained.weight
        assert chained(x).dtype == torch.bfloat16
    assert inside.dtype == torch.float32 and torch.equal(inside, outside)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["plain", "grouped", "linear"])
def test_half_precision_weights_err_by_the_rounding_of_their_factors(
    kind: str, dtype: torch.dtype
) -> None:
    slim, _ = make(kind, dtype)
    chained = expanded(slim)
    assert {f.dtype for f in factors_of(chained)} == {chained.weight.dtype} == {dtype}
    assert relative(chained.weight, slim.weight) <= 2 * torch.finfo(dtype).eps
    a, *c, b = (f.double() for f in factors_of(chained))
    exact = by_loops(a, c[0], b, slim.groups) if c else b @ a
    assert (chained.weight == exact.to(dtype)).double().mean() >= 0.98  # rounded once, at the end


def test_only_convolutions_and_linear_layers_have_a_chain() -> None:
    assert isinstance(chain_for(nn.Conv1d(2, 2, 1), 3, "orthogonal", 0), ConvChain)
    for other in (nn.ConvTranspose2d(2, 2, 3), nn.Embedding(4, 2), nn.ReLU()):
        with pytest.raises(ExpansionError, match=f"{type(other).__name__} has no linear chain"):
            chain_for(other, 3, "orthogonal", 0)


def test_shapes_in_signatures_are_checked_in_these_tests() -> None:
    chain = ConvChain(1, "orthogonal", 0, 1)
    a, c, b = torch.randn(2, 3), torch.randn(4, 2, 1, 1), torch.randn(5, 4)
    assert chain(a, c, b).shape == (5, 3, 1, 1)
    with pytest.raises(TypeCheckError):
        chain(a, c, torch.randn(5))
    with pytest.raises(TypeCheckError):
        DenseChain(1, "orthogonal", 0)(torch.randn(4, 3), torch.randn(5, 2))
