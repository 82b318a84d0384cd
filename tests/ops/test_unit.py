"""Vectors of norm one, against torch's, and of bounded norm."""

import pytest
import torch
from torch.nn import functional as F

from nestling.ops.unit import bounded, unit


def within(x):
    """At most norm 2."""
    return bounded(x, 2.0)


@pytest.mark.parametrize("scale", [0.0, 1e-9, 0.9e-6, 1.1e-6, 1.0, 1e12])
def test_it_is_torch_s_normalize(scale):
    """Values and gradients, above the smallest norm, below it, and at zero."""
    torch.manual_seed(0)
    x = (scale * F.normalize(torch.randn(3, 4, 5, dtype=torch.float64), dim=-1)).requires_grad_()
    weight = torch.randn_like(x)
    found, expected = unit(x), F.normalize(x, dim=-1, eps=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    slopes = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-15)


def test_what_is_within_the_bound_stays_and_the_rest_keeps_its_direction():
    """The nearest vector of the ball."""
    x = torch.tensor([[0.0, 0.0], [1.2, 1.6], [3.0, 4.0], [3e12, 4e12]], dtype=torch.float64)
    expected = torch.tensor([[0.0, 0.0], [1.2, 1.6], [1.2, 1.6], [1.2, 1.6]], dtype=torch.float64)
    torch.testing.assert_close(within(x), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("function", [unit, within])
def test_first_and_second_derivatives(function, scale):
    """Against finite differences, within the bound and beyond."""
    torch.manual_seed(0)
    x = (scale * torch.randn(2, 3, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(function, x) and torch.autograd.gradgradcheck(function, x)
