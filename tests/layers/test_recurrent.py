"""Chunks of one token: the recurrence as one function a token equals the chunk form and the token loop."""

from functools import partial

import pytest
import torch

from nestling.layers import SelfModifyingTitans
from nestling.layers.recurrent import times, token_step
from nestling.memory import L2, DeltaGradientDescent, DotProduct, GradientDescent, ToInitial
from tests.helpers import close, gradients, named, randn, randomise

B, L, D, HEADS = 3, 13, 8, 2
OPTIONS = {
    "plain": {},
    "narrow memories": {"hidden": 3},
    "wide memories, one head": {"hidden": 11, "heads": 1},
    "printed step": {"rule": DeltaGradientDescent(exact=False), "objective": L2()},
    "plain descent": {"rule": GradientDescent(), "objective": DotProduct()},
    "read at the chunk's start": {"read": "chunk"},
    "faded to the initial weights": {"retention": ToInitial()},
    "no convolution, other horizons": {"conv_width": 1, "horizons": (4, 30), "retention": ToInitial()},
}
every_option = pytest.mark.parametrize("name", OPTIONS)


def make(name, **options):
    """The layer in float64."""
    options = {"heads": HEADS, **OPTIONS[name], **options}
    return SelfModifyingTitans(D, chunk_size=1, **options).double()


def in_chunks(layer):
    """The same layer in the general form."""
    layer.token_step = None
    return layer


@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "ragged"])
@every_option
def test_equals_the_chunk_form_and_the_token_loop(name, ragged):
    """Outputs, the state after, and the gradients of the input and of every parameter; a row without tokens too."""
    fast = randomise(make(name), scale=0.2)
    x, lengths = randn(B, L, D, grad=True), torch.tensor([L, 5, 0]) if ragged else None
    for slow in (in_chunks(make(name)), make(name, backend="reference")):
        slow.load_state_dict(fast.state_dict())
        found, expected = fast(x, None, lengths), slow(x, None, lengths)
        close(found, expected)
        inner = gradients(found, [x, *fast.parameters()]), gradients(expected, [x, *slow.parameters()])
        close(*map(tuple, inner))


def test_gradients_reach_a_state_that_was_given():
    """Through two calls, and for a state whose weights are leaves of their own."""
    fast, slow = make("plain"), in_chunks(make("plain"))
    slow.load_state_dict(fast.state_dict())
    x, more = randn(B, L, D), randn(B, L, D)
    found, expected = (layer(more, layer(x)[1]) for layer in (fast, slow))
    close(*(tuple(gradients(y, list(layer.parameters()))) for y, layer in ((found, fast), (expected, slow))))
    apart = fast(x)[1].map(lambda t: t.detach().requires_grad_() if t.is_floating_point() else t)
    leaves = [t for t in named(apart).values() if t.requires_grad]
    close(*(tuple(gradients(layer(more, apart), leaves)) for layer in (fast, slow)))


def test_a_write_that_is_not_finite_is_refused():
    """In its row alone, and counted, as in the chunk form."""
    fast, slow = make("plain"), in_chunks(make("plain"))
    slow.load_state_dict(fast.state_dict())
    x = randn(B, L, D)
    x[1, 4] = torch.nan
    found, expected = fast(x), slow(x)
    close(found[1], expected[1])
    assert found[1].memories.refused.tolist() == [0, 4, 0]  # the convolution sees it for four tokens


def test_a_token_is_one_graph():
    """Nothing in it depends on data: it can be compiled as a whole, and gives the same numbers and gradients."""
    fast, compiled = make("plain"), make("plain")
    compiled.load_state_dict(fast.state_dict())
    compiled.token_step = torch.compile(token_step, fullgraph=True, backend="aot_eager")
    x = randn(B, 3, D, grad=True)
    found, expected = compiled(x), fast(x)
    close(found, expected)
    inner = gradients(found, [x, *compiled.parameters()]), gradients(expected, [x, *fast.parameters()])
    close(*map(tuple, inner))


def test_products_are_those_of_matrices():
    """With rows last."""
    x, weight = randn(2, 3, B), randn(5, 2, 3, 4, B)
    expected = torch.einsum("hib,mhiob->mhob", x, weight)
    close(times(x, weight), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"chunk_size": 2},
        {"projection_chunk_size": 2},
        {"backend": "reference"},
        {"detach_writes": True},
        {"rule": DeltaGradientDescent(momentum=True)},
    ],
    ids=str,
)
def test_what_it_does_not_cover_runs_in_the_general_form(options):
    """Larger chunks, the oracle, detached writes and momentum; a plain layer with chunks of one token is covered."""
    layer = partial(SelfModifyingTitans, D, HEADS)
    assert layer(**{"chunk_size": 1, **options}).token_step is None
    assert layer(chunk_size=1).token_step is token_step
