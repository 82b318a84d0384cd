"""What a memory starts from, learnt through its own writes: the outer gradients are what they say, and they help."""

import pytest
import torch
from torch import nn

from nestling.memory import L2, MLP, AssociativeMemory, DeltaGradientDescent, GradientDescent, Matrix, adapt, query_loss
from tests.helpers import close, differ, directions, randomise, same, uniform

B, H, N, D = 3, 2, 5, 4  # tasks, heads, pairs, width

MEMORIES = {
    "matrix": lambda **more: AssociativeMemory(Matrix(D, D), L2(), chunk_size=N, **more),
    "deep, in chunks that do not fit": lambda **more: AssociativeMemory(MLP(D, 3), L2(), chunk_size=2, **more),
    "erasing": lambda **more: AssociativeMemory(MLP(D, 3), L2(), DeltaGradientDescent(), chunk_size=3, **more),
    "momentum": lambda **more: AssociativeMemory(MLP(D, 3, heads=H), L2(), GradientDescent(momentum=True), 2, **more),
}


@pytest.fixture
def tasks():
    torch.manual_seed(0)
    return [directions(B, H, N, D) for _ in range(4)]  # keys, values; of the support set, then of the queries


def made(name, **more):
    torch.manual_seed(1)
    memory = randomise(MEMORIES[name](**more).double(), 0.3)
    gates = {"theta": torch.full((B, H, N), 0.4, dtype=torch.float64)} if memory.rule.momentum else {}
    return memory, gates


def loss_of(memory, tasks, **settings):
    keys, values, *queries = tasks
    return query_loss(memory, adapt(memory, keys, values, 0.3, **settings), *queries).sum()


def gradients(memory, loss):
    return dict(zip(dict(memory.named_parameters()), torch.autograd.grad(loss, list(memory.parameters())), strict=True))


@pytest.mark.parametrize("name", MEMORIES)
def test_the_second_order_gradient_is_that_of_finite_differences(name, tasks):
    """Of the loss after two passes, with respect to every initial weight, the rate and the pairs."""
    memory, gates = made(name)
    keys, values, *queries = [x.detach()[:2, :, :3].requires_grad_() for x in tasks]
    rate, alpha = uniform(0.2, 0.4, H, 1, grad=True), uniform(0.8, 1.0, 2, H, 3, grad=True)
    gates = {gate: x[:2, :, :3] for gate, x in gates.items()}
    names, weights = zip(*Loss(memory).named_parameters(), strict=True)

    def loss(rate, alpha, keys, values, *weights):
        given = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(Loss(memory), given, (rate, alpha, keys, values, queries, gates))

    assert torch.autograd.gradcheck(loss, (rate, alpha, keys, values, *weights))


class Loss(nn.Module):
    """The loss of the queries after two passes, as a module, so that weights can be handed to it."""

    def __init__(self, memory):
        super().__init__()
        self.memory = memory

    def forward(self, rate, alpha, keys, values, queries, gates):
        return query_loss(self.memory, adapt(self.memory, keys, values, rate, alpha, **gates, passes=2), *queries)


