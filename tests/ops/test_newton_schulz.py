"""Newton-Schulz: the schedule is the best there is, singular values land in the band, and what is zero stays zero."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import _muon

from nestling.ops import newton_schulz
from nestling.ops.newton_schulz import _UPPER_AND_TRIPLE, MUON
from tests.helpers import close, randn, same

BAND = (0.68, 1.13)  # of the acceptance; the schedule aims at 0.88 to 1.12
TABLE = (3.5, 13.5, 56, 235, 990, 4.2e3, 1.8e4, 7.4e4, 3.1e5, 1.3e6)  # of the docstring


def orthonormal(*shape: int) -> Tensor:
    """Float64 with orthonormal columns."""
    return torch.linalg.qr(randn(*shape))[0]


def with_values(values: Tensor, columns: int) -> Tensor:
    """A random matrix `[len(values), columns]` of these singular values."""
    m = len(values)
    return orthonormal(m, m) * values @ orthonormal(columns, m).mT


def extremes(x: Tensor) -> tuple[float, float]:
    """The smallest and the largest singular value of a batch."""
    values = torch.linalg.svdvals(x.double())
    return values.min().item(), values.max().item()


def inside(x: Tensor, band: tuple[float, float] = BAND) -> None:
    """Assert that all singular values are in the band."""
    least, most = extremes(x)
    assert band[0] <= least and most <= band[1], (least, most)


def interval(row: int) -> tuple[float, float, float]:
    """`l`, `u` and the error of a row: where `p` first reaches the least value it takes after its first maximum."""
    upper, (a, b, c) = _UPPER_AND_TRIPLE[row]
    turns = np.sqrt(np.sort(np.roots([5 * c, 3 * b, a]).real))
    p = np.polynomial.Polynomial([0, a, 0, b, 0, c])
    error = p(upper) - 1
    close(torch.tensor([p(turns[0]) - 1, 1 - p(turns[1])]), torch.tensor([error, error]).double(), 1e-9)
    starts = [r.real for r in (p - (1 - error)).roots() if abs(r.imag) < 1e-9 and 0 < r.real < turns[0]]
    assert len(starts) == 1 and turns[0] < turns[1] < upper
    return starts[0], upper, error


@pytest.mark.parametrize("row", range(len(_UPPER_AND_TRIPLE)))
def test_every_polynomial_is_the_best_on_its_interval(row):
    """Chebyshev: an odd quintic that errs by the same, in turn below and above, at four points has no better."""
    least, upper, error = interval(row)
    if row == 0:
        assert math.isclose(error, 0.12, abs_tol=1e-9)
    else:
        following, end, _ = interval(row - 1)
        assert math.isclose(1 + error, 0.995 * end, abs_tol=1e-9) and math.isclose(
            1 - error, 1.005 * following, rel_tol=1e-5
        )
    assert math.isclose(upper / least, TABLE[row], rel_tol=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 64, 128), (2, 3, 32, 128), (384, 96), (192, 384), (16, 5, 50)], ids=str)
def test_random_rectangles_land_in_the_band_after_five_steps(shape, dtype):
    """Gaussian matrices of aspect 2:1 and more, batched, either way up."""
    inside(newton_schulz(torch.randn(shape).to(dtype)))


@given(
    st.integers(1, 24),
    st.integers(2, 5),
    st.booleans(),
    st.integers(0, 2**31),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_random_rectangle_lands_in_the_band(rows, aspect, tall, seed, dtype):
    """The same at any size."""
    x = torch.randn(8, rows, aspect * rows + 4, generator=torch.Generator().manual_seed(seed)).to(dtype)
    inside(newton_schulz(x.mT if tall else x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("spectrum", ["even in the exponent", "one large", "one small", "half small", "even"])
def test_a_condition_of_a_million_takes_ten_steps(spectrum, dtype):
    """Whatever stands between the largest singular value and the smallest."""
    m, small = 48, 1e-6
    values = {
        "even in the exponent": torch.logspace(0, -6, m, dtype=torch.float64),
        "one large": torch.cat([torch.ones(1), torch.full((m - 1,), small)]),
        "one small": torch.cat([torch.ones(m - 1), torch.full((1,), small)]),
        "half small": torch.cat([torch.ones(m // 2), torch.full((m // 2,), small)]),
        "even": torch.linspace(1, small, m),
    }[spectrum]
    inside(newton_schulz(with_values(values.double(), 2 * m).to(dtype), steps=10))


@pytest.mark.parametrize("steps", range(1, 11))
def test_the_table_of_steps_against_condition_numbers(steps):
    """A matrix of that condition number comes within 12% of 1 in so many steps; one of twice as much does not."""
    reached, missed = (
        extremes(newton_schulz(with_values(torch.tensor([1.0, 1 / condition]).double(), 5), steps))
        for condition in (0.97 * TABLE[steps - 1], 2 * TABLE[steps - 1])
    )
    assert reached[0] >= 0.88 - 1e-6 and reached[1] <= 1.12 + 1e-6
    assert missed[0] < 0.88


def test_steps_beyond_ten_polish():
    """The limit is the polar factor `U V^T`, to rounding at 13 steps."""
    x = randn(3, 6, 20)
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    errors = [(newton_schulz(x, steps) - u @ vh).abs().max().item() for steps in (10, 11, 12, 13)]
    assert errors[0] < 0.12 and errors[1] < 5e-3 and errors[2] < 3e-7 and errors[3] < 1e-13


@pytest.mark.parametrize(
    ("dtype", "steps", "bound"), [(torch.float64, 5, 1e-11), (torch.float64, 10, 1e-8), (torch.float32, 5, 1e-3)]
)
def test_directions_of_rank_deficiency_stay_zero(dtype, steps, bound):
    """A product of rank 6 keeps rank 6, but for rounding, which is raised like any small singular value."""
    values = torch.linalg.svdvals(newton_schulz((randn(3, 30, 6) @ randn(3, 6, 70)).to(dtype), steps))
    assert BAND[0] < values[..., :6].min() and values[..., :6].max() < BAND[1]
    assert values[..., 6:].max() < bound


def test_rows_and_columns_of_zeros_stay_zero():
    """Exactly, at any number of steps and in float32."""
    x = torch.randn(2, 12, 40)
    x[:, 3], x[..., 7] = 0.0, 0.0
    found = newton_schulz(x, steps=10)
    assert not found[:, 3].any() and not found[..., 7].any()
    inside(found[:, [i for i in range(12) if i != 3]])


@pytest.mark.parametrize("coefficients", [None, MUON])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_zeros_give_zeros(dtype, coefficients):
    """A matrix of zeros, alone and beside others, which it leaves as they would be without it."""
    x = torch.randn(3, 4, 9).to(dtype)
    x[1] = 0.0
    found = newton_schulz(x, coefficients=coefficients)
    assert not found[1].any()
    close(found[[0, 2]], newton_schulz(x[[0, 2]], coefficients=coefficients), 1e-6)


@given(st.integers(-100, 100), st.booleans())
def test_the_scale_does_not_matter(exponent, tall):
    """A power of two changes no bit, up to where float32 ends."""
    x = torch.randn(2, 5, 11)
    x = x.mT if tall else x
    same(newton_schulz(x * 2.0**exponent), newton_schulz(x))


def test_it_turns_with_the_matrix():
    """`NS(Q X R) = Q NS(X) R` for orthogonal `Q, R`, and `NS(X^T) = NS(X)^T`."""
    x, q, r = randn(6, 10), orthonormal(6, 6), orthonormal(10, 10)
    close(newton_schulz(q @ x @ r), q @ newton_schulz(x) @ r)
    close(newton_schulz(x.mT), newton_schulz(x).mT)


def test_a_batch_is_its_matrices():
    """Each as if it were alone, whatever the number of batch dimensions."""
    x = randn(2, 3, 4, 7)
    close(newton_schulz(x), torch.stack([torch.stack([newton_schulz(m) for m in row]) for row in x]))


def transcription(x: Tensor, triples: list[tuple[float, float, float]]) -> Tensor:
    """The iteration as it is written, on the Frobenius-normalised matrix."""
    x = x / x.norm()
    for a, b, c in triples:
        gram = x @ x.mT
        x = a * x + b * gram @ x + c * gram @ gram @ x
    return x


def test_own_coefficients_are_iterated_as_written():
    """One triple a step, or one for all, in float64."""
    x, triples = randn(5, 8), [(1.5, -0.5, 0.0), (15 / 8, -10 / 8, 3 / 8), MUON]
    close(newton_schulz(x, 3, triples), transcription(x, triples))
    close(newton_schulz(x, 4, MUON), transcription(x, [MUON] * 4))


@pytest.mark.parametrize("shape", [(16, 40), (40, 16)])
def test_muons_own_function_is_met_within_bfloat16(shape):
    """With its coefficients and steps; torch iterates in bfloat16, whose rounding five steps raise to some per cent."""
    x = torch.randn(shape)
    theirs = _muon._zeropower_via_newtonschulz(x, MUON, 5, 1e-7).float()
    ours = newton_schulz(x, coefficients=MUON)
    assert (ours - theirs).norm() < 0.03 * ours.norm()


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (1, 4), (3, 3)])
def test_gradients_flow(shape):
    """The derivative is that of differences, through the normalisation too."""
    assert torch.autograd.gradcheck(lambda x: newton_schulz(x, 3), randn(*shape, grad=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3),), r"torch.float32 \[3\]; give real floating point \[.., m, n\]"),
        ((torch.zeros(3, 0),), r"\[3, 0\]"),
        ((torch.zeros(3, 3, dtype=torch.complex64),), "complex64"),
        ((torch.zeros(3, 3, dtype=torch.int64),), "int64"),
        ((torch.zeros(3, 3), 0), "steps=0 must be at least 1"),
        ((torch.zeros(3, 3), 0, MUON), "steps=0 must be at least 1"),
        ((torch.zeros(3, 3), 5, [MUON] * 3), "as many triples as steps=5"),
        ((torch.zeros(3, 3), 1, [(1.5, -0.5)]), r"must be \(a, b, c\)"),
        ((torch.zeros(3, 3), 5, (1.5, -0.5)), r"must be \(a, b, c\)"),
    ],
)
def test_what_it_cannot_do_raises(arguments, message):
    """Each error says what was given and what is allowed."""
    with pytest.raises(ValueError, match=message):
        newton_schulz(*arguments)


def test_a_matrix_of_zeros_has_a_gradient():
    """None, where a norm would have no number; its neighbours in the batch keep theirs."""
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    x[1] = 0.0
    x.requires_grad_()
    y = newton_schulz(x)
    assert not y[1].any()
    (slope,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
    assert slope.isfinite().all() and not slope[1].any() and slope[0].any()
    (again,) = torch.autograd.grad(slope.square().sum(), x)
    assert again.isfinite().all()
