"""What a memory refuses: updates that are not finite, row by row; and calls that cannot mean anything."""

import pytest
import torch
from torch import nn

from nestling.memory import (
    KL,
    L2,
    MLP,
    AssociativeMemory,
    DeltaGradientDescent,
    DeltaRule,
    DotProduct,
    EluPlusOne,
    Features,
    GradientDescent,
    LeastSquares,
    Lq,
    Matrix,
    Omega,
    Orthogonal,
    RetainSeen,
    SoftmaxAttention,
)
from tests.helpers import close, directions, gradients, row, same, uniform

B, H, D, C, L = 3, 2, 4, 8, 20
BACKENDS = ("chunk", "reference")


def a_memory(momentum=False, backend="chunk"):
    return AssociativeMemory(
        MLP(D, 6, heads=H), L2(), DeltaGradientDescent(momentum=momentum), C, backend=backend
    ).double()


def tokens(momentum=False, grad=False):
    shape = (B, H, L)
    given = {name: directions(*shape, D, grad=grad) for name in "qkv"}
    given |= {"eta": uniform(0.05, 0.4, *shape), "alpha": uniform(0.9, 1.0, *shape)}
    return given | ({"theta": uniform(0.0, 0.7, *shape)} if momentum else {})


def spoilt(given, value, at=10):
    """The same tokens with one value of row 1 that is not finite."""
    v = given["v"].detach().clone()
    v[1, 0, at, 2] = value
    return {**given, "v": v}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_an_update_that_is_not_finite_is_refused_in_its_row_only(value, momentum, backend):
    """It is counted, the row keeps what it had before that chunk, other rows are the same bits as in a clean run."""
    memory, given = a_memory(momentum, backend), tokens(momentum)
    y, clean = memory(**given)
    y_found, found = memory(**spoilt(given, value))
    assert found.refused.tolist() == [0, 1, 0] and clean.refused.tolist() == [0, 0, 0]
    for other in (0, 2):
        same(row((y_found, found), other), row((y, clean), other))
    assert y_found.isfinite().all()
    assert all(t.isfinite().all() for t in (*found.weights, *found.start, *(found.momentum or ())))
    assert found.position.tolist() == [L] * B


def test_the_row_goes_on_learning_from_where_it_stood():
    """The state after a refused chunk is the state before it, and the next chunk is learnt as usual."""
    memory, given = a_memory(), tokens()
    _, found = memory(**spoilt(given, torch.inf))
    _, before = memory(**{n: x[:, :, :C] for n, x in given.items()})
    _, after = memory(**{n: x[:, :, 2 * C :] for n, x in given.items()}, state=before)
    close([w[1] for w in found.weights], [w[1] for w in after.weights])
    assert (found.weights[0][1] - before.weights[0][1]).abs().max() > 1e-3


def test_a_refused_update_spoils_no_gradient():
    """Other rows' inputs and the shared initial weights get finite outer gradients: one bad row ruins no step."""
    memory, given = a_memory(), tokens(grad=True)
    y, state = memory(**spoilt(given, torch.inf))
    leaves = [given["q"], given["k"], *memory.parameters()]
    for slope in gradients((y, state.weights), leaves):
        assert slope[[0, 2] if slope.shape[0] == B else ...].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [0.9, 0.5, 0.2])
def test_least_squares_forgets_as_fast_as_it_is_told(alpha, dtype):
    """Where next to nothing is left of a chunk's start the chunk form cuts it, and stays the recursion's."""
    fast, slow = (
        AssociativeMemory(Matrix(D, D, heads=H), L2(), LeastSquares(), 64, backend=b).to(dtype) for b in BACKENDS
    )
    given = {n: x.to(dtype) for n, x in tokens().items()} | {"alpha": torch.full((B, H, L), alpha, dtype=dtype)}
    for n in "qkv":
        given[n] = given[n].clone()
        given[n][..., :] = torch.eye(D, dtype=dtype)[torch.arange(L) % D]  # every direction comes back
    (y, found), (expected, state) = (m(**given) for m in (fast, slow))
    assert not found.refused.any() and not state.refused.any()
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    close(y, expected, tolerance)
    close(found.weights, state.weights, tolerance)


