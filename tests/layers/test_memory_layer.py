"""Memories of the zoo as layers: each is its paper's equation token by token, driven by what a token says."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nestling.layers import MemoryLayer
from nestling.memory.zoo import ZOO
from nestling.models import HopeConfig
from nestling.models.hope import make_mixer
from tests.helpers import close, differ, gradients, randn, randomise

D, HEADS, L = 8, 2, 13


def token_loop(layer, x, transition):
    """The layer token by token: `M <- transition(M, k, beta, alpha) + beta k^T v`, then a read."""
    mixed = F.silu(layer.conv(x, layer.conv.init_tail(1))[0])
    projections = (layer.query, layer.key, layer.value)
    q, k, v = (p(m)[0].view(L, HEADS, 1, -1) for p, m in zip(projections, mixed.unbind(1), strict=True))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    beta, alpha, _ = (s if s is None else columns(s[0]) for s in layer.drive(x))
    memory, outputs = torch.zeros(HEADS, D // HEADS, D // HEADS, dtype=x.dtype), []
    for t in range(L):
        keep = 1.0 if alpha is None else alpha[t]
        query, key, value, step = q[t], k[t], v[t], beta[t]
        if layer.loop is not None:  # Comba: b of the step erases, d of the key is taken off the query
            b = torch.sigmoid(layer.loop.feedback)[:, None, None]
            query = query - layer.loop.correction[:, None, None] * key
            memory = keep * memory - b * step * key.mT @ (key @ memory) + step * key.mT @ value
        else:
            memory = transition(memory, key, step, keep) + step * key.mT @ value
        outputs.append(layer.norm((query @ memory)[:, 0]).flatten())
    return layer.out(torch.stack(outputs))[None]


def columns(gate):
    """`[H, L]` or `[H, L, d]` as one number, or one of each row of the memory, a token: `[L, H, 1 or d, 1]`."""
    return (gate[..., None] if gate.dim() == 2 else gate).transpose(0, 1)[..., None]


EQUATIONS = {
    "linear_attention": lambda m, k, beta, alpha: m,
    "retnet": lambda m, k, beta, alpha: alpha * m,
    "gated_linear_attention": lambda m, k, beta, alpha: alpha * m,
    "deltanet": lambda m, k, beta, alpha: m - beta * k.mT @ (k @ m),
    "gated_deltanet": lambda m, k, beta, alpha: alpha * (m - beta * k.mT @ (k @ m)),
    "rwkv7": lambda m, k, beta, alpha: alpha * m - (beta * k.mT) @ (k @ m),
    "comba": None,
}
STEPPED = ("deltanet", "gated_deltanet")


def mixer(name, **options):
    """The mixer of a configuration, in float64 and with weights that matter."""
    config = HopeConfig(mixer=name, hidden_size=D, num_attention_heads=HEADS, **options)
    return randomise(make_mixer(config).double())


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in EQUATIONS), *((name, {"step_range": 2.0}) for name in STEPPED)]
)
def test_each_is_its_equation(name, options):
    """Outputs and all gradients of what the papers print."""
    layer, x = mixer(name, **options), randn(1, L, D)
    y, expected = layer(x)[0], token_loop(layer, x, EQUATIONS[name])
    close(y, expected)
    parameters = list(layer.parameters())
    close(gradients(y, parameters), gradients(expected, parameters))


@pytest.mark.parametrize("name", STEPPED)
def test_only_a_range_of_two_turns_a_sign(name):
    """The transition's eigenvalue along the key, `alpha (1 - eta)`: within (0, 1) in general, within (-1, 1) with a range of 2."""
    x = 3 * randn(1, 500, D)
    for reach, turned in ((1.0, False), (2.0, True)):
        layer = MemoryLayer(D, HEADS, ZOO[name], reach=reach).double()
        nn.init.normal_(layer.drive.step.weight)
        eta, alpha, _ = layer.drive(x)
        eigenvalue = (1.0 if alpha is None else alpha) * (1 - eta)
        assert (eigenvalue.min() < -0.5) == turned and eigenvalue.abs().max() < 1
        assert turned or eigenvalue.min() > 0


def test_without_fading_gated_deltanet_is_deltanet():
    """A horizon without end leaves the delta rule."""
    gated, plain = (MemoryLayer(D, HEADS, ZOO[name]).double() for name in ("gated_deltanet", "deltanet"))
    plain.load_state_dict(gated.state_dict(), strict=False)
    x = randn(2, L, D)
    differ(gated(x)[0], plain(x)[0], 1e-4)
    nn.init.constant_(gated.drive.horizon, -100.0)
    nn.init.zeros_(gated.drive.fade.weight)
    close(gated(x)[0], plain(x)[0])


@pytest.mark.parametrize("name", ["gated_deltanet", "gated_linear_attention"])
def test_a_fresh_memory_forgets_within_its_horizons(name):
    """Before training heads, or channels, fade by between 1/16 and 1/1024 a token, each slower than the one before."""
    layer = MemoryLayer(12, 6, ZOO[name])
    fading = 1 - layer.drive(torch.zeros(1, 1, 12)).alpha.flatten()
    assert len(fading) == (6 if name == "gated_deltanet" else 12)
    assert (fading.diff() < 0).all() and fading[0] < 1 / 16 and fading[-1] > 1 / 1100


@pytest.mark.parametrize("name", ["retnet", "gated_deltanet", "gated_linear_attention"])
def test_half_precision_forgets_as_slowly(name):
    """A model in bfloat16, which has no number between 0.996 and 1, fades within the same horizons."""
    layer, x = MemoryLayer(32, 8, ZOO[name]), 0.1 * torch.randn(1, 20, 32)
    horizon = [1 / (1 - m.drive(y).alpha.double()) for m, y in ((layer, x), (layer.bfloat16(), x.bfloat16()))]
    assert (horizon[1] / horizon[0] - 1).abs().max() < 0.1


def test_the_steps_of_a_chunk_do_not_overshoot():
    """Where a chunk's gradients are taken at its start, its largest rates add up to one."""
    for name in ("ttt_linear", "titans", "memora"):
        layer = MemoryLayer(D, HEADS, ZOO[name], chunk_size=8).double()
        eta = layer.drive(1e3 * randn(1, 200, D)).eta
        assert 0.9 < 8 * eta.max() <= 1


def test_what_cannot_be_is_told():
    """Heads that do not divide the width, a step beyond 2, an input of another width."""
    with pytest.raises(ValueError, match=r"dim=8.*heads=3"):
        MemoryLayer(8, 3, ZOO["retnet"])
    with pytest.raises(ValueError, match=r"reach=2.5.*\(0, 2\]"):
        MemoryLayer(8, 2, ZOO["deltanet"], reach=2.5)
    with pytest.raises(ValueError, match=r"reach=2.0 must be in \(0, 1\] for Comba"):
        MemoryLayer(8, 2, ZOO["comba"], reach=2.0)
    with pytest.raises(ValueError, match="window=3 means nothing to DeltaNet"):
        MemoryLayer(8, 2, ZOO["deltanet"], window=3)
    with pytest.raises(ValueError, match="memory_momentum=True means nothing to mixer='dla'"):
        HopeConfig(mixer="dla", memory_momentum=True)
    with pytest.raises(ValueError, match=r"\(1, 5, 7\)"):
        MemoryLayer(8, 2, ZOO["retnet"])(torch.zeros(1, 5, 7))
    with pytest.raises(ValueError, match=r"step_range=2.0.*'attention'.*leave it out"):
        HopeConfig(mixer="attention", step_range=2.0)
