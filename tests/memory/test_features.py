"""Kernel feature maps: each is its kernel, or comes close to it at the rate that theory gives."""

import math

import pytest
import torch

from nestling.memory import (
    L2,
    AssociativeMemory,
    EluPlusOne,
    Features,
    GradientDescent,
    Matrix,
    Polynomial,
    RandomFeatures,
)
from tests.helpers import close, differ, directions, randn, same, uniform

D = 4


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
@pytest.mark.parametrize("dim", [1, 4, 7])
def test_polynomial_features_are_the_polynomial_kernel(dim, degree):
    """`phi(x) . phi(y) = (1 + x . y)^degree` exactly, with as few features as there are monomials, the constant one first."""
    x, y, phi = randn(3, 5, dim), randn(3, 6, dim), Polynomial(degree)
    close(phi(x) @ phi(y).mT, (1 + x @ y.mT) ** degree)
    assert phi(x).shape[-1] == phi.width(dim)
    assert (phi(x)[..., 0] == 1).all()


def test_monomials_have_gradients_at_zero():
    """Where factors vanish the derivative of a product is still that of a product: `d/dx (1 + x . y)^2 = 2 y` at `x = 0`."""
    x, y, phi = torch.zeros(D, dtype=torch.float64, requires_grad=True), randn(D), Polynomial(2)
    (slope,) = torch.autograd.grad(phi(x) @ phi(y), x)
    close(slope, 2 * y)


def test_tables_made_in_inference_mode_serve_training_later():
    """What is remembered of a width belongs to no mode."""
    with torch.inference_mode():
        first = Polynomial(4)(torch.ones(3))
    x = torch.ones(3, requires_grad=True)
    close(Polynomial(4)(x), first)
    assert torch.autograd.grad(Polynomial(4)(x).sum(), x)[0].any()


def test_elu_plus_one_is_positive():
    """`x + 1` above 0 and `exp(x)` below: positive everywhere, so that attention weights are."""
    x = randn(100)
    close(EluPlusOne()(x), torch.where(x > 0, x + 1, x.exp()))
    assert (EluPlusOne()(10 * x) > 0).all()
    assert EluPlusOne().width(7) == 7


def kernel_error(directions: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """How far positive features along `directions [.., d, n]` are from `exp(x . y)`, for each pair, as a share of it."""

    def phi(z: torch.Tensor) -> torch.Tensor:
        return torch.exp(z @ directions - 0.5 * z.square().sum(-1, keepdim=True))

    return (phi(x) * phi(y)).mean(-1) / (x * y).sum(-1).exp() - 1


def test_random_features_are_the_softmax_kernel():
    """Unbiased: over many draws the mean is the kernel, and the mean square error falls as `1 / n`; all are positive."""
    x, y = directions(20, D), directions(20, D)
    many = torch.stack([RandomFeatures(8, D).directions for _ in range(3000)]).double()
    error = kernel_error(many, x, y)
    close(error.mean(0), torch.zeros(20, dtype=torch.float64), 5 * error.std(0).max().item() / 3000**0.5)
    more = torch.stack([RandomFeatures(32, D).directions for _ in range(3000)]).double()
    assert 3.3 < error.square().mean() / kernel_error(more, x, y).square().mean() < 4.8
    features = RandomFeatures(8, D)
    expected = (1 + kernel_error(features.double().directions, x, y)) * (x * y).sum(-1).exp()
    close((features(x) * features(y)).sum(-1), expected)
    assert (features(3 * randn(50, D)) > 0).all()


def test_orthogonal_directions_err_less_than_independent_ones():
    """Theorem 2 of the Performer; independent ones err by `(exp(|x + y|^2) - 1) / n` in the mean square."""
    n, draws = 8, 20_000
    runs = RandomFeatures(n * draws, n).directions.double().view(n, draws, n).transpose(0, 1)
    x = 0.5 * directions(10, n)[:, None]
    error = torch.stack([kernel_error(runs, each, each).square().mean() for each in x]).mean()
    assert 0.5 < error / (math.expm1(1.0) / n) < 0.9


def test_directions_are_orthogonal_and_as_long_as_independent_ones():
    """Right angles within every run, the last one cut short; uniform on the sphere; a mean square length of the dimension."""
    w = RandomFeatures(2 * D + 1, D).directions.double()
    assert w.shape == (D, 2 * D + 1)
    for run in (w[:, :D], w[:, D : 2 * D]):
        gram = run.mT @ run
        close(gram, gram.diag().diag(), 1e-5)
    many = RandomFeatures(20_000, D).directions.double().view(D, -1, D)  # [dim, runs, place in the run]
    close(many.square().sum(0).mean(), torch.tensor(D, dtype=torch.float64), 0.1)
    assert many.mean(1).abs().max() < 0.1


def test_random_features_are_saved():
    """Drawn once: what a memory was trained with is what it is loaded with."""
    one, other = (Features(RandomFeatures(6, D), Matrix(6, D)) for _ in range(2))
    x = torch.randn(5, D)
    differ(one.feature_map(x), other.feature_map(x))
    other.load_state_dict(one.state_dict())
    same(one.feature_map(x), other.feature_map(x))
    assert [name for name, _ in one.named_parameters()] == ["network.weight"]


def test_a_memory_of_features_is_kernel_regression():
    """Descent on a matrix of features = the same steps on the kernel's matrix alone: no feature is ever written down."""
    L, phi = 12, Polynomial(3)
    memory = AssociativeMemory(Features(phi, Matrix(phi.width(D), 3)), L2(), GradientDescent(), chunk_size=1).double()
    q, k, v, eta = directions(1, 1, L, D), directions(1, 1, L, D), randn(1, 1, L, 3), uniform(0.02, 0.1, 1, 1, L)
    y, _ = memory(q, k, v, eta)
    gram, asked = ((1 + x[0, 0] @ k[0, 0].mT) ** 3 for x in (k, q))
    written, answers = torch.zeros(L, 3, dtype=torch.float64), []
    for t in range(L):
        answers.append(asked[t] @ written)
        written[t] = eta[0, 0, t] * (v[0, 0, t] - gram[t] @ written)
    close(y[0, 0], torch.stack(answers))


def test_features_that_do_not_fit_are_named():
    """Both widths, and what to give instead."""
    network = Features(Polynomial(2), Matrix(14, D))
    with pytest.raises(ValueError, match=r"Polynomial\(degree=2\) makes 15 features of 4 inputs, .* takes 14: give it"):
        network.read(randn(5, D), network.weights())
    with pytest.raises(ValueError, match="dim=5 does not fit: these features were drawn for 4 inputs"):
        RandomFeatures(6, D)(torch.randn(2, 5))
