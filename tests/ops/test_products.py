"""Products of gates between any two tokens, against their definition."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nestling.ops.products import products_between

GATES = st.lists(st.sampled_from([0.0, 1e-200, 1e-12, 0.5, 0.9, 1.0, 1.5]), min_size=1, max_size=9)


def definition(gate):
    """One entry at a time."""
    size = len(gate) + 1
    rows = [[math.prod(gate[s:t]) if s <= t else gate.new_zeros(()) for s in range(size)] for t in range(size)]
    rows = [[torch.as_tensor(x, dtype=gate.dtype) for x in row] for row in rows]
    return torch.stack([torch.stack(row) for row in rows])


@given(values=GATES, seed=st.integers(0, 99))
def test_every_stretch_is_the_product_of_its_gates(values, seed):
    """Values and gradients, gates of 0 and next to 0 included."""
    gate = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    found, expected = products_between(gate), definition(gate)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0.0)
    torch.manual_seed(seed)
    weight = torch.rand_like(found)
    slopes = [torch.autograd.grad((x * weight).sum(), gate)[0] for x in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-13, atol=0.0)


@pytest.mark.parametrize("gate", [[0.3, 0.0, 0.7, 1.0], [0.9, 0.8, 0.7]], ids=str)
def test_first_and_second_derivatives(gate):
    """Against finite differences."""
    gate = torch.tensor([gate, gate[::-1]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(products_between, gate)
    assert torch.autograd.gradgradcheck(products_between, gate)