@pytest.mark.parametrize("key", [torch.nan, torch.inf])
def test_least_squares_refuses_a_row_and_spoils_no_other(key):
    """A factorisation that fails is that row's alone."""
    memory = AssociativeMemory(Matrix(D, D, heads=H), L2(), LeastSquares(), C).double()
    given = tokens()
    y, clean = memory(**given)
    given["k"] = given["k"].clone()
    given["k"][1, 0, 10, 2] = key
    y_found, found = memory(**given)
    assert found.refused.tolist() == [0, 1, 0]
    for other in (0, 2):
        same(row((y_found, found), other), row((y, clean), other))
    assert all(t.isfinite().all() for t in (*found.weights, *found.carried))


def test_an_overflow_is_refused_too():
    """A learning rate so large that float32 overflows changes nothing; it is no error of the caller's alone."""
    memory = AssociativeMemory(Matrix(D, D, heads=H), L2(), GradientDescent(), C)
    given = {n: x.float() for n, x in tokens().items()}
    given["eta"] = torch.full_like(given["eta"], 3e38)
    _, state = memory(**given)
    assert state.refused.tolist() == [3] * B and not state.weights[0].any()


Q = torch.zeros(1, 1, 5, D)
GATE = torch.zeros(1, 1, 5)
CASES = {
    "read": (lambda: AssociativeMemory(Matrix(D, D), L2(), read="both"), ["read='both'", "'token'", "'chunk'"]),
    "chunk": (lambda: AssociativeMemory(Matrix(D, D), L2(), chunk_size=0), ["chunk_size=0"]),
    "backend": (lambda: AssociativeMemory(Matrix(D, D), L2(), backend="fast"), ["backend='fast'", "'reference'"]),
    "rule": (lambda: AssociativeMemory(Matrix(D, D), L2(), RetainSeen()), ["RetainSeen", "GradientDescent()"]),
    "heads": (lambda: AssociativeMemory(Matrix(D, D, heads=2), L2()).init_state(1, 3), ["heads=(3,)", "(2,)"]),
    "momentum without theta": (
        lambda: AssociativeMemory(Matrix(D, D), L2(), GradientDescent(momentum=True))(Q, Q, Q, GATE),
        ["without theta", "momentum=True"],
    ),
    "theta without momentum": (
        lambda: AssociativeMemory(Matrix(D, D), L2())(Q, Q, Q, GATE, theta=GATE),
        ["with theta", "momentum=True"],
    ),
    "dimensions": (
        lambda: AssociativeMemory(Matrix(D, D), L2())(Q[0], Q[0], Q[0], GATE),
        ["k (1, 5, 4)", "[B, H, L, d]"],
    ),
    "width of k": (lambda: AssociativeMemory(Matrix(3, D), L2())(Q, Q, Q, GATE), ["k is 4 wide", "Matrix takes 3"]),
    "width of v": (lambda: AssociativeMemory(Matrix(D, 3), L2())(Q, Q, Q, GATE), ["v is 4 wide", "Matrix takes 3"]),
    "negative rate beside one that is no number": (
        lambda: AssociativeMemory(Matrix(D, D), L2())(Q, Q, Q, torch.tensor([torch.nan, 1, 1, 1, -1]).expand_as(GATE)),
        ["eta", "at least 0"],
    ),
    "negative rate": (
        lambda: AssociativeMemory(Matrix(D, D), L2())(Q, Q, Q, GATE - 0.5),
        ["eta is -0.5", "at least 0"],
    ),
    "rule that writes no tokens": (
        lambda: AssociativeMemory(Matrix(D, D), L2(), RetainSeen()),
        ["RetainSeen", "writes no tokens"],
    ),
    "rule of inputs, network without": (
        lambda: AssociativeMemory(nn.Linear(D, D), L2(), DeltaGradientDescent()),
        ["input of each weight", "Linear", "GradientDescent"],
    ),
    "linear rule, deep network": (
        lambda: AssociativeMemory(MLP(D, 6), L2(), LeastSquares()),
        ["LeastSquares", "network=MLP", "Matrix"],
    ),
    "rule and objective": (
        lambda: AssociativeMemory(Matrix(D, D), DotProduct(), DeltaRule()),
        ["DeltaRule", "objective=DotProduct", "L2()"],
    ),
    "erasure of what is no weight": (
        lambda: AssociativeMemory(MLP(D, 6), L2(), DeltaGradientDescent(), retention=KL()),
        ["erases", "KL", "GradientDescent()"],
    ),
    "channels of a deep network": (
        lambda: AssociativeMemory(MLP(D, 6), L2())(Q, Q, Q, GATE, Q),
        ["alpha of each channel", "MLP", "[B, H, L]"],
    ),
    "rates of channels": (
        lambda: AssociativeMemory(Matrix(D, D), L2())(Q, Q, Q, Q),
        ["eta of each channel", "DeltaRule()", "[B, H, L]"],
    ),
    "steps of channels": (
        lambda: AssociativeMemory(Matrix(D, D), L2(), DeltaRule(exact=True))(Q, Q, Q, Q),
        ["exact=True", "one number a token"],
    ),
    "no chunk form": (
        lambda: AssociativeMemory(Matrix(D, D), L2(), DeltaRule(momentum=True), backend="chunk"),
        ["no chunk form", "momentum=False"],
    ),
    "queries fewer than keys": (
        lambda: AssociativeMemory(Matrix(D, D), L2())(Q[:, :, :3], Q, Q, GATE),
        ["q (1, 1, 3, 4)", "k (1, 1, 5, 4)"],
    ),
    "length of alpha": (
        lambda: AssociativeMemory(Matrix(D, D), L2())(Q, Q, Q, GATE, GATE[..., :2]),
        ["alpha (1, 1, 2)", "one B, H and L"],
    ),
    "heads of k": (
        lambda: AssociativeMemory(Matrix(D, D, heads=2), L2())(Q, Q.expand(1, 3, 5, D), Q, GATE),
        ["k (1, 3, 5, 4)", "one B, H and L"],
    ),
    "heads of q": (
        lambda: AssociativeMemory(Matrix(D, D, heads=2), L2())(Q.expand(1, 3, 5, D), Q, Q, GATE),
        ["q (1, 3, 5, 4)", "one B, H and L"],
    ),
    "a state of others": (
        lambda: AssociativeMemory(Matrix(D, D), L2())(Q, Q, Q, GATE, state=a_memory().init_state(2)),
        ["a state of [B, H] = (2, 2)", "k (1, 1, 5, 4)"],
    ),
    "no tokens": (
        lambda: AssociativeMemory(Matrix(D, D), L2())(Q[:, :, :0], Q[:, :, :0], Q[:, :, :0], GATE[..., :0]),
        ["L >= 1"],
    ),
    "a number for a rate": (
        lambda: AssociativeMemory(Matrix(D, D), L2())(Q, Q, Q, 0.1),
        ["eta must be a tensor", "float"],
    ),
    "whole keys": (
        lambda: AssociativeMemory(Matrix(D, D), L2())(Q, Q.long(), Q, GATE),
        ["k must be a tensor of floats", "int64"],
    ),
    "no chunk size": (lambda: AssociativeMemory(Matrix(D, D), L2(), chunk_size=()), ["chunk_size=()"]),
    "half a token": (lambda: AssociativeMemory(Matrix(D, D), L2(), chunk_size=2.5), ["chunk_size=2.5"]),
    "the class of a rule": (lambda: AssociativeMemory(Matrix(D, D), L2(), GradientDescent), ["GradientDescent()"]),
    "the class of a retention": (
        lambda: AssociativeMemory(Matrix(D, D), L2(), retention=KL),
        ["retention=", "ToZero()"],
    ),
    "no network": (lambda: AssociativeMemory("matrix", L2()), ["network='matrix'", "Matrix(64, 64)"]),
    "no target": (lambda: AssociativeMemory(Matrix(D, D), L2(), target="x"), ["target='x'", "Given()"]),
    "half a window": (lambda: Omega(2.5), ["window=2.5", "whole number"]),
    "infinite q": (lambda: Lq(float("inf")), ["q=inf", "finite"]),
    "attention of other widths": (lambda: SoftmaxAttention(3, D)(Q, Q, Q), ["q is 4 wide", "takes 3"]),
    "attention of other lengths": (lambda: SoftmaxAttention(D, D)(Q, Q[:, :, :3], Q[:, :, :3]), ["q (1, 1, 5, 4)"]),
    "attention without width": (lambda: SoftmaxAttention(0, D), ["dim_key=0", "at least 1"]),
    "window": (lambda: Omega(0), ["window=0", "at least 1"]),
    "window of features": (
        lambda: AssociativeMemory(Features(EluPlusOne(), Matrix(D, D)), L2(), Omega(2)),
        ["Omega(window=2", "dim_key"],
    ),
    "omega of an erasing rule": (lambda: Omega(2, DeltaGradientDescent()), ["plain gradients", "GradientDescent()"]),
    "orthogonal of an erasing rule": (lambda: Orthogonal(DeltaGradientDescent()), ["GradientDescent() or Omega()"]),
    "ridge": (lambda: LeastSquares(0.0), ["ridge=0.0", "above 0"]),
    "total": (lambda: KL(-1.0), ["total=-1.0", "above 0"]),
    "q": (lambda: Lq(1.5), ["q=1.5", "at least 2"]),
    "attention has no rate": (
        lambda: SoftmaxAttention(D, D)(Q, Q, Q, GATE),
        ["has no eta", "leave it out"],
    ),
    "length of v": (lambda: AssociativeMemory(Matrix(D, D), L2())(Q, Q, Q[:, :, :4], GATE), ["v (1, 1, 4, 4)"]),
    "length of eta": (lambda: AssociativeMemory(Matrix(D, D), L2())(Q, Q, Q, GATE[..., :4]), ["eta (1, 1, 4)"]),
    "lengths": (
        lambda: AssociativeMemory(Matrix(D, D), L2())(Q, Q, Q, GATE, lengths=torch.tensor([6])),
        ["[6]", "between 0 and 5"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_message_names_what_was_given(case):
    """Every choice or argument that does not fit raises a ValueError that repeats it and says what is allowed."""
    call, words = CASES[case]
    with pytest.raises(ValueError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


def test_a_memory_says_what_it_is():
    """Its description holds all four choices, and which path it runs on."""
    told = repr(a_memory(backend="reference"))
    for word in ("L2()", "DeltaGradientDescent", "Given()", "MLP", "chunk_size=8", "read='token'", "token-loop oracle"):
        assert word in told


def test_low_precision_is_raised():
    """A bfloat16 memory keeps its weights in float32; what it reads under autocast is what it reads without."""
    memory = a_memory().bfloat16()
    given = {n: x.bfloat16() for n, x in tokens().items()}
    y, state = memory(**given)
    assert {w.dtype for w in (*state.weights, *state.start)} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        same(memory(**given), (y, state))


def test_the_state_says_where_it_is():
    """The clock counts real tokens; `start` is what the weights were at the last boundary."""
    memory, given = a_memory(), tokens()
    _, state = memory(**given)
    _, boundary = memory(**{n: x[:, :, : 2 * C] for n, x in given.items()})
    close(state.start, boundary.weights)
    assert state.position.tolist() == [L] * B
    assert not torch.equal(state.weights[0], state.start[0])
