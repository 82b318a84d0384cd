"""The write-read scan: the chunk form equals the token loop, and the recurrence means what MATH says it means.

B batch, H heads, L length, dk and dv widths. Keys have unit norm and gates are those of a stable memory.
"""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nestling.ops import ScanState, scan
from nestling.ops.scan import BACKENDS
from tests.helpers import close, cuts, differ, directions, gradients, grid, pairwise, randn, relative, same, uniform

B, H, DK, DV = 2, 2, 4, 3
LENGTHS, CHUNKS = (1, 2, 63, 64, 65, 257), (1, 16, 64)
READS = ("inclusive", "exclusive", None)
ON_OFF = (True, False)
FAST = [name for name in BACKENDS if name != "reference"]


def problem(length: int, alpha=True, eps=True, theta=True, state=True, read="inclusive", grad=False) -> dict:
    """Arguments of a scan; a gate or a state that is False is not given."""
    shape = (B, H, length)
    start = ScanState(randn(B, H, DK, DV, grad=grad), randn(B, H, DK, DV, grad=grad) if theta else None)
    return {
        "q": None if read is None else randn(*shape, DK, grad=grad),
        "k": directions(*shape, DK, grad=grad),
        "u": (0.3 * randn(*shape, DV)).requires_grad_(grad),
        "alpha": uniform(0.9, 1.0, *shape, grad=grad) if alpha else None,
        "eps": uniform(0.0, 0.9, *shape, grad=grad) if eps else None,
        "theta": uniform(0.0, 0.9, *shape, grad=grad) if theta else None,
        "state": start if state else None,
        "read": read,
    }


def leaves(given: dict) -> list[torch.Tensor]:
    """Every tensor of the arguments: what a gradient must reach."""
    state = given["state"]
    values = [*given.values(), *((state.memory, state.momentum) if state else ())]
    return [x for x in values if isinstance(x, torch.Tensor) and x.is_floating_point()]


def changed(given: dict, function: Callable[[torch.Tensor], torch.Tensor]) -> dict:
    """The same arguments with `function` applied to every tensor along L."""
    return {n: function(x) if isinstance(x, torch.Tensor) else x for n, x in given.items()}


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(("alpha", "eps", "theta", "state", "read"), grid(ON_OFF, ON_OFF, ON_OFF, ON_OFF, READS))
def test_equals_the_token_loop(backend, alpha, eps, theta, state, read):
    """Outputs, final state and every gradient, at lengths that do and do not divide the chunk, for every chunk size."""
    for length in LENGTHS:
        given = problem(length, alpha, eps, theta, state, read, grad=True)
        expected = scan(**given, backend="reference")
        slopes = gradients(expected, leaves(given))
        for chunk_size in CHUNKS:
            found = scan(**given, backend=backend, chunk_size=chunk_size)
            close(found, expected)
            close(gradients(found, leaves(given)), slopes)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("eps", "theta", "read"), pairwise(ON_OFF, ON_OFF, READS))
@given(seed=st.integers(0, 99), kept=st.lists(st.booleans(), min_size=21, max_size=21))
def test_a_masked_token_might_as_well_not_be_there(backend, eps, theta, read, seed, kept):
    """Ragged rows: the result is that of the sequence without the masked tokens, momentum included."""
    torch.manual_seed(seed)
    kept = torch.tensor(kept)
    kept[seed % 21] = True
    given = problem(21, eps=eps, theta=theta, read=read)
    mask = torch.stack([kept, torch.ones(21, dtype=torch.bool)])
    y, state = scan(**given, mask=mask, backend=backend, chunk_size=8)

    def without(x):
        return x[:, :, kept]

    y_kept, expected = scan(**changed(given, without), backend="reference")
    close(state.map(lambda t: t[:1]), expected.map(lambda t: t[:1]))
    if read is not None:
        close(y[:1, :, kept], y_kept[:1])
        assert y.isfinite().all()
    y_whole, whole = scan(**given, backend="reference")
    close(state.map(lambda t: t[1:]), whole.map(lambda t: t[1:]))
    if read is not None:
        close(y[1:], y_whole[1:])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rubbish", [1e6, torch.inf, torch.nan])
