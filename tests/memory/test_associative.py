"""The contract of every associative memory: network x objective x rule x target x reading x retention.

A new member is one more entry of a list below. B rows, H heads, D width, C chunk.
"""

from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nestling.memory import (
    KL,
    L2,
    MLP,
    AssociativeMemory,
    DeltaGradientDescent,
    DeltaRule,
    DotProduct,
    Features,
    Given,
    GradientDescent,
    Huber,
    LeastSquares,
    Lp,
    Lq,
    Matrix,
    Oja,
    Omega,
    Orthogonal,
    Polynomial,
    RandomFeatures,
    ResidualNorm,
    SelfGenerated,
    ToZero,
    as_objective,
)
from tests.helpers import close, cuts, differ, directions, gradients, grid, named, pairwise, randn, row, same, uniform

B, H, D, C = 2, 2, 4, 8
LENGTHS = (1, 37, 65)


@dataclass(frozen=True)
class Clipped:
    """An objective of a user's own: Huber's loss of each component."""

    delta: float = 0.5

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return torch.nn.functional.huber_loss(output, target, reduction="none", delta=self.delta).sum(-1)

    def surprise(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).clamp(-self.delta, self.delta)


def matrix():
    return Matrix(D, D, heads=H)


def mlp():
    return MLP(D, 6, heads=H)


def mlp_without_heads():
    return MLP(D, 6)


def deep_gated_mlp():
    return MLP(D, 5, heads=H, depth=3, residual=False, gate=True)


def polynomial():
    return Features(Polynomial(2), Matrix(Polynomial(2).width(D), D, heads=H), D)


def random_features():
    return Features(RandomFeatures(6, D), Matrix(6, D))


def normalised():
    return ResidualNorm(MLP(D, 6, heads=H))


def pseudo_huber(output: Tensor, target: Tensor) -> Tensor:
    """A loss of a user's own, as a function."""
    return (1 + (output - target).square()).sqrt().sum(-1)


NETWORKS = (matrix, mlp, mlp_without_heads, deep_gated_mlp, polynomial, random_features, normalised)
OBJECTIVES = (DotProduct(), L2(), Huber(0.5), Clipped(), Lp(1.5), as_objective(pseudo_huber))
RULES = (
    GradientDescent(),
    GradientDescent(momentum=True),
    DeltaGradientDescent(),
    DeltaGradientDescent(momentum=True),
    DeltaGradientDescent(exact=False),
    DeltaGradientDescent(exact=False, momentum=True),
)
GATHERING = (
    GradientDescent(),
    GradientDescent(momentum=True),
    Omega(3),
    Omega(11, GradientDescent(momentum=True)),
    Orthogonal(),
    Orthogonal(Omega(3)),
    Orthogonal(Omega(3, GradientDescent(momentum=True))),
)
GATHERERS = (matrix, mlp_without_heads, polynomial)
LINEAR = (
    (L2(), DeltaRule()),
    (L2(), DeltaRule(exact=True)),
    (L2(), DeltaRule(fade_first=False)),
    (L2(), DeltaRule(momentum=True)),
    (DotProduct(), Oja()),
    (DotProduct(), Oja(momentum=True)),
    (L2(), LeastSquares(0.5)),
)
TARGETS = (Given(), SelfGenerated())
READS = ("token", "inclusive", "chunk")
MEMBERS = [
    *((*row, ToZero()) for row in pairwise(NETWORKS, OBJECTIVES, RULES, TARGETS, READS)),
    *pairwise(GATHERERS, (L2(), Huber(0.5)), GATHERING, TARGETS, READS, (ToZero(), KL(2.0), Lq(3.0))),
    (normalised, L2(), Omega(3, GradientDescent(momentum=True)), Given(), "inclusive", KL(2.0)),
    *((net, *parts, Given(), read, ToZero()) for net, parts, read in pairwise((matrix, polynomial), LINEAR, READS)),
]
MEMBER = ("network", "objective", "rule", "target", "read", "retention")


def make(network, objective, rule, target, read, retention=None, chunk_size=C, **options) -> AssociativeMemory:
    """A memory in float64 with initial weights of order 1/2."""
    options["retention"] = retention
    memory = AssociativeMemory(network(), objective, rule, chunk_size, read, target, **options).double()
    with torch.no_grad():
        for weight in memory.parameters():
            weight.copy_(0.5 * randn(*weight.shape))
    return memory


