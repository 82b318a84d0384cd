"""A memory's initial state written by a network: it begins as the memory's own, is learnt, and tells contexts apart."""

import pytest
import torch
from torch import nn

from nestling.memory import (
    L2,
    MLP,
    AssociativeMemory,
    DeltaGradientDescent,
    GradientDescent,
    Hypernetwork,
    Matrix,
    adapt,
    query_loss,
)
from tests.helpers import close, differ, directions, gradients, named, randn, randomise, same, uniform

B, L, D, WIDTH = 3, 5, 4, 3

MEMORIES = {
    "a network for all heads": (lambda: AssociativeMemory(MLP(D, 6), L2(), chunk_size=2), 2),
    "a network a head": (lambda: AssociativeMemory(MLP(D, 6, heads=2), L2(), DeltaGradientDescent(), 2), None),
    "memories x heads": (lambda: AssociativeMemory(Matrix(D, D, heads=(2, 2)), L2(), chunk_size=2), None),
    "momentum": (lambda: AssociativeMemory(Matrix(D, D), L2(), GradientDescent(momentum=True), 2), 2),
    "any module": (lambda: AssociativeMemory(nn.Linear(D, D, bias=False), L2(), chunk_size=2), 2),
}


def made(name):
    torch.manual_seed(0)
    make, heads = MEMORIES[name]
    memory = randomise(make().double())
    return memory, Hypernetwork(memory, WIDTH, rank=2, heads=heads), heads


def used(memory, state):
    """What the memory answers from a state on while it learns, and what it knows in the end."""
    torch.manual_seed(1)
    lead = state.weights[0].shape[:-2]
    theta = uniform(0.1, 0.9, *lead, L) if memory.rule.momentum else None
    q, k, v = (directions(*lead, L, D) for _ in range(3))
    y, after = memory(q, k, v, uniform(0.1, 0.5, *lead, L), state=state, theta=theta)
    return {"y": y, **named(after)}


@pytest.mark.parametrize("name", MEMORIES)
def test_at_first_it_generates_the_initial_state(name):
    """Bit for bit, whatever the context."""
    memory, hypernetwork, heads = made(name)
    state = hypernetwork(memory, randn(B, WIDTH))
    same(state, memory.init_state(B, heads))
    same(used(memory, state), used(memory, memory.init_state(B, heads)))


@pytest.mark.parametrize("name", MEMORIES)
def test_gradients_come_through_what_the_memory_does(name):
    """To the context, to every factor and to the shared weights: against finite differences along a direction."""
    memory, hypernetwork, _ = made(name)
    randomise(hypernetwork)
    context = randn(B, WIDTH, grad=True)
    inputs = [context, *hypernetwork.parameters(), *memory.parameters()]
    slopes = gradients(used(memory, hypernetwork(memory, context)), inputs)
    assert all(slope.abs().max() > 1e-6 for slope in slopes)
    along, step = [torch.randn_like(x) for x in inputs], 1e-6

    def moved(size):
        """The same random function of everything that comes out, a step further."""
        with torch.no_grad():
            for x, direction in zip(inputs, along, strict=True):
                x.add_(size * direction)
        found = used(memory, hypernetwork(memory, context))
        generator = torch.Generator().manual_seed(0)
        parts = [t for t in found.values() if t.is_floating_point() and t.requires_grad]
        return sum((t * torch.randn(t.shape, generator=generator, dtype=t.dtype)).sum() for t in parts).item()

    difference = (moved(step) - moved(-2 * step)) / (2 * step)
    expected = sum((slope * direction).sum() for slope, direction in zip(slopes, along, strict=True))
    assert difference == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("name", MEMORIES)
def test_what_it_generates_is_of_the_rank_and_of_the_context(name):
    """`W_i + U diag(c S) V`, for each row by its own context."""
    memory, hypernetwork, heads = made(name)
    randomise(hypernetwork)
    contexts = randn(B, WIDTH)
    state, born = hypernetwork(memory, contexts), memory.init_state(B, heads)
    differ({"w": state.weights[0][0]}, {"w": state.weights[0][1]})
    close(hypernetwork(memory, contexts[1:2]), state.select(torch.tensor([1])))
    for weight, own in zip(state.weights, born.weights, strict=True):
        assert (torch.linalg.matrix_rank(weight - own) == 2).all()
    assert state.start is state.weights


def test_a_generated_memory_beats_a_shared_one_where_the_context_tells():
    """Maps that the context mixes: before anything is written, and after a few pairs have been."""
    generator = torch.Generator().manual_seed(2)
    maps = torch.randn(WIDTH, D, D, generator=generator)

    def tasks(count):
        context = torch.randn(count, WIDTH, generator=generator)
        keys = nn.functional.normalize(torch.randn(count, 1, 4, D, generator=generator), dim=-1)
        values = keys @ torch.einsum("bc,cio->bio", context, maps)[:, None]
        return context, keys[:, :, :2], values[:, :, :2], keys[:, :, 2:], values[:, :, 2:]

    def trained(start):
        torch.manual_seed(3)
        memory = AssociativeMemory(Matrix(D, D), L2(), chunk_size=2)
        hypernetwork = Hypernetwork(memory, WIDTH, rank=12, heads=1)
        optimizer = torch.optim.Adam([*memory.parameters(), *hypernetwork.parameters()], lr=0.03)
        for _ in range(200):
            context, keys, values, *queries = tasks(32)
            state = start(memory, hypernetwork, context)
            optimizer.zero_grad()
            query_loss(memory, adapt(memory, keys, values, 0.3, state=state), *queries).mean().backward()
            optimizer.step()
        context, keys, values, *queries = tasks(300)
        with torch.no_grad():
            state = start(memory, hypernetwork, context)
            states = state, adapt(memory, keys, values, 0.3, state=state)
            return [query_loss(memory, one, *queries).mean().item() for one in states]

    shared = trained(lambda memory, _, context: memory.init_state(len(context), 1))
    generated = trained(lambda memory, hypernetwork, context: hypernetwork(memory, context))
    assert generated[0] < 0.05 * shared[0] and generated[1] < 0.05 * shared[1]
    assert shared[1] < shared[0]


@pytest.mark.parametrize("shape", [(B, WIDTH + 1), (WIDTH,)])
def test_a_context_of_another_width_raises(shape):
    memory, hypernetwork, _ = made("momentum")
    with pytest.raises(ValueError, match=rf"\[B, {WIDTH}\]"):
        hypernetwork(memory, randn(*shape))


@pytest.mark.parametrize(("settings", "message"), [({"context": 0}, "context=0"), ({"rank": 0}, "rank=0")])
def test_bad_sizes_raise(settings, message):
    memory, _, _ = made("momentum")
    with pytest.raises(ValueError, match=message):
        Hypernetwork(memory, **{"context": WIDTH, **settings})