def test_what_stands_at_a_masked_token_is_never_seen(backend, rubbish):
    """A masked token changes nothing whatever it holds, values that are not finite included."""
    given = problem(20)
    mask = torch.ones(B, 20, dtype=torch.bool)
    mask[0, 5:9] = False
    expected = scan(**given, mask=mask, backend=backend)[1]
    spoilt = {name: given[name].masked_fill(~mask[:, None, :, None], rubbish) for name in ("k", "u")}
    close(scan(**{**given, **spoilt}, mask=mask, backend=backend, chunk_size=8)[1], expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("theta", ON_OFF)
@given(sizes=cuts(40), read=st.sampled_from(READS[:2]))
def test_a_scan_may_be_split_anywhere(backend, theta, sizes, read):
    """Any number of calls, each starting from the last one's state, is one call."""
    given = problem(40, theta=theta, read=read)
    y, state = scan(**given, backend=backend, chunk_size=16)
    outputs, start = [], given.pop("state")
    for i, size in enumerate(sizes):
        part = changed(given, lambda x, i=i, size=size: x.narrow(2, sum(sizes[:i]), size))
        piece, start = scan(**part, state=start, backend=backend, chunk_size=16)
        outputs.append(piece)
    close(torch.cat(outputs, dim=2), y)
    close(start, state)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shared", ["q", "k", "u", "alpha", "eps", "theta"])
def test_what_heads_share_is_broadcast(backend, shared):
    """One head's tensor given to all heads is that tensor repeated, and its gradient is the heads' sum."""
    given = problem(20, grad=True)
    given[shared] = given[shared].detach()[:, :1].requires_grad_()
    repeated = {**given, shared: given[shared].repeat_interleave(H, dim=1)}
    found, expected = scan(**given, backend=backend, chunk_size=8), scan(**repeated, backend="reference")
    close(found, expected)
    close(gradients(found, leaves(given)), gradients(expected, leaves(given)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("eps", ON_OFF)
def test_alpha_of_zero_forgets(backend, eps):
    """From a token with alpha = 0 (and no erasure there) on, nothing before it matters: as if the scan began there."""
    given = problem(20, eps=eps, theta=False, grad=True)
    at = 11
    alpha = given["alpha"].detach().clone()
    alpha[..., at] = 0.0
    given["alpha"] = alpha
    if eps:
        given["eps"] = given["eps"].detach() * (torch.arange(20) != at)
    y, state = scan(**given, backend=backend, chunk_size=16)
    later = changed(given, lambda x: x[:, :, at:]) | {"state": None}
    fresh = scan(**later, backend="reference")
    close((y[:, :, at:], state), fresh)
    before = [given["state"].memory, given["u"]]
    memory, writes = gradients((y[:, :, at:], state), before)
    assert memory.abs().max() < 1e-100
    assert writes[:, :, :at].abs().max() < 1e-100 < writes[:, :, at:].abs().max()


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("gate", ["alpha", "eps", "theta"])
@pytest.mark.parametrize("places", [(0,), (7,), (4, 5), (3, 9, 15)])
@pytest.mark.parametrize("value", [0.0, 1e-12])
def test_gates_near_and_at_zero_have_the_right_gradient(backend, gate, value, places):
    """Products over a chunk lose no digit at a gate that is closed: outputs and gradients are the token loop's."""
    given = problem(20, grad=True)
    closed = given[gate].detach().clone()
    closed[..., list(places)] = value
    given[gate] = closed.requires_grad_()
    expected = scan(**given, backend="reference")
    found = scan(**given, backend=backend, chunk_size=16)
    close(found, expected)
    close(gradients(found, leaves(given)), gradients(expected, leaves(given)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_reads_differ_by_one_write(backend):
    """The inclusive read of a token is what the exclusive read of the same query finds one token later."""
    given = problem(20, grad=False)
    given["q"] = given["q"][:, :, :1].expand(-1, -1, 20, -1)
    inclusive, _ = scan(**given, backend=backend, chunk_size=8)
    exclusive, _ = scan(**{**given, "read": "exclusive"}, backend=backend, chunk_size=8)
    close(inclusive[:, :, :-1], exclusive[:, :, 1:])
    close(exclusive[:, :, 0], (given["q"][:, :, :1] @ given["state"].memory)[:, :, 0])


@pytest.mark.parametrize(("eps", "theta"), list(product(ON_OFF, ON_OFF)))
def test_float32_is_near_float64(eps, theta):
    """Single precision stays within 1e-4 of the double precision token loop, gradients included."""
    given = problem(257, eps=eps, theta=theta, grad=True)
    expected = scan(**given, backend="reference")
    single = changed(given, lambda x: x.detach().float().requires_grad_())
    single["state"] = given["state"].map(lambda t: t.detach().float().requires_grad_())
    found = scan(**single)
    assert found[0].dtype == found[1].memory.dtype == torch.float32
    pairs = [(found[0], expected[0]), (found[1].memory, expected[1].memory)]
    slopes = zip(gradients(found[0].double(), leaves(single)), gradients(expected[0], leaves(given)), strict=True)
    assert max(relative(a, b) for a, b in [*pairs, *slopes]) < 1e-4


def test_a_long_decay_neither_overflows_nor_vanishes_too_early():
    """alpha = 1/2 over a chunk of 64 has products down to 1e-19; float32 keeps them relative to their own size."""
    given = changed(problem(64, eps=False, theta=False, state=False), torch.Tensor.float)
    given["alpha"] = torch.full((B, H, 64), 0.5)
    start = ScanState(torch.ones(B, H, DK, DV))
    given["u"] = torch.zeros_like(given["u"])
    _, state = scan(**{**given, "state": start})
    torch.testing.assert_close(state.memory, torch.full_like(state.memory, 0.5**64), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_low_precision_is_raised_under_autocast_too(backend):
    """bfloat16 in, a float32 state out, the output in the dtype of `u`; autocast changes no bit."""
    given = changed(problem(20, state=False), torch.Tensor.bfloat16)
    y, state = scan(**given, backend=backend)
    assert (y.dtype, state.memory.dtype, state.momentum.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    same(state, scan(**changed(given, torch.Tensor.float), backend=backend)[1])
    single = changed(given, torch.Tensor.float)
    expected = scan(**single, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        same(scan(**single, backend=backend), expected)


def test_the_guard_of_these_tests_sees_a_difference():
    """A scan that left out the erasure would be found."""
    given = problem(20)
    differ(scan(**given), scan(**{**given, "eps": None}))
