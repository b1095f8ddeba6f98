"""SP-KD against Eq. 8-12 written out as loops, its gradient, its numerics; pairs, taps, teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor

from timm_linop.distill import SimilarityPreservingLoss
from timm_linop.errors import RecipeError
from timm_linop.gram import similarity

Matrix = list[list[float]]


def gram_by_loops(activation: Tensor) -> Matrix:
    """Eq. 8-10: inner products of all pairs of images, then every row to L2 norm 1."""
    rows = activation.double().flatten(1).tolist()
    gram = [[math.fsum(x * y for x, y in zip(q, r, strict=True)) for r in rows] for q in rows]
    norms = [math.sqrt(math.fsum(x * x for x in row)) for row in gram]
    return [[x / norm for x in row] for row, norm in zip(gram, norms, strict=True)]


def loss_by_loops(student: Tensor, teacher: Tensor) -> float:
    """Eq. 11 for one pair of layers."""
    s, t = gram_by_loops(student), gram_by_loops(teacher)
    b = len(s)
    return math.fsum((t[i][j] - s[i][j]) ** 2 for i in range(b) for j in range(b)) / b**2


def pair(*shapes: Sequence[int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return tuple(torch.randn(*shape, dtype=dtype) for shape in shapes)


def loss_of(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
    return SimilarityPreservingLoss(**options)({"layer": student}, {"layer": teacher})


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((2, 3), (2, 3)),
        ((5, 3), (5, 11)),
        ((4, 3, 5), (4, 7, 5)),
        ((3, 2, 4, 4), (3, 6, 4, 4)),
        ((3, 1, 2, 2, 2), (3, 9)),
        ((32, 4), (32, 4)),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_the_loss_is_equation_11(
    student: tuple[int, ...], teacher: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    s, t = pair(student, teacher, dtype=dtype)
    expected = loss_by_loops(s, t)
    result = loss_of(s, t)
    assert result.dtype == dtype and result.shape == ()
    assert expected > 1e-3 and result.item() == pytest.approx(expected, rel=tolerance)


@settings(max_examples=40)
@given(st.integers(2, 8), st.integers(1, 6), st.integers(1, 6), st.floats(-12, 12))
def test_the_similarity_is_equations_8_to_10_at_any_scale(
    b: int, d: int, e: int, exponent: float
) -> None:
    activation = torch.randn(b, d, e, dtype=torch.float64)
    expected = torch.tensor(gram_by_loops(activation), dtype=torch.float64)
    result = similarity(activation * 10**exponent)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-12)


def test_two_images_worked_by_hand() -> None:
    """Rows (3, 0) and (4, 3): the Gram matrix is [[9, 12], [12, 25]]."""
    activation = torch.tensor([[3.0, 0.0], [4.0, 3.0]], dtype=torch.float64)
    first, second = math.hypot(9, 12), math.hypot(12, 25)
    expected = [[9 / first, 12 / first], [12 / second, 25 / second]]
    assert similarity(activation).tolist() == [pytest.approx(row) for row in expected]
    other = torch.eye(2, dtype=torch.float64)
    # Four squared differences over b^2 = 4.
    squares = (9 / 15 - 1) ** 2 + (12 / 15) ** 2 + (12 / second) ** 2 + (25 / second - 1) ** 2
    assert loss_of(activation, other).item() == pytest.approx(squares / 4)


def test_the_same_activations_lose_nothing() -> None:
    (s,) = pair((6, 10))
    rotation = torch.linalg.qr(torch.randn(10, 10, dtype=torch.float64)).Q
    assert loss_of(s, s).item() == 0
    assert loss_of(s, s @ rotation).item() < 1e-28  # inner products are all that counts
    assert loss_of(s, s.roll(1, 0)).item() > 1e-3


@pytest.mark.parametrize("shape", [(2, 3), (5, 4), (4, 2, 3, 3)])
def test_the_gradient_is_that_of_finite_differences(shape: tuple[int, ...]) -> None:
    s, t = pair(shape, (shape[0], 7))
    assert torch.autograd.gradcheck(lambda x: loss_of(x, t), s.requires_grad_(), atol=1e-8)


@pytest.mark.parametrize("scale", [1.0, 1e-12])  # as it is, and scaled first
def test_the_second_derivative_is_that_of_finite_differences(scale: float) -> None:
    s, t = pair((5, 4), (5, 7))
    s = s.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: loss_of(x * scale, t, sub_batch=3), s, atol=1e-6)
    torch.testing.assert_close(
        torch.func.grad(lambda x: loss_of(x, t))(s.detach()),
        torch.autograd.grad(loss_of(s, t), s)[0],
    )


def test_the_gradient_is_the_specs_closed_form() -> None:
    """D = 2 (G_S - G_T) / b^2, E_i = (D_i - G_i <G_i, D_i>) / ||G~_i||, dL/dQ = (E + E^T) Q."""
    q, t = pair((6, 4, 3), (6, 9))
    q.requires_grad_()
    loss_of(q, t).backward()
    rows = q.detach().flatten(1)
    raw = rows @ rows.T
    norms = raw.norm(dim=1, keepdim=True)
    g = raw / norms
    d = 2 / 6**2 * (g - torch.tensor(gram_by_loops(t), dtype=torch.float64))
    e = (d - g * (g * d).sum(1, keepdim=True)) / norms
    expected = ((e + e.T) @ rows).view_as(q)
    torch.testing.assert_close(q.grad, expected, rtol=1e-10, atol=1e-14)


def test_no_gradient_flows_into_the_teacher_unless_asked() -> None:
    s, t = pair((4, 3), (4, 5))
    loss_of(s.requires_grad_(), t).backward()
    assert s.grad.abs().max() > 0 and t.grad is None


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-3, 7.0, 1e10, 1e30])
def test_a_scale_of_either_side_changes_nothing_even_in_float32(scale: float) -> None:
    s, t = pair((5, 40), (5, 60), dtype=torch.float32)
    expected = loss_by_loops(s, t)
    for a, b in ((s * scale, t), (s, t * scale)):
        assert loss_of(a, b).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("peak", [1.0, 300.0, 65504.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_activations_lose_nothing_more(dtype: torch.dtype, peak: float) -> None:
    """32 x 50,000: a Gram matrix in float16 overflows; one in bfloat16 errs by percents."""
    common = torch.randn(1, 50_000)
    s, t = (common + torch.randn(32, 50_000) for _ in range(2))
    s, t = ((peak * 0.99 * x / x.abs().max()).to(dtype) for x in (s, t))
    s.requires_grad_()
    q, r = (x.detach().double() for x in (s, t))
    g, h = (y / y.norm(dim=1, keepdim=True) for y in (q @ q.T, r @ r.T))
    expected = (g - h).square().sum().item() / 32**2
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(s, t)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=2e-3)
    (loss * 3000).backward()
    assert s.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_activations_of_zero_are_finite(dtype: torch.dtype) -> None:
    zero, other = torch.zeros(4, 6, dtype=dtype), torch.randn(4, 6).to(dtype)
    for s, t in ((zero, zero), (zero, other), (other, zero)):
        s = s.clone().requires_grad_()
        loss = loss_of(s, t)
        loss.backward()
        assert loss.isfinite() and s.grad.isfinite().all()
    assert loss_of(zero, zero).item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_image_without_activations_does_not_blow_the_gradient_up(dtype: torch.dtype) -> None:
    """Its row of G is zero, and constant: the others' gradients are as in the closed form."""
    q, t = pair((5, 8), (5, 8), dtype=dtype)
    q[2] = 0
    q.requires_grad_()
    loss_of(q, t).backward()
    rows, alive = q.detach().double(), torch.arange(5) != 2
    raw = rows @ rows.T
    norms = raw.norm(dim=1, keepdim=True)
    g = torch.where(alive[:, None], raw / norms, 0)
    d = 2 / 25 * (g - torch.tensor(gram_by_loops(t), dtype=torch.float64))
    e = torch.where(alive[:, None], (d - g * (g * d).sum(1, keepdim=True)) / norms, 0)
    expected = (e + e.T) @ rows
    torch.testing.assert_close(q.grad.double(), expected, rtol=1e-4, atol=1e-6)
    assert q.grad.abs().max() < 1


