"""The scan with a retention per channel and an erasure of its own directions: its chunk form equals the token loop.

B batch, H heads, L length, dk and dv widths. What is looked for and removed lies along a unit vector, as in RWKV-7.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nestling.ops import ScanState, scan
from nestling.ops.scan.channel import channel_step, meet
from nestling.ops.state import named_tensors, tree_map
from tests.helpers import close, cuts, differ, directions, gradients, grid, randn, relative, uniform

B, H, DK, DV = 2, 2, 4, 3
LENGTHS, CHUNKS = (1, 63, 100, 257), (1, 20, 64)
READS = ("inclusive", "exclusive", None)
ALPHAS, ERASURES = ("channel", "head", None), ("erase", "eps", None)
FORMS = [(a, e) for a in ALPHAS for e in ERASURES if a == "channel" or e == "erase"]  # the others are `chunk.py`'s
BACKENDS = ("reference", "chunk")


def problem(length: int, alpha="channel", erasure="erase", state=True, read="inclusive", grad=False) -> dict:
    """Arguments of a scan."""
    shape = (B, H, length)
    look = directions(*shape, DK)
    remove = uniform(0.0, 1.0, *shape, DK) * look
    retention = {"channel": (*shape, DK), "head": shape}
    return {
        "q": None if read is None else randn(*shape, DK, grad=grad),
        "k": directions(*shape, DK, grad=grad),
        "u": (0.3 * randn(*shape, DV)).requires_grad_(grad),
        "alpha": uniform(0.5, 1.0, *retention[alpha], grad=grad) if alpha else None,
        "eps": uniform(0.0, 0.5, *shape, grad=grad) if erasure == "eps" else None,
        "erase": (look.requires_grad_(grad), remove.requires_grad_(grad)) if erasure == "erase" else None,
        "state": ScanState(randn(B, H, DK, DV, grad=grad)) if state else None,
        "read": read,
    }


def tensors(given: dict) -> dict:
    """The arguments that are trees of tensors."""
    return {name: x for name, x in given.items() if name != "read"}


def leaves(given: dict) -> list[torch.Tensor]:
    """Every tensor of the arguments: what a gradient must reach."""
    return list(named_tensors(tensors(given)).values())


def changed(given: dict, function) -> dict:
    """The same arguments with `function` applied to every tensor along L."""
    along = {name: x for name, x in tensors(given).items() if name != "state"}
    return {**given, **tree_map(function, along)}


def agree(given: dict, **options) -> None:
    """The chunk form gives the token loop's outputs, final state and gradients."""
    expected = scan(**given, backend="reference")
    found = scan(**given, backend="chunk", **options)
    close(found, expected)
    close(gradients(found, leaves(given)), gradients(expected, leaves(given)))


@pytest.mark.parametrize(("form", "state", "read"), grid(FORMS, (True, False), READS))
def test_equals_the_token_loop(form, state, read):
    """At lengths that do and do not divide the chunk, for chunks that are and are not a power of two."""
    for length in LENGTHS:
        given = problem(length, *form, state, read, grad=True)
        for chunk_size in CHUNKS:
            agree(given, chunk_size=chunk_size)


@pytest.mark.parametrize("form", [form for form in FORMS if form[0]])
@pytest.mark.parametrize("places", [(0,), (7,), (4, 5), (3, 9, 19)])
@pytest.mark.parametrize("value", [0.0, 1e-12, 1e-200])
def test_a_closed_gate_costs_no_digit(form, places, value):
    """Some channels, or all, that a token forgets wholly or nearly so: outputs and gradients are the token loop's."""
    given = problem(20, *form, grad=True)
    closed = given["alpha"].detach().clone()
    closed[:, :, list(places)] = value
    closed[0, 0, list(places), ...] = 1.0
    if form[0] == "channel":
        closed[1, ..., 0] = value  # a channel that is never open
    given["alpha"] = closed.requires_grad_()
    agree(given, chunk_size=16)


