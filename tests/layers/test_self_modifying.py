"""Self-modifying Titans: the chunk form equals the token loop, and the layer means what Eq. 83-93 say."""

import math

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from nestling.layers import SelfModifyingTitans
from nestling.layers.gates import Gates
from nestling.memory import L2, DeltaGradientDescent, DotProduct, GradientDescent, ToInitial, ToZero, unit
from tests.helpers import close, differ, gradients, randn, randomise, relative

B, L, D, HEADS = 2, 37, 8, 2
OPTIONS = {
    "plain": {},
    "slow projections": {"projection_chunk_size": 16},
    "momentum": {"rule": DeltaGradientDescent(momentum=True)},
    "read at the chunk's start": {"read": "chunk", "projection_chunk_size": 24},
    "plain descent": {"rule": GradientDescent(momentum=True), "objective": DotProduct(), "projection_chunk_size": 16},
    "a query that is a memory": {"query": "memory", "projection_chunk_size": 16},
    "narrow memories": {"hidden": 3, "objective": L2()},
    "detached writes": {"detach_writes": True, "projection_chunk_size": 16},
    "faded to the initial weights": {"retention": ToInitial(), "projection_chunk_size": 16},
    "faded so, detached, plain descent": {"retention": ToInitial(), "rule": GradientDescent(), "detach_writes": True},
}


def make(chunk_size=8, **options):
    return randomise(SelfModifyingTitans(D, HEADS, chunk_size=chunk_size, **options).double())


@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "ragged"])
@pytest.mark.parametrize("name", OPTIONS)
def test_equals_the_token_loop(name, ragged):
    """Outputs, state and the gradients of the input and of every parameter."""
    layer = make(**OPTIONS[name])
    slow = SelfModifyingTitans(D, HEADS, chunk_size=8, backend="reference", **OPTIONS[name]).double()
    slow.load_state_dict(layer.state_dict())
    x, lengths = randn(B, L, D, grad=True), torch.tensor([L, 21]) if ragged else None
    found, expected = layer(x, None, lengths), slow(x, None, lengths)
    close(found, expected)
    inner = gradients(found, [x, *layer.parameters()]), gradients(expected, [x, *slow.parameters()])
    close(*inner)


@pytest.mark.parametrize("chunk_size", [7, 16, 64])
def test_equals_the_token_loop_at_any_chunk_size(chunk_size):
    """In the usual setting, past the second chunk: outputs, state and the gradient of every parameter."""
    layers = [SelfModifyingTitans(D, HEADS, chunk_size=chunk_size, backend=b).double() for b in ("auto", "reference")]
    randomise(layers[0], scale=0.3)
    layers[1].load_state_dict(layers[0].state_dict())
    x = randn(B, 2 * chunk_size + 3, D, grad=True)
    found, expected = (layer(x) for layer in layers)
    close(found, expected)
    close(*(gradients(out, [x, *layer.parameters()]) for out, layer in zip((found, expected), layers, strict=True)))


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_gradients_are_those_of_finite_differences(chunk_size):
    """Of every memory's initial weights, every projection, the gates, the convolution."""
    layer = randomise(SelfModifyingTitans(4, 1, chunk_size=chunk_size).double(), scale=0.5)
    x, names = randn(1, 7, 4), list(dict(layer.named_parameters()))

    def answers(*parameters):
        return functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))[0]

    assert torch.autograd.gradcheck(answers, tuple(p.detach().requires_grad_() for p in layer.parameters()), rtol=1e-5)


def by_hand(layer, x):
    """Eq. 83-88 token by token for chunks of one token, each memory stepped on its own, for a batch of one."""
    y, states = [], layer.init_state(1)
    padded = torch.cat([states.tail, x], dim=1)
    memories = [*zip(*(w[0] for w in states.memories.weights), strict=True)]
    for t in range(x.shape[1]):
        window = padded[0, t : t + 4]
        looks = F.silu((layer.conv.weight * window[:, None]).sum(0)).unflatten(-1, (HEADS, -1))  # [5, H, d]
        read = [unit(looks[i]) for i in range(4)]
        k, v, rate, decay = (answer(memory, x_in) for memory, x_in in zip(memories[:4], read, strict=True))
        k, v = unit(k), unit(v)
        eta, alpha = (g[0, :, 0] for g in layer.gates(unit(rate)[None, :, None], unit(decay)[None, :, None]))
        q = unit((layer.query.weight @ looks[4].flatten()).unflatten(-1, (HEADS, -1)))
        y.append(layer.out(layer.norm(answer(memories[-1], q)).flatten()))
        memories = [written(memory, k, unit(answer(memory, v)), eta, alpha) for memory in memories]
    return torch.stack(y)[None]