@pytest.mark.parametrize(
    ("b", "sub_batch", "parts"),
    [
        (64, 32, [32, 32]),
        (96, 32, [32] * 3),
        (32, 32, [32]),
        (10, 32, [10]),
        (33, 32, [17, 16]),
        (7, 3, [3, 2, 2]),
    ],
)
def test_sub_batches_are_the_average_of_separate_losses(
    b: int, sub_batch: int, parts: list[int]
) -> None:
    s, t = pair((b, 5), (b, 6))
    separate = [loss_by_loops(*both) for both in zip(s.split(parts), t.split(parts), strict=True)]
    expected = sum(separate) / len(parts)
    assert loss_of(s, t, sub_batch=sub_batch).item() == pytest.approx(expected, rel=1e-12)
    if len(parts) > 1:
        assert loss_of(s, t, sub_batch=b).item() != pytest.approx(expected, rel=1e-3)


def test_pairs_are_averaged_by_default_or_summed_as_in_the_paper() -> None:
    student = dict(zip("abc", pair((4, 3), (4, 5, 2), (4, 2)), strict=True))
    teacher = dict(zip("cab", pair((4, 3), (4, 5, 2), (4, 8)), strict=True))  # another order
    each = [loss_by_loops(student[name], teacher[name]) for name in "abc"]
    for options, expected in (({}, sum(each) / 3), ({"reduction": "sum"}, sum(each))):
        loss = SimilarityPreservingLoss(**options)(student, teacher)
        assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert len({round(x, 9) for x in each}) == 3