def test_float32_is_near_float64():
    """Single precision stays within 1e-4 of the double precision token loop, gradients included, over gates of all sizes."""
    given = problem(257)
    given["alpha"] = torch.cat([uniform(0.0, 1.0, B, H, 257, 2), uniform(0.99, 1.0, B, H, 257, 2)], dim=-1)
    given = given | tree_map(lambda x: x.detach().requires_grad_(), tensors(given))
    single = given | tree_map(lambda x: x.detach().float().requires_grad_(), tensors(given))
    expected, found = scan(**given, backend="reference"), scan(**single)
    assert found[0].dtype == found[1].memory.dtype == torch.float32
    pairs = [(found[0], expected[0]), (found[1].memory, expected[1].memory)]
    slopes = zip(gradients(found[0].double(), leaves(single)), gradients(expected[0], leaves(given)), strict=True)
    assert max(relative(a, b) for a, b in [*pairs, *slopes]) < 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("eps", [True, False])
def test_channels_that_share_a_retention_are_the_scalar_scan(backend, read, eps):
    """`alpha` repeated for every channel is `alpha`, and its gradient is the channels' sum."""
    given = problem(100, "head", "eps" if eps else None, read=read, grad=True)
    repeated = given | {"alpha": given["alpha"][..., None].expand(B, H, 100, DK)}
    expected, found = scan(**given), scan(**repeated, backend=backend)
    close(found, expected)
    close(gradients(found, leaves(given)), gradients(expected, leaves(given)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_erasure_along_the_key_is_eps(backend, alpha):
    """`erase = (k, eps k)` is `eps`, gradients included."""
    given = problem(100, alpha, "eps", grad=True)
    k, eps = given["k"], given["eps"]
    expected = scan(**given)
    found = scan(**{**given, "eps": None, "erase": (k, eps[..., None] * k)}, backend=backend)
    close(found, expected)
    close(gradients(found, leaves(given)), gradients(expected, leaves(given)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
@given(seed=st.integers(0, 99), kept=st.lists(st.booleans(), min_size=21, max_size=21))
def test_a_masked_token_might_as_well_not_be_there(backend, form, seed, kept):
    """The result is that of the sequence without the masked tokens, whatever stands there: NaN, here."""
    torch.manual_seed(seed)
    kept = torch.tensor(kept)
    kept[seed % 21] = True
    given = problem(21, *form)
    spoilt = changed(given, lambda x: x.index_fill(2, (~kept).nonzero()[:, 0], torch.nan))
    y, state = scan(**spoilt, mask=kept.expand(B, 21), backend=backend, chunk_size=8)
    expected, last = scan(**changed(given, lambda x: x[:, :, kept]), backend="reference")
    close((y[:, :, kept], state), (expected, last))
    assert y.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_are_masked_each_for_itself(backend):
    """A row whose tokens are all real is what it is without a mask."""
    given = problem(21)
    mask = torch.stack([torch.arange(21) < 9, torch.ones(21, dtype=torch.bool)])
    found, expected = scan(**given, mask=mask, backend=backend, chunk_size=8), scan(**given, backend="reference")
    close(tree_map(lambda x: x[1:], found), tree_map(lambda x: x[1:], expected))
    differ(tree_map(lambda x: x[:1], found), tree_map(lambda x: x[:1], expected))


@pytest.mark.parametrize("backend", BACKENDS)
@given(sizes=cuts(40), read=st.sampled_from(READS[:2]), form=st.sampled_from(FORMS))
def test_a_scan_may_be_split_anywhere(backend, sizes, read, form):
    """Any number of calls, each starting from the last one's state, is one call."""
    given = problem(40, *form, read=read)
    expected = scan(**given, backend=backend, chunk_size=16)
    outputs, start = [], given.pop("state")
    for i, size in enumerate(sizes):
        part = changed(given | {"state": None}, lambda x, i=i, size=size: x.narrow(2, sum(sizes[:i]), size))
        piece, start = scan(**{**part, "state": start}, backend=backend, chunk_size=16)
        outputs.append(piece)
    close((torch.cat(outputs, dim=2), start), expected)


def named(given: dict) -> dict:
    """The arguments with look and remove by name."""
    look, remove = given["erase"]
    return {**{name: x for name, x in given.items() if name != "erase"}, "look": look, "remove": remove}


def scan_named(look, remove, **given):
    return scan(**given, erase=(look, remove), chunk_size=8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shared", ["q", "k", "u", "alpha", "look", "remove"])
def test_what_heads_share_is_broadcast(backend, shared):
    """One head's tensor given to all heads is that tensor repeated, and its gradient is the heads' sum."""
    given = named(problem(20, grad=True))
    given[shared] = given[shared].detach()[:, :1].requires_grad_()
    repeated = {**given, shared: given[shared].repeat_interleave(H, dim=1)}
    found, expected = scan_named(**given, backend=backend), scan_named(**repeated, backend="reference")
    close(found, expected)
    close(gradients(found, leaves(given)), gradients(expected, leaves(given)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("several", ["k", "u", "alpha", "look", "remove"])
def test_the_memories_are_as_many_as_any_argument_asks_for(backend, several):
    """One argument of two heads, and all others of one, are two memories, also where no state is given."""
    given = named(problem(20, state=False))
    single = {name: x[:, :1] if isinstance(x, torch.Tensor) and name != several else x for name, x in given.items()}
    repeated = changed(single, lambda x: x.expand(B, H, 20, -1))
    close(scan_named(**single, backend=backend), scan_named(**repeated, backend="reference"))


@pytest.mark.parametrize("form", FORMS)
def test_momentum_is_the_token_loops(form):
    """Momentum with a retention per channel or an erasure is the recurrence, by the token loop, and `chunk` says no."""
    given = problem(20, *form)
    theta = uniform(0.0, 0.9, B, H, 20)
    start = given["state"].memory, randn(B, H, DK, DV)
    given |= {"state": ScanState(*start), "theta": theta}
    found = scan(**given)
    memory, momentum = start
    for t in range(20):
        one = changed(given, lambda x, t=t: x[:, :, t : t + 1])
        momentum = theta[:, :, t, None, None] * momentum + one["k"].mT @ one["u"]
        still = {**one, "theta": None, "u": 0 * one["u"], "state": ScanState(memory)}
        memory = scan(**still, backend="reference")[1].memory + momentum
    close(found[1], ScanState(memory, momentum))
    with pytest.raises(ValueError, match="backend='chunk' has no form for theta"):
        scan(**given, backend="chunk")


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("form", [("channel", "erase"), ("channel", None), (None, "erase"), ("head", "erase")])
def test_one_chunk_by_hand(form, read):
    """`channel_step`, chunk after chunk, is the scan."""
    given = problem(37, *form, read=read)
    expected = scan(**given, backend="reference")
    alpha = given["alpha"][..., None] if form[0] == "head" else given["alpha"]
    arguments = given["q"], given["k"], given["u"], alpha, given["erase"]
    outputs, state = [], given["state"]
    for at in (slice(0, 16), slice(16, 17), slice(17, 37)):
        part = tree_map(lambda x, at=at: x[:, :, at], arguments)
        y, state = channel_step(*part, state, read)
        outputs.append(y)
    close((None if read is None else torch.cat(outputs, dim=2), state), expected)


GATES = st.sampled_from([0.0, 1e-200, 1e-12, 0.5, 0.9, 1.0, 1.5])


@given(values=st.lists(GATES, min_size=16, max_size=16), size=st.sampled_from([1, 2, 4, 8]))
def test_scores_meet_through_the_product_of_the_gates_between(values, size):
    """`meet` against its definition, entry by entry."""
    gate = torch.tensor(values, dtype=torch.float64).view(8, 2)[:size]
    x, y = randn(size, 2), randn(size, 2)
    ((scores,),), (row,), (column,), total = meet((x,), (y,), gate)
    for t in range(size):
        close(row[t], x[t] * gate[:t].prod(0))
        close(column[t], y[t] * gate[t + 1 :].prod(0))
        for s in range(size):
            close(scores[t, s], (x[t] * gate[s + 1 : t].prod(0) * y[s]).sum() * (s < t))
    close(total[0], gate.prod(0))


def test_first_and_second_derivatives():
    """Against finite differences, a gate of zero among them."""
    alpha = uniform(0.5, 1.0, 1, 1, 3, 2)
    alpha[..., 1, 0] = 0.0
    inputs = [randn(1, 1, 3, 2), randn(1, 1, 3, 2), randn(1, 1, 3, 1), alpha, randn(1, 1, 3, 2), randn(1, 1, 3, 2)]
    inputs = [x.requires_grad_() for x in inputs]

    def function(q, k, u, alpha, look, remove):
        y, state = scan(q, k, u, alpha, erase=(look, remove), chunk_size=2)
        return y, state.memory

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("left_out", ["alpha", "erase"])
def test_the_guard_of_these_tests_sees_a_difference(left_out):
    """A scan that left out what is new would be found."""
    given = problem(20)
    differ(scan(**given), scan(**{**given, left_out: None}))