def test_it_is_maml():
    """A pass of one chunk is one step on the sum of the pairs' losses; both orders against a loop by autograd."""
    torch.manual_seed(2)
    memory, passes, eta = AssociativeMemory(randomise(MLP(D, 3).double()), L2(), chunk_size=N), 3, 0.2
    tasks = [directions(B, 1, N, D) for _ in range(4)]
    for outer_gradient, exact in (("second-order", True), ("first-order", False)):
        total = 0.0
        for b in range(B):
            keys, values, query_keys, query_values = (x[b, 0] for x in tasks)
            weights = list(memory.parameters())
            for _ in range(passes):
                inner = 0.5 * (memory.network.read(keys, weights) - values).square().sum()
                slopes = torch.autograd.grad(inner, weights, create_graph=exact)
                weights = [w - eta * g for w, g in zip(weights, slopes, strict=True)]
            total = total + 0.5 * (memory.network.read(query_keys, weights) - query_values).square().sum() / N
        adapted = adapt(memory, *tasks[:2], eta, passes=passes, outer_gradient=outer_gradient)
        loss = query_loss(memory, adapted, *tasks[2:]).sum()
        close(dict(enumerate(gradients(memory, loss).values())), dict(enumerate(gradients(memory, total).values())))
        torch.testing.assert_close(loss, total, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", MEMORIES)
def test_the_first_order_gradient_is_that_at_the_adapted_weights(name, tasks):
    """The same values; and the gradient of the queries' loss where a task has led, summed over tasks and heads."""
    memory, gates = made(name)
    first = adapt(memory, *tasks[:2], 0.3, **gates, passes=2, outer_gradient="first-order")
    exact = adapt(memory, *tasks[:2], 0.3, **gates, passes=2)
    same(first, exact)
    there = [w.detach().requires_grad_() for w in first.weights]
    loss = 0.5 * (memory.network.read(tasks[2], there) - tasks[3]).square().sum() / (H * N)
    own = len(memory.network.heads)
    definition = [g.sum(0) if own else g.sum((0, 1)) for g in torch.autograd.grad(loss, there)]
    found = gradients(memory, query_loss(memory, first, *tasks[2:]).sum())
    close(dict(enumerate(found.values())), dict(enumerate(definition)))
    differ(found, gradients(memory, query_loss(memory, exact, *tasks[2:]).sum()))


def test_when_detached_writes_are_the_first_order(tasks):
    """With plain descent that nothing fades; what is erased, and what fades, they differentiate still."""
    alpha = torch.full((B, H, N), 0.9, dtype=torch.float64)
    for name, gates, equal in (
        ("matrix", {}, True),
        ("deep, in chunks that do not fit", {}, True),
        ("erasing", {}, False),
        ("matrix", {"alpha": alpha}, False),
    ):
        detached, _ = made(name, detach_writes=True)
        keys, values, *queries = tasks
        rate = torch.full((B, H, N), 0.3, dtype=torch.float64)
        _, state = detached(None, keys, values, rate, **gates)
        found = gradients(detached, query_loss(detached, state, *queries).sum())
        expected = gradients(detached, loss_of(detached, tasks, outer_gradient="first-order", **gates))
        (close if equal else differ)(found, expected)


def test_rows_are_tasks_of_their_own(tasks):
    memory, _ = made("erasing")
    both = adapt(memory, *tasks[:2], 0.3)
    alone = adapt(memory, *(x[1:2] for x in tasks[:2]), 0.3)
    close(dict(enumerate(alone.weights)), {i: w[1:2] for i, w in enumerate(both.weights)})


def of_a_family(count, generator):
    """Tasks `y = x + x U C` with U [6, 2] of them all and C of each: three pairs say enough, to one who knows U."""
    directions_in = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(3)))[0][:, :2]
    keys = 1.2 * nn.functional.normalize(torch.randn(count, 1, 12, 6, generator=generator), dim=-1)
    values = keys + keys @ directions_in @ torch.randn(count, 1, 2, 6, generator=generator)
    return [x for part in (slice(0, 3), slice(3, 12)) for x in (keys[:, :, part], values[:, :, part])]


def trained(loss, steps=200):
    torch.manual_seed(4)
    memory = AssociativeMemory(MLP(6, 8), L2(), chunk_size=3)
    optimizer, generator = torch.optim.Adam(memory.parameters(), lr=1e-2), torch.Generator().manual_seed(5)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(memory, *of_a_family(32, generator)).mean().backward()
        optimizer.step()
    return memory


def test_a_learnt_initial_state_adapts_from_few_pairs():
    """Far better than a fresh one and than one that is best on average, each at the best of five rates."""
    tasks = of_a_family(500, torch.Generator().manual_seed(6))

    def through(order):
        return lambda memory, keys, values, *queries: query_loss(
            memory, adapt(memory, keys, values, 0.1, passes=5, outer_gradient=order), *queries
        )

    @torch.no_grad()
    def best(memory):
        adapted = (adapt(memory, *tasks[:2], eta, passes=5) for eta in (0.0, 0.01, 0.03, 0.1, 0.2))
        return min(query_loss(memory, state, *tasks[2:]).mean().item() for state in adapted)

    fresh = best(trained(through("first-order"), steps=0))
    mean = best(trained(lambda memory, _, __, *queries: query_loss(memory, memory.init_state(32, 1), *queries)))
    first, second = best(trained(through("first-order"))), best(trained(through("second-order")))
    assert second < 0.5 * mean and first < mean < fresh


BAD = {
    "order": ({"outer_gradient": "third-order"}, "outer_gradient='third-order'.*'first-order'"),
    "passes": ({"passes": 0}, "passes=0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_raises(name, tasks):
    given, message = BAD[name]
    memory, _ = made("matrix")
    with pytest.raises(ValueError, match=message):
        adapt(memory, *tasks[:2], 0.3, **given)


def test_what_cannot_be_differentiated_or_read_raises(tasks):
    detached, _ = made("matrix", detach_writes=True)
    with pytest.raises(ValueError, match=r"detach_writes=True.*'first-order'"):
        adapt(detached, *tasks[:2], 0.3)
    module = AssociativeMemory(nn.Linear(D, D).double(), L2())
    with pytest.raises(ValueError, match="Linear cannot be read"):
        query_loss(module, adapt(module, *tasks[:2], 0.3), *tasks[2:])
