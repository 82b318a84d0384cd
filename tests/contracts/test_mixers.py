"""The contract of every layer that mixes over time, `y, state = layer(x, state, lengths)`: a new layer is one row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.layers import (
    Attention,
    Block,
    ContinuumMemory,
    MemoryLayer,
    SelfModifyingTitans,
)
from nestling.memory import L2, DeltaGradientDescent, DotProduct, GradientDescent
from nestling.memory.zoo import ZOO
from tests.helpers import close, cuts, differ, gradients, in_pieces, named, randn, randomise, row, same

B, L, D, HEADS = 2, 23, 8, 2


def titans(**options):
    return SelfModifyingTitans(D, HEADS, chunk_size=4, **options)


def zoo(name, **options):
    """A memory of the zoo as a layer, with chunks and windows that tell at this length."""
    wanted = {"chunk_size": 4, "window": 5, "hidden": 6}
    shape = {argument: value for argument, value in wanted.items() if ZOO[name].takes(argument)}
    return MemoryLayer(D, HEADS, ZOO[name], **shape, **options)


LAYERS = {
    "attention": lambda: Attention(D, HEADS),
    "attention, window": lambda: Attention(D, HEADS, window=5),
    "titans": titans,
    "titans, a query that is a memory": lambda: titans(query="memory"),
    "titans, slow projections": lambda: titans(projection_chunk_size=8, hidden=6),
    "titans, momentum": lambda: titans(rule=DeltaGradientDescent(momentum=True)),
    "titans, read at the chunk's start": lambda: titans(read="chunk", objective=DotProduct()),
    "titans, plain descent": lambda: titans(rule=GradientDescent(), objective=L2(), projection_chunk_size=12),
    "titans, detached writes": lambda: titans(detach_writes=True),
    "titans, chunks of one token": lambda: SelfModifyingTitans(D, HEADS, hidden=6, chunk_size=1),
    **{f"zoo: {name}": lambda name=name: zoo(name) for name in ZOO},
    "zoo: gated_deltanet, steps to 2": lambda: zoo("gated_deltanet", reach=2.0),
    "block of titans": lambda: Block(D, titans(), ContinuumMemory(D)),
    "block of attention": lambda: Block(D, Attention(D, HEADS, window=5), ContinuumMemory(D)),
}
ATTENTION = ("attention", "attention, window", "block of attention", "zoo: softmax_attention", "zoo: sliding_window")
every_layer = pytest.mark.parametrize("name", LAYERS)


def make(name):
    """The layer in float64, with weights of order 1/2 so that everything matters."""
    return randomise(LAYERS[name]().double())


@every_layer
@given(sizes=cuts(L))
@settings(max_examples=5)
def test_streaming_is_the_whole(name, sizes):
    """Any split into calls: the same outputs, and the same state where the state is bounded in its own right."""
    torch.manual_seed(0)
    layer, x = make(name), randn(B, L, D)
    y, state = layer(x)
    found, end = in_pieces(layer, x, sizes)
    close(found, y)
    if name not in ATTENTION:  # a window may keep columns that no one will see
        close(end, state)
    more = randn(B, 3, D)
    close(layer(more, end)[0], layer(more, state)[0])


@every_layer
def test_rows_are_strangers_to_each_other_and_to_padding(name):
    """Ragged rows, continued from their own places, are the rows alone; another row's tokens change no bit."""
    layer, x, more = make(name), randn(B, L, D), randn(B, 6, D)
    lengths, then = torch.tensor([L, 9]), torch.tensor([2, 6])
    y, state = layer(x, None, lengths)
    y_more, _ = layer(more, state, then)
    for b in range(B):
        alone, own = layer(x[b : b + 1, : lengths[b]])
        close(y[b : b + 1, : lengths[b]], alone)
        close(y_more[b : b + 1, : then[b]], layer(more[b : b + 1, : then[b]], own)[0])
    stranger = torch.cat([x[:1], randn(1, L, D)])
    y_stranger, state_stranger = layer(stranger, None, lengths)
    same(y_stranger[:1], y[:1])
    same(row(state_stranger, 0), row(state, 0))


@every_layer
def test_padding_is_never_seen(name):
    """Whatever stands after a row's real tokens, and in every row alike, outputs and state are those without it."""
    layer, x = make(name), randn(B, L, D)
    short = torch.tensor([9, 9])
    rubbish = torch.cat([x[:, :9], 1e3 * randn(B, L - 9, D)], dim=1)
    y, state = layer(rubbish, None, short)
    expected, end = layer(x[:, :9])
    close(y[:, :9], expected)
    more = randn(B, 3, D)
    close(layer(more, state)[0], layer(more, end)[0])


@every_layer
@given(t=st.integers(1, L - 1))
@settings(max_examples=3)
def test_the_future_changes_no_output(name, t):
    """Outputs before token t are the same bits whatever comes from t on, writes included."""
    torch.manual_seed(0)
    layer, x = make(name), randn(B, L, D)
    changed = torch.cat([x[:, :t], randn(B, L - t, D)], dim=1)
    y, found = layer(x)[0], layer(changed)[0]
    same(found[:, :t], y[:, :t])
    differ(found[:, t:], y[:, t:])


@every_layer
def test_training_and_evaluation_are_one(name):
    """No mode changes a number, and neither does whether gradients are recorded."""
    layer, x = make(name), randn(B, L, D)
    expected = layer.train()(x)
    same(layer.eval()(x), expected)
    with torch.no_grad():
        same(layer(x), expected)


@pytest.mark.parametrize("name", [name for name in LAYERS if "detached" not in name])
def test_every_parameter_is_learnt(name):
    """Each parameter, and each memory and head of it, gets an outer gradient."""
    layer, x = make(name), randn(B, L, D)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    for parameter, slope in zip(names, gradients(layer(x)[0], parameters), strict=True):
        lead = slope.dim() - 2 if "network" in parameter else 0  # memories x heads
        assert slope.abs().flatten(lead).amax(-1).min() > 1e-8, parameter


@every_layer
def test_low_precision_is_near(name):
    """float32 stays within 1e-4 of float64."""
    layer, x = make(name), randn(B, L, D)
    y = layer(x)[0]
    single = layer.float()(x.float())[0]
    assert single.dtype == torch.float32
    assert (single - y).abs().max() < 1e-4 * y.abs().max()


@every_layer
def test_a_state_is_plain_tensors_by_row(name):
    """Every tensor of a state has the batch in front, so that rows can be chosen; the old state is left as it was."""
    layer, x = make(name), randn(B, L, D)
    _, state = layer(x)
    assert all(t.shape[0] == B for t in named(state).values())
    kept = state.map(torch.clone)
    swapped = layer(x.flip(0), state.select(torch.tensor([1, 0])))
    close(swapped[0].flip(0), layer(x, state)[0])
    same(state, kept)