def twin(memory: AssociativeMemory) -> AssociativeMemory:
    """The same memory, its network included, on the token loop."""
    options = {name: getattr(memory, name) for name in ("chunk_size", "read", "target", "detach_writes", "retention")}
    return AssociativeMemory(memory.network, memory.objective, memory.rule, backend="reference", **options)


def tokens(memory: AssociativeMemory, length: int, grad: bool = False) -> dict[str, Tensor]:
    """Queries, keys, values and gates of a stable memory."""
    shape = (B, H, length)
    made = {"q": directions(*shape, D), "k": directions(*shape, D), "v": directions(*shape, D)}
    made |= {"eta": uniform(0.05, 0.4, *shape), "alpha": uniform(0.9, 1.0, *shape)}
    if memory.rule.momentum:
        made["theta"] = uniform(0.0, 0.7, *shape)
    return {name: x.requires_grad_(grad) for name, x in made.items()}


def a_state(memory: AssociativeMemory):
    """Somewhere in the middle of a chunk, another place in each row; every tensor a leaf."""
    state = memory.init_state(B, None if memory.network.heads else H)

    def leaf(x: Tensor) -> Tensor:
        return (0.5 * randn(*x.shape)).requires_grad_() if x.is_floating_point() else torch.ones_like(x)

    made = replace(state.map(leaf), position=torch.tensor([5, 2]))
    if isinstance(memory.rule, LeastSquares):  # an inverse of what was seen
        made = replace(
            made, carried=tuple((p @ p.mT + torch.eye(p.shape[-1])).detach().requires_grad_() for p in made.carried)
        )
    return made


def run(memory, given, sizes=None, state=None, lengths=None):
    """The memory over all tokens, or over pieces of them."""
    if sizes is None:
        return memory(**given, state=state, lengths=lengths)
    outputs, at = [], 0
    for size in sizes:
        y, state = memory(**{n: x[:, :, at : at + size] for n, x in given.items()}, state=state)
        outputs.append(y)
        at += size
    return torch.cat(outputs, dim=2), state


def compare(memory, given, state=None, lengths=None):
    """Outputs, final state (weights, start, momentum, clock) and every gradient against the token loop."""
    leaves = [*given.values(), *memory.parameters()]
    leaves += [x for x in named(state).values() if x.requires_grad] if state else []
    found, expected = (run(m, given, state=state, lengths=lengths) for m in (memory, twin(memory)))
    close(found, expected)
    close(gradients(found, leaves), gradients(expected, leaves))


EVERY = [
    *grid(NETWORKS, OBJECTIVES, RULES, TARGETS, READS, (ToZero(),), (False, True)),
    *grid(GATHERERS, (L2(), Huber(0.5)), GATHERING, TARGETS, READS, (ToZero(), KL(2.0), Lq(3.0)), (False, True)),
    *(
        (matrix, *parts, Given(), read, ToZero(), ragged)
        for parts, read, ragged in product(LINEAR, READS, (False, True))
    ),
]