def test_the_defaults_are_those_of_the_readme() -> None:
    loss = SimilarityPreservingLoss()
    assert (loss.pairs, loss.reduction, loss.sub_batch) == ("blocks", "mean", 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": "block"}, r"pairs='block' .* Close names: 'blocks'"),
        ({"pairs": ""}, "all, blocks, stages, last"),
        ({"reduction": "max"}, "reduction='max'"),
        ({"reduction": ""}, "reduction=''"),
        ({"sub_batch": 1}, "sub_batch=1"),
        ({"sub_batch": -3}, "sub_batch=-3"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        SimilarityPreservingLoss(**options)
    assert SimilarityPreservingLoss(["layer1"], "sum", 2).pairs == ["layer1"]


def test_shapes_in_signatures_are_checked_in_these_tests() -> None:
    assert similarity(torch.randn(3, 2)).shape == (3, 3)
    with pytest.raises(TypeCheckError):
        similarity(torch.ones(3, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("student", "teacher"), [({"a": (4, 3)}, {"a": (1, 3)}), ({"a": (4, 3)}, {"a": (5, 3)})]
)
def test_batches_of_different_sizes_are_refused(
    student: dict[str, tuple[int, int]], teacher: dict[str, tuple[int, int]]
) -> None:
    s, t = ({k: torch.randn(v) for k, v in side.items()} for side in (student, teacher))
    with pytest.raises(RecipeError, match=r"'a' holds 4 rows of the student and [15] of"):
        SimilarityPreservingLoss()(s, t)


def test_layers_on_one_side_only_and_empty_batches_are_refused() -> None:
    a, b = pair((4, 3), (4, 3))
    for student, teacher in (({"a": a}, {"b": b}), ({"a": a}, {"a": a, "b": b})):
        with pytest.raises(RecipeError, match="'b' stands on one side only"):
            SimilarityPreservingLoss()(student, teacher)
    with pytest.raises(RecipeError, match="no images"):
        SimilarityPreservingLoss()({"a": a[:0]}, {"a": b[:0]})


def test_a_loss_over_no_pairs_is_refused() -> None:
    with pytest.raises(RecipeError, match="no pairs"):
        SimilarityPreservingLoss()({}, {})
