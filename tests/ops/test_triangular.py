"""Batched unit lower triangular systems: the solution, its derivatives, and what is not read."""

import torch

from nestling.ops.triangular import solve_unit_lower
from tests.helpers import close, gradients, randn

N, M = 6, 3


def test_solves_the_system():
    """`(I + N) X = R`, batch dimensions broadcast."""
    strict, right = 0.5 * randn(4, 1, N, N).tril(-1), randn(1, 5, N, M)
    close((torch.eye(N) + strict) @ solve_unit_lower(strict, right), right.expand(4, 5, N, M))


def test_gradients_are_those_of_a_general_solver():
    """Both gradients, summed over what was broadcast, equal those of `torch.linalg.solve`."""
    strict, right = (0.5 * randn(4, 1, N, N)).requires_grad_(), randn(1, 5, N, M, grad=True)
    expected = torch.linalg.solve(torch.eye(N, dtype=torch.float64) + strict.tril(-1), right)
    found = gradients(solve_unit_lower(strict.tril(-1), right), [strict, right])
    close(found, gradients(expected, [strict, right]))


def test_the_upper_half_is_not_read():
    """What stands on or above the diagonal changes nothing and gets no gradient."""
    strict, right = randn(2, N, N, grad=True), randn(2, N, M, grad=True)
    found = solve_unit_lower(strict, right)
    close(found, solve_unit_lower(strict.tril(-1), right))
    slope, _ = gradients(found, [strict, right])
    assert torch.equal(slope.triu(), torch.zeros_like(slope)) and (slope.tril(-1).abs().sum() > 0)


def test_the_second_derivative_is_right():
    """Second-order outer gradients go through it: the second derivative is right, not silently a constant's."""
    strict, right = (0.5 * randn(N, N)).requires_grad_(), randn(N, M, grad=True)
    assert torch.autograd.gradgradcheck(lambda n, r: solve_unit_lower(n.tril(-1), r), (strict, right))