def answer(memory, x):
    """`x + silu(x W_up) W_down` per head, `[H, d]`."""
    up, down = memory
    return x + torch.einsum("hf,hfd->hd", F.silu(torch.einsum("hd,hdf->hf", x, up)), down)


def written(memory, k, target, eta, alpha):
    """One step of exact delta gradient descent on Huber's loss of norms, each weight erasing along its own input."""
    leaves = [w.detach().requires_grad_() for w in memory]
    error = torch.linalg.vector_norm(answer(leaves, k) - target.detach(), dim=-1)
    loss = F.huber_loss(error, torch.zeros_like(error), reduction="sum", delta=2.0)
    inputs = k, F.silu(torch.einsum("hd,hdf->hf", k, memory[0]))
    moved = []
    for weight, slope, x in zip(memory, torch.autograd.grad(loss, leaves), inputs, strict=True):
        beta = (eta / (1 + eta * x.square().sum(-1)))[:, None, None]
        erased = x[..., None] * torch.einsum("hi,hio->ho", x, weight)[:, None]
        moved.append(alpha[:, None, None] * weight - beta * erased - beta * slope)
    return tuple(moved)


def test_is_the_recurrence_of_the_paper():
    """Written out by hand, with chunks of one token: static queries, all else from memories that rewrite themselves."""
    layer = make(chunk_size=1)
    x = randn(1, 9, D)
    with torch.no_grad():
        y, _ = layer(x)
    close(y, by_hand(layer, x).detach())


def test_targets_are_constants_inside_and_not_outside():
    """The inner gradient stops at a target; the outer one flows through it, so the value memory is learnt by it."""
    layer, x = make(), randn(B, L, D)
    up = layer.memories.network.up
    (slope,) = gradients(layer(x)[0], [up])
    assert (slope.abs().amax((-1, -2)) > 1e-6).all()  # all five memories, all heads


def test_writes_matter_and_can_be_detached():
    """Detached, the output is the same, and what only writes (the four projections, the gates) is not learnt."""
    layer, x = make(), randn(B, L, D)
    cheap = SelfModifyingTitans(D, HEADS, chunk_size=8, detach_writes=True).double()
    cheap.load_state_dict(layer.state_dict())
    close(cheap(x), layer(x))
    learnt = dict(zip(dict(cheap.named_parameters()), gradients(cheap(x)[0], list(cheap.parameters())), strict=True))
    slopes = learnt["memories.network.up"]
    assert not slopes[:4].any() and not learnt["gates.bias"].any()
    assert slopes[4].any() and learnt["query.weight"].any()


def test_what_was_read_changes_what_is_answered():
    """The memory is one: the answer to the same tokens depends on those before."""
    layer, x = make(), randn(1, 8, D)
    _, state = layer(randn(1, 40, D))
    _, other = layer(randn(1, 40, D))
    differ(layer(x, state)[0], layer(x, other)[0])


def test_a_fresh_layer_is_tame_over_a_long_sequence():
    """Self-reference explodes unless tamed: over 1,024 tokens weights stay bounded, and float32 near float64."""
    layer, x = SelfModifyingTitans(32, 4, chunk_size=64), torch.randn(2, 1024, 32)
    with torch.no_grad():
        y, state = layer(x)
        expected, _ = layer.double()(x.double())
    start = layer.memories.network.up[0, 0].norm()
    assert y.isfinite().all() and not state.memories.refused.any()
    assert max(w.flatten(3).norm(dim=-1).max() for w in state.memories.weights) < 10 * start
    assert relative(y, expected) < 1e-3


@pytest.mark.parametrize("options", [{}, {"rule": DeltaGradientDescent(momentum=True)}, {"query": "memory"}], ids=str)
def test_what_is_computed_again_uses_the_parameters_of_its_call(options, monkeypatch):
    """Long calls keep less for the backward pass; gradients at parameters that were put in for one call stay exact."""
    layer, x, slopes = make(**options), randn(B, L, D), []
    given = {name: p + 0.3 * randn(*p.shape) for name, p in layer.named_parameters()}
    given = {name: p.detach().requires_grad_() for name, p in given.items()}
    for longest in (2048, 8):
        monkeypatch.setattr("nestling.layers.self_modifying.RECOMPUTED", longest)
        slopes.append(gradients(functional_call(layer, given, (x,))[0], list(given.values())))
    close(*slopes)


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_padding_is_never_seen(chunk_size):
    """Not even a NaN there: outputs, state and gradients are those of any other padding."""
    layer, x, lengths = make(chunk_size), randn(B, L, D), torch.tensor([L, 21])
    spoilt = x.clone()
    spoilt[1, 21:] = torch.nan
    found, expected = (layer(y, None, lengths) for y in (spoilt, x))
    close((found[0][0], found[0][1, :21], found[1]), (expected[0][0], expected[0][1, :21], expected[1]))
    parameters = list(layer.parameters())
    close(*(gradients((y[0][0], y[0][1, :21]), parameters) for y in (found, expected)))


