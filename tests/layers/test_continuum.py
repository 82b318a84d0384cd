"""The continuum memory: which weights a level moves, and what its differences do to the layer."""

import pytest
import torch
from torch.nn import functional as F

from nestling.layers import ContinuumMemory, Linear, SwiGLU
from nestling.levels import Level
from tests.helpers import close, differ, randn, randomise, same

B, L, D = 2, 7, 6
LEVELS = [Level(4, lr=0.1), Level(8, lr=0.1)]
VARIANTS = ("sequential", "nested", "independent", "superposed")
CHAINS = [[f"chain.{i}.{n}.weight" for n in ("gate", "up", "down")] for i in range(2)]


def make(variant, levels=LEVELS, hidden=12):
    return randomise(ContinuumMemory(D, levels, variant, hidden).double())


def moved(layer, scale=0.3):
    """Fast weights with random differences."""
    return tuple(level.map(lambda t: scale * randn(*t.shape) if t.dim() == 3 else t) for level in layer.init_state(B))


@pytest.mark.parametrize("variant", VARIANTS)
def test_zero_differences_are_the_plain_layer(variant):
    """Before anything was learnt the layer with levels is the layer without, to rounding; per row weights and all."""
    layer, x = make(variant), randn(B, L, D)
    close(layer(x, layer.init_state(B)), layer(x), tolerance=1e-14)


def test_superposed_levels_are_one_sum():
    """The layer's weight in row b is `W_0 + sum_l D_l[b]`, and every level moves the same weights."""
    layer, x = make("superposed"), randn(B, L, D)
    state, plain = moved(layer), ContinuumMemory(D, [], hidden=12).double()
    y = layer(x, state)
    for b in range(B):
        weights = {n: w.clone() for n, w in layer.state_dict().items()}
        for level in state:
            for name, difference in level.weights.items():
                weights[name] += difference.value[b]
        plain.load_state_dict(weights)
        close(y[b], plain(x[b : b + 1])[0])
    differ(y, layer(x))
    assert layer.moves()[0] == layer.moves()[1] == [f"chain.0.{n}.weight" for n in ("gate", "up", "down")]


def test_sequential_levels_are_a_chain():
    """One MLP a level, the fastest first (Eq. 73); each level moves its own and no other."""
    layer, x = make("sequential"), randn(B, L, D)
    assert layer.moves() == [[f"chain.{i}.{n}.weight" for n in ("gate", "up", "down")] for i in range(2)]
    close(layer(x), layer.chain[1](layer.chain[0](x)))
    state = moved(layer)
    names = [set(level.weights) for level in state]
    assert names == [set(n) for n in layer.moves()] and not names[0] & names[1]


def test_nested_levels_move_where_the_faster_ones_begin():
    """The chain of the sequential variant (Eq. 72); the slow level moves its own MLP and the start of the fast one's."""
    layer, x = make("nested"), randn(B, L, D)
    assert layer.moves() == [CHAINS[0], CHAINS[0] + CHAINS[1]]
    assert [level.reset for level in layer.levels] == ["slower", None]
    close(layer(x), layer.chain[1](layer.chain[0](x)))
    state = moved(layer)
    for b in range(B):
        chain = make("sequential")
        weights = {n: w.clone() for n, w in layer.state_dict().items()}
        for name in CHAINS[0]:
            weights[name] += state[0].weights[name].value[b]
        for name in CHAINS[0] + CHAINS[1]:
            weights[name] += state[1].weights[name].value[b]
        chain.load_state_dict(weights)
        close(layer(x, state)[b], chain(x[b : b + 1])[0])


def test_independent_levels_stand_side_by_side():
    """One MLP a level; what they add is summed with weights that are learnt (Eq. 74); each level moves its own."""
    layer, x = make("independent"), randn(B, L, D)
    assert layer.moves() == CHAINS
    first, second = (mlp(x) - x for mlp in layer.chain)
    close(layer(x), x + layer.mix[0] * first + layer.mix[1] * second)
    state = moved(layer)
    alone = (state[0], state[1].map(torch.zeros_like))  # what the second MLP adds is then as at rest
    with torch.no_grad():
        rest, layer.mix[0] = layer.mix[1] * second + x, 0.0
    close(layer(x, alone), rest)
    differ(layer(x, state), rest)
    layer(x).sum().backward()
    assert layer.mix.grad.abs().min() > 0
    assert ContinuumMemory(D, LEVELS, "independent", 12).mix.tolist() == [1.0, 1.0]


def test_the_mlp_is_a_gated_one_with_its_residual():
    """`x + down(silu(gate(n)) * up(n))`, `n` the root-mean-square norm of x."""
    mlp, x = randomise(SwiGLU(D, 12).double()), randn(B, L, D)
    n = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * mlp.norm.weight
    gate, up, down = (m.weight.mT for m in (mlp.gate, mlp.up, mlp.down))
    close(mlp(x), x + (F.silu(n @ gate) * (n @ up)) @ down)


def test_the_variants_have_equal_parameters():
    """`hidden` is the width over the whole chain, so that comparisons are fair (norms and the weights of a sum aside)."""
    plain = sum(p.numel() for n, p in ContinuumMemory(D, [], hidden=12).named_parameters() if "norm" not in n)
    for variant in VARIANTS:
        named = make(variant).named_parameters()
        assert plain == sum(p.numel() for n, p in named if "norm" not in n and n != "mix"), variant


def test_a_weight_may_have_a_row_of_its_own():
    """`Linear` with a weight `[B, out, in]` maps each row by its own matrix."""
    linear, x, weight = Linear(D, 4).double(), randn(B, L, D), randn(B, 4, D)
    y = torch.func.functional_call(linear, {"weight": weight}, (x,))
    close(y, torch.stack([F.linear(x[b], weight[b]) for b in range(B)]))


def test_rows_are_strangers():
    """Another row's differences change no bit of this one's output."""
    layer, x = make("superposed"), randn(B, L, D)
    state = moved(layer)
    other = tuple(
        level.where(torch.tensor([True, False]), strange) for level, strange in zip(state, moved(layer), strict=True)
    )
    same(layer(x, other)[:1], layer(x, state)[:1])
    differ(layer(x, other)[1:], layer(x, state)[1:])


def test_no_levels_is_the_plain_mlp():
    """`k = 1`, frequency 0: a Transformer's MLP has nothing to move."""
    layer = ContinuumMemory(D)
    assert layer.moves() == [] and layer.init_state(B) == () and len(layer.chain) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((D, LEVELS, "circular"), ["variant='circular'", "'superposed'"]),
        ((D, [*LEVELS, Level(12)], "nested"), ["periods 8 and 12 do not nest", "multiple"]),
        ((D, [Level(4), Level(4)], "nested"), ["periods 4 and 4 do not nest", "twice at least"]),
        ((D, [Level(4, reset="context"), Level(8)], "nested"), ["reset='context'", "leave it out"]),
        ((D, [Level(4, reset="slower")], "superposed"), ["slowest level", "reset='slower'"]),
        ((D, [Level(4), Level(8, reset="slower"), Level(12)], "superposed"), ["periods 8 and 12 do not nest"]),
        ((D, LEVELS, "sequential", 13), ["hidden=13", "2 MLPs"]),
        ((D, LEVELS[::-1]), ["period 4", "after 8"]),
    ],
)
def test_the_message_names_what_was_given(arguments, words):
    """A choice that does not exist raises a ValueError that repeats it and says what is allowed."""
    with pytest.raises(ValueError) as caught:
        ContinuumMemory(*arguments)
    assert all(word in str(caught.value) for word in words)
