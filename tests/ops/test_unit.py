"""Vectors of norm one, against torch's."""

import pytest
import torch
from torch.nn import functional as F

from nestling.ops.unit import unit


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


def test_first_and_second_derivatives():
    """Against finite differences."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit, x) and torch.autograd.gradgradcheck(unit, x)