def test_a_bfloat16_layer_keeps_its_memories_in_float32():
    """Whatever its memories fade to."""
    for retention in (ToZero(), ToInitial()):
        layer = SelfModifyingTitans(8, 2, chunk_size=4, retention=retention).bfloat16()
        y, state = layer(torch.randn(1, 9, 8, dtype=torch.bfloat16))
        assert y.dtype == torch.bfloat16 and state.memories.weights[0].dtype == torch.float32


def test_something_always_fades():
    """However a wide head's direction is, alpha stays below 1 in float32."""
    gates = Gates(1, 256)
    aligned = -unit(gates.direction[1])[None, :, None]
    assert gates(aligned, 100 * aligned)[1].max() < 1


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_gates_start_with_horizons_spread_over_the_heads(heads):
    """A rate of 0.2; horizons strictly between 16 and 1024 tokens at equal ratios: no head forgets within a chunk."""
    nothing = torch.zeros(1, heads, 1, 8)
    eta, alpha = Gates(heads, 8)(nothing, nothing)
    torch.testing.assert_close(eta, torch.full_like(eta, 0.2))
    horizon = 1 / (1 - alpha[0, :, 0])
    assert (horizon > 16).all() and (horizon < 1024).all()
    steps = torch.cat([torch.tensor([16.0]), horizon, torch.tensor([1024.0])]).log().diff()
    torch.testing.assert_close(steps, torch.full((heads + 1,), math.log(1024 / 16) / (heads + 1)), rtol=1e-2, atol=0)


def test_gates_stay_in_their_ranges():
    """eta >= 0 and alpha in [1/2, 1] whatever the memories say, and both go to the ends."""
    eta, alpha = Gates(2, 4).double()(50 * randn(3, 2, 5, 4), 50 * randn(3, 2, 5, 4))
    assert (eta >= 0).all() and (alpha >= 0.5).all() and (alpha <= 1).all() and alpha.min() < 0.6 and eta.max() > 10


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: SelfModifyingTitans(10, 4), ["dim=10", "heads=4"]),
        (lambda: SelfModifyingTitans(8, 2, chunk_size=8, projection_chunk_size=12), ["=12", "chunk_size=8"]),
        (lambda: SelfModifyingTitans(8, 2, hidden=0), ["hidden=0", "head width, 4"]),
        (lambda: SelfModifyingTitans(8, 2, chunk_size=0), ["chunk_size=0", "at least 1"]),
        (lambda: SelfModifyingTitans(8, 2, projection_chunk_size=0), ["projection_chunk_size=0", "at least 1"]),
        (lambda: SelfModifyingTitans(8, 2, conv_width=0), ["width=0", "at least 1"]),
        (lambda: SelfModifyingTitans(8, 2, horizons=(16, math.inf)), ["inf", "below 65,536"]),
        (lambda: SelfModifyingTitans(8, 2)(torch.zeros(1, 0, 8)), ["no tokens"]),
        (lambda: SelfModifyingTitans(8, 2)(torch.zeros(1, 5, 7)), ["(1, 5, 7)", "[B, L, 8]"]),
        (lambda: SelfModifyingTitans(8, 2)(torch.zeros(1, 5, 8), None, torch.tensor([6])), ["[6]"]),
        (lambda: SelfModifyingTitans(8, 2, read="never"), ["read='never'"]),
        (lambda: SelfModifyingTitans(8, 2, query="none"), ["query='none'", "'memory'"]),
        (lambda: SelfModifyingTitans(8, 2, horizons=(1.5, 9)), ["horizons=(1.5, 9)", "above 2"]),
    ],
)
def test_the_message_names_what_was_given(call, words):
    """A size or choice that does not fit raises a ValueError that repeats it."""
    with pytest.raises(ValueError) as caught:
        call()
    assert all(word in str(caught.value) for word in words)
