"""What memories are read at and answer: functions whose gradients are written out are those of their definitions, twice."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from nestling.layers import CausalConv
from nestling.layers.look import unit_answers, unit_heads
from tests.helpers import close, randn


def convolved(x):
    torch.manual_seed(0)
    return CausalConv(4, filters=3, width=3).double()(x, randn(2, 2, 4), None, slice(1, None))[0]


def heads(x):
    return unit_heads(x, 2)


FUNCTIONS = {
    "convolution": (convolved, [(2, 5, 4)]),
    "looks": (heads, [(2, 3, 5, 4)]),
    "answers": (unit_answers, [(2, 3, 5, 4), (2, 3, 4, 6), (2, 3, 6, 4)]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_and_theirs_are_those_of_finite_differences(name):
    function, shapes = FUNCTIONS[name]
    given = tuple(randn(*shape, grad=True) for shape in shapes)
    assert gradcheck(function, given) and gradgradcheck(function, given)


def test_looks_are_the_directions_of_each_heads_channels():
    """Head h of token t sees channels `h d` to `h d + d - 1`, bent and brought to norm 1."""
    x = randn(2, 3, 5, 8)
    looks = unit_heads(x, 2)
    assert looks.shape == (2, 3, 2, 5, 4)
    close(looks[:, :, 1], F.normalize(F.silu(x[..., 4:]), dim=-1))


def test_answers_are_directions_of_a_residual_network():
    x, up, down = randn(2, 3, 5, 4), randn(2, 3, 4, 6), randn(2, 3, 6, 4)
    close(unit_answers(x, up, down), F.normalize(x + F.silu(x @ up) @ down, dim=-1))


@pytest.mark.parametrize("learnt", [(True, False, False), (False, True, True)])
def test_what_is_not_learnt_needs_no_gradient(learnt):
    """Frozen weights, or frozen inputs; also for a derivative of the gradient."""
    given = [randn(1, 2, 3, 4), randn(1, 2, 4, 4), randn(1, 2, 4, 4)]
    given = [x.requires_grad_(on) for x, on in zip(given, learnt, strict=True)]
    leaves = [x for x in given if x.requires_grad]
    first = torch.autograd.grad(unit_answers(*given).sin().sum(), leaves, create_graph=True)
    assert all(
        x.isfinite().all() for x in torch.autograd.grad(torch.stack([g.sin().sum() for g in first]).sum(), leaves)
    )
