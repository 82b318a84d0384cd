"""The normalised residual of test-time training: a norm of each head's own, learnt outside of the memory."""

import pytest
import torch
from torch.nn import functional as F

from nestling.memory import L2, MLP, AssociativeMemory, DeltaGradientDescent, Lp, Matrix, ResidualNorm
from tests.helpers import close, differ, directions, gradients, randn, randomise, uniform

B, H, D, C, L = 2, 3, 4, 8, 21


def test_it_is_the_residual_and_layer_norm():
    """`x + LayerNorm(f(x))` head by head (TTT, section 2.7); a fresh one has scale 1 and shift 0."""
    network = ResidualNorm(MLP(D, 6, heads=H, residual=False)).double()
    x = randn(H, 7, D)
    inner = network.network.read(x, network.weights())
    close(network.read(x, network.weights()), x + F.layer_norm(inner, (D,), eps=1e-6))
    randomise(network)
    inner = network.network.read(x, network.weights())
    expected = [F.layer_norm(inner[h], (D,), network.scale[h], network.shift[h], 1e-6) for h in range(H)]
    close(network.read(x, network.weights()), x + torch.stack(expected))


@pytest.mark.parametrize("read", ["token", "chunk"])
@pytest.mark.parametrize("residual", [False, True])
def test_each_head_learns_through_its_own_norm(residual, read):
    """The closed form of all heads = the token loop of each head alone: outputs, weights, gradients, those of the norm too."""
    network = randomise(ResidualNorm(MLP(D, 6, heads=H, residual=residual)).double())
    apart = [ResidualNorm(MLP(D, 6, residual=residual)).double() for _ in range(H)]
    for h, one in enumerate(apart):
        one.load_state_dict({name: x[h] for name, x in network.state_dict().items()})
    parts = L2(), DeltaGradientDescent(), C, read
    given = {name: directions(B, H, L, D, grad=True) for name in "qkv"}
    given |= {"eta": uniform(0.05, 0.4, B, H, L, grad=True), "alpha": uniform(0.9, 1.0, B, H, L, grad=True)}
    y, state = AssociativeMemory(network, *parts)(**given)
    runs = []
    for h, one in enumerate(apart):
        memory = AssociativeMemory(one, *parts, backend="reference")
        runs.append(memory(**{name: x[:, h : h + 1] for name, x in given.items()}))
    found = y, state.weights
    weights = zip(*(after.weights for _, after in runs), strict=True)
    expected = torch.cat([part for part, _ in runs], dim=1), tuple(torch.cat(each, dim=1) for each in weights)
    close(found, expected)
    slopes = gradients(expected, [*given.values(), *(p for one in apart for p in one.parameters())])
    inputs, own = slopes[: len(given)], slopes[len(given) :]
    count = len(own) // H
    own = [torch.stack(own[i::count]) for i in range(count)]
    close(gradients(found, [*given.values(), *network.parameters()]), inputs + own)
    assert all(slope.abs().max() > 1e-3 for slope in own)


@pytest.mark.parametrize("read", ["token", "chunk"])
def test_memories_that_are_not_read_keep_their_norms(read):
    """A query of the last memories alone meets their norms, and not those of the first ones."""
    network = randomise(ResidualNorm(MLP(D, 6, heads=(2, H), residual=False)).double())
    memory = AssociativeMemory(network, Lp(1.5), DeltaGradientDescent(), C, read)
    given = {name: directions(B, 1, H, L, D) for name in "kv"}
    given |= {"eta": uniform(0.05, 0.4, B, 1, H, L), "alpha": uniform(0.9, 1.0, B, 1, H, L)}
    q = directions(B, 1, H, L, D)
    both, last = memory(q.expand(-1, 2, -1, -1, -1), **given)[0], memory(q, **given)[0]
    close(last, both[:, 1:])
    differ(both[:, :1], both[:, 1:])


def test_only_the_weights_of_the_network_are_written():
    """Scale and shift are parameters of the model, and no part of the state."""
    network = ResidualNorm(MLP(D, D, heads=H, depth=1, residual=False))
    assert {name for name, _ in network.named_parameters()} == {"scale", "shift", "network.down"}
    state = AssociativeMemory(network, L2()).init_state(B)
    assert [tuple(w.shape) for w in state.weights] == [(B, H, D, D)]


def test_widths_that_do_not_fit_are_named():
    """The input is added to the output."""
    network = ResidualNorm(Matrix(D, 5))
    with pytest.raises(ValueError, match="needs equal widths, got 4 and 5; give it keys as wide as the values"):
        network.read(torch.randn(3, D), network.weights())