@pytest.mark.parametrize((*MEMBER, "ragged"), EVERY)
def test_equals_the_token_loop(network, objective, rule, target, read, retention, ragged):
    """From the initial weights, at lengths that do and do not divide the chunk, rows of equal and of other lengths."""
    memory = make(network, objective, rule, target, read, retention)
    for length in LENGTHS:
        lengths = torch.tensor([length, length // 2]) if ragged else None
        compare(memory, tokens(memory, length, grad=True), lengths=lengths)


@pytest.mark.parametrize(MEMBER, MEMBERS)
def test_equals_the_token_loop_from_a_state(network, objective, rule, target, read, retention):
    """From somewhere inside a chunk, at another place in each row: the gradients of the state too."""
    memory = make(network, objective, rule, target, read, retention)
    compare(memory, tokens(memory, 21, grad=True), a_state(memory), torch.tensor([21, 17]))


@pytest.mark.parametrize(MEMBER, MEMBERS[::4])
@settings(max_examples=10)
@given(sizes=cuts(30))
def test_streaming_is_the_whole(network, objective, rule, target, read, retention, sizes):
    """Any split into calls gives the same outputs and the same state; boundaries are at absolute positions."""
    torch.manual_seed(0)
    memory = make(network, objective, rule, target, read, retention)
    with torch.no_grad():
        given = tokens(memory, 30)
        close(run(memory, given, sizes=sizes), run(memory, given))


def test_streaming_is_the_whole_for_the_token_loop_too():
    """The oracle obeys the same law, so that comparing with it means something."""
    memory = twin(make(*MEMBERS[5]))
    given = tokens(memory, 30)
    close(run(memory, given, sizes=[1, 6, 2, 9, 8, 4]), run(memory, given))


@pytest.mark.parametrize(MEMBER, MEMBERS)
def test_step_is_forward_of_one_token(network, objective, rule, target, read, retention):
    """Stepping by hand uses the same objects and gives the same numbers."""
    memory = make(network, objective, rule, target, read, retention)
    given, state, outputs = tokens(memory, 19), None, []
    for t in range(19):
        y, state = memory.step(**{n: x[:, :, t] for n, x in given.items()}, state=state)
        outputs.append(y)
    close((torch.stack(outputs, dim=2), state), run(memory, given))


@pytest.mark.parametrize(MEMBER[:-2], pairwise(NETWORKS, OBJECTIVES, RULES, TARGETS))
def test_with_a_chunk_of_one_both_readings_are_the_same(network, objective, rule, target):
    """Where every token begins a chunk, what is read before the token is the chunk's start; and else it is not."""
    by_token = make(network, objective, rule, target, "token", chunk_size=1)
    by_chunk = make(network, objective, rule, target, "chunk", chunk_size=1)
    by_chunk.load_state_dict(by_token.state_dict())
    given = tokens(by_token, 19)
    close(run(by_token, given), run(by_chunk, given))
    by_token.chunk_size = by_chunk.chunk_size = C
    differ(run(by_token, given)[0], run(by_chunk, given)[0])


@pytest.mark.parametrize(MEMBER, MEMBERS)
def test_rows_are_strangers_to_each_other_and_to_padding(network, objective, rule, target, read, retention):
    """A row's outputs and state are the same bits whatever another row reads, and whatever stands in its padding."""
    memory = make(network, objective, rule, target, read, retention)
    given, lengths = tokens(memory, 21), torch.tensor([21, 13])
    y, state = run(memory, given, lengths=lengths)
    other = tokens(memory, 21)
    stranger = {n: torch.cat([x[:1], other[n][1:]]) for n, x in given.items()}
    y_stranger, state_stranger = run(memory, stranger, lengths=lengths)
    same(row((y_stranger, state_stranger), 0), row((y, state), 0))
    differ(row(state_stranger, 1), row(state, 1))
    padded = {n: torch.cat([x[1:, :, :13], other[n][1:, :, 13:]], dim=2) for n, x in given.items()}
    padded = {n: torch.cat([x[:1], padded[n]]) for n, x in given.items()}
    same(run(memory, padded, lengths=lengths), (y, state))
    alone = run(memory, {n: x[1:, :, :13] for n, x in given.items()})
    close((y[1:, :, :13], state.select(torch.tensor([1]))), alone)


@pytest.mark.parametrize("lengths", [(0, 13), (13, 13), (0, 0)], ids=str)
def test_any_lengths_will_do(lengths):
    """No row need be full, rows may be equally short, and a row, or all of them, may have nothing to read."""
    memory = make(*MEMBERS[0])
    given = tokens(memory, 21)
    y, state = run(memory, given, lengths=torch.tensor(lengths))
    assert y.shape == given["v"].shape and state.position.tolist() == list(lengths)
    for b, length in enumerate(lengths):
        part = {n: x[b : b + 1, :, :length] for n, x in given.items()}
        expected = run(memory, part)[1] if length else memory.init_state(1)
        close(state.select(torch.tensor([b])), expected)
        assert not y[b, :, length:].any()


@pytest.mark.parametrize(MEMBER, MEMBERS)
@settings(max_examples=6)
@given(t=st.integers(0, 20))
def test_the_future_changes_no_output(network, objective, rule, target, read, retention, t):
    """Outputs before token t are the same bits whatever is written from t on; token t's too where it reads before it writes."""
    memory = make(network, objective, rule, target, read, retention)
    given, other = tokens(memory, 21), tokens(memory, 21)
    y, _ = run(memory, given)
    written = {n: torch.cat([x[:, :, :t], other[n][:, :, t:]], dim=2) for n, x in given.items() if n != "q"}
    changed, state = run(memory, {**written, "q": given["q"]})
    known = t if read == "inclusive" else t + 1
    same(changed[:, :, :known], y[:, :, :known])
    differ(state.weights, run(memory, given)[1].weights)


@pytest.mark.parametrize(MEMBER, MEMBERS)
def test_learning_is_learnt(network, objective, rule, target, read, retention):
    """Initial weights, what is read and what is written get an outer gradient, the latter through the writes."""
    memory = make(network, objective, rule, target, read, retention)
    given = tokens(memory, 2 * C + 3, grad=True)
    slopes = gradients(run(memory, given)[0], [*given.values(), *memory.parameters()])
    assert all(slope.abs().max() > 1e-6 for slope in slopes)


def test_writes_may_be_detached():
    """`detach_writes` leaves outputs as they are, and lets no gradient through keys, values and gates."""
    memory = make(mlp, L2(), DeltaGradientDescent(), Given(), "token")
    cheap = make(mlp, L2(), DeltaGradientDescent(), Given(), "token", detach_writes=True)
    cheap.load_state_dict(memory.state_dict())
    given = tokens(memory, 21, grad=True)
    same(run(cheap, given), run(memory, given))
    query, *written = gradients(run(cheap, given)[0], list(given.values()))
    assert query.any() and not any(slope.any() for slope in written)


def test_detached_writes_are_constants_to_a_norm_too():
    """Scale and shift get the gradient of reading alone: with no read they get none."""
    for backend in ("auto", "reference"):
        memory = make(normalised, L2(), GradientDescent(), Given(), "token", detach_writes=True, backend=backend)
        state = run(memory, {**tokens(memory, 2 * C), "q": None})[1]
        scale, shift, *start = gradients(state.weights, list(memory.parameters()))
        assert not scale.any() and not shift.any() and all(slope.any() for slope in start)


@pytest.mark.parametrize("rule", [GradientDescent(), DeltaRule(), LeastSquares(), Omega(2)], ids=str)
def test_detached_writes_are_constants_to_features_too(rule):
    """A feature map that is learnt gets the gradient of reading alone."""
    for backend in ("auto", "reference"):
        network = Features(nn.Linear(D, 6, bias=False), Matrix(6, D, heads=H), D)
        memory = AssociativeMemory(network, L2(), rule, C, detach_writes=True, backend=backend).double()
        state = run(memory, {**tokens(memory, 2 * C), "q": None})[1]
        assert not gradients(state.weights, [network.feature_map.weight])[0].any()


def test_detached_writes_are_constants():
    """What the initial weights get is the gradient of reading them: the writes, their surprises too, stand still."""
    memory = make(matrix, L2(), GradientDescent(), Given(), "token", detach_writes=True)
    given = tokens(memory, C, grad=True)
    start = memory.network.weight
    q, k, v, eta, alpha = (given[n].detach() for n in ("q", "k", "v", "eta", "alpha"))
    weight, outputs, held = start.expand(B, H, D, D), [], start.detach()
    for t in range(C):
        outputs.append(q[:, :, t, None] @ weight)
        push = eta[..., t, None, None] * k[:, :, t, :, None] * (k[:, :, t, None] @ held - v[:, :, t, None])
        weight = alpha[..., t, None, None] * weight - push
    expected = torch.cat(outputs, dim=2)
    y, _ = run(memory, given)
    close(y, expected)
    close(gradients(y, [start]), gradients(expected, [start]))


def side_by_side(chunk_size, **options):
    """Three memories x two heads, retention promised to be above 1/2, each with its own chunk; the last one is read."""
    parts = Huber(0.5), DeltaGradientDescent(), chunk_size, options.pop("read", "token"), SelfGenerated()
    memory = AssociativeMemory(MLP(D, 6, heads=(3, H)), *parts, retention_floor=0.5, **options).double()
    with torch.no_grad():
        for weight in memory.parameters():
            weight.copy_(0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    return memory


def shared_tokens(length, readers=1, grad=True):
    """Keys, values and gates that the memories share."""
    shape = (B, 1, H, length)
    made = {"q": directions(B, readers, H, length, D), "k": directions(*shape, D), "v": directions(*shape, D)}
    made |= {"eta": uniform(0.05, 2.0, *shape), "alpha": uniform(0.5, 1.0, *shape)}
    return {name: x.requires_grad_(grad) for name, x in made.items()}


@pytest.mark.parametrize("read", ["token", "chunk"])
@pytest.mark.parametrize("readers", [1, 2, 3])
@pytest.mark.parametrize("chunk_size", [7, 16, 71, (16, 16, 8), (192, 192, 96)], ids=str)
def test_memories_side_by_side_equal_the_token_loop(chunk_size, readers, read):
    """The function with a gradient of its own: shared keys, chunks of their own, blocks within a chunk, some not read."""
    memory = side_by_side(chunk_size, read=read)
    oracle = side_by_side(chunk_size, read=read, backend="reference")
    assert memory.fused and not oracle.fused
    for length, lengths in ((1, None), (63, None), (100, torch.tensor([100, 41]))):
        given = shared_tokens(length, readers)
        found, expected = (m(**given, lengths=lengths) for m in (memory, oracle))
        close(found, expected)
        slopes = [
            gradients(out, [*given.values(), *m.parameters()]) for out, m in ((found, memory), (expected, oracle))
        ]
        close(*map(tuple, slopes))


def test_memories_side_by_side_from_a_state():
    """From somewhere inside a chunk, at another place in each row; gradients at the running weights and those held."""
    memory, oracle = side_by_side((8, 8, 4)), side_by_side((8, 8, 4), backend="reference")
    given, start = shared_tokens(21), a_state(memory)
    found, expected = (m(**given, state=start, lengths=torch.tensor([21, 17])) for m in (memory, oracle))
    close(found, expected)
    leaves = [*given.values(), *start.weights, *start.start]
    close(*(gradients(out, leaves) for out in (found, expected)))


def test_a_refused_row_spoils_no_gradient():
    """A value that is not finite, in one row: the gradients of what the rows share are those of the other path."""
    slopes = []
    for backend in ("auto", "chunk"):
        memory = side_by_side(8, backend=backend)
        torch.manual_seed(1)
        given = shared_tokens(11, grad=False)
        given["v"][1, 0, 0, 3] = torch.nan
        y, state = memory(**given)
        assert state.refused.tolist() == [0, 1]
        slopes.append(gradients(y, list(memory.parameters())))
    assert all(slope.isfinite().all() for slope in slopes[0])
    close(*slopes)


def test_a_subclass_means_what_it_says():
    """It is not taken for its parent."""

    class Halved(Huber):
        def surprise(self, output, target):
            return 0.5 * super().surprise(output, target)

    memory = side_by_side(8)
    memory.objective = Halved(0.5)
    given = shared_tokens(9, grad=False)
    y = memory(**given)[0]
    memory.backend = "chunk"
    close(y, memory(**given)[0])
    memory.objective = Huber(0.5)
    differ(y, memory(**given)[0])


def test_only_a_query_wants_a_second_derivative():
    """The new weights do not depend on it."""
    memory, given = side_by_side(8).requires_grad_(False), shared_tokens(9, grad=False)
    q = given.pop("q").requires_grad_()
    (first,) = torch.autograd.grad(memory(q, **given)[0].sin().sum(), q, create_graph=True)
    assert torch.autograd.grad(first.square().sum(), q)[0].abs().max() > 0


def test_memories_side_by_side_are_each_alone():
    """A memory's weights are those it would have without the others, with its own chunk size."""
    together, given = side_by_side((16, 16, 8)), shared_tokens(45, grad=False)
    _, state = together(**given)
    for i, chunk_size in enumerate((16, 16, 8)):
        alone = AssociativeMemory(
            MLP(D, 6, heads=H), Huber(0.5), DeltaGradientDescent(), chunk_size, "token", SelfGenerated()
        ).double()
        with torch.no_grad():
            for mine, theirs in zip(alone.parameters(), together.parameters(), strict=True):
                mine.copy_(theirs[i])
        _, expected = alone(**{name: x[:, 0] for name, x in given.items()})
        close(tuple(w[:, i] for w in state.weights), expected.weights)
        close(tuple(w[:, i] for w in state.start), expected.start)


def test_the_gradient_by_hand_can_be_differentiated_again():
    """Gradients of gradients, as of the steps one by one."""
    memory, oracle = side_by_side(8), side_by_side(8, backend="chunk")
    given = shared_tokens(11)
    slopes = []
    for m in (memory, oracle):
        leaves = [*given.values(), *m.parameters()]
        first = torch.autograd.grad(m(**given)[0].sin().sum(), leaves, create_graph=True)
        slopes.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    close(*slopes)


@pytest.mark.parametrize(
    ("chunk_size", "words"),
    [((8, 12), ["(8, 12)", "multiple of the smallest, 8"]), ((8, 16, 8), ["3 memories"])],
    ids=str,
)
def test_chunk_sizes_that_do_not_fit_are_named(chunk_size, words):
    """They nest, and there is one for each memory."""
    with pytest.raises(ValueError) as caught:
        AssociativeMemory(MLP(D, 6, heads=(2, H)), L2(), chunk_size=chunk_size)
    assert all(word in str(caught.value) for word in words)
