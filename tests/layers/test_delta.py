"""Linear memories: each is its equation token by token, and only a step beyond 1 gives negative eigenvalues."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nestling.layers import Delta, GatedDelta, Hebbian, LinearMemory
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
    alpha, _, beta = (s if s is None else s[0].mT[..., None, None] for s in layer.gates(x))
    memory, outputs = torch.zeros(HEADS, D // HEADS, D // HEADS, dtype=x.dtype), []
    for t in range(L):
        step, keep = 1.0 if beta is None else beta[t], 1.0 if alpha is None else alpha[t]
        memory = transition(memory, k[t], step, keep) + step * k[t].mT @ v[t]
        outputs.append(layer.norm((q[t] @ memory)[:, 0]).flatten())
    return layer.out(torch.stack(outputs))[None]


EQUATIONS = {
    "linear_attention": lambda m, k, beta, alpha: m,
    "deltanet": lambda m, k, beta, alpha: m - beta * k.mT @ (k @ m),
    "gated_deltanet": lambda m, k, beta, alpha: alpha * (m - beta * k.mT @ (k @ m)),
}
STEPPED = ("deltanet", "gated_deltanet")


def mixer(name, **options):
    """The mixer of a configuration, in float64 and with weights that matter."""
    config = HopeConfig(mixer=name, hidden_size=D, num_attention_heads=HEADS, **options)
    return randomise(make_mixer(config).double())


@pytest.mark.parametrize(
    ("name", "options"),
    [("linear_attention", {}), *((name, {"step_range": reach}) for name in STEPPED for reach in (None, 2.0))],
)
def test_each_is_its_equation(name, options):
    """The Hebbian rule, the delta rule, and the delta rule on a memory that fades: outputs and all gradients."""
    layer, x = mixer(name, **options), randn(1, L, D)
    y, expected = layer(x)[0], token_loop(layer, x, EQUATIONS[name])
    close(y, expected)
    parameters = list(layer.parameters())
    close(gradients(y, parameters), gradients(expected, parameters))


@pytest.mark.parametrize("gates", [Delta, GatedDelta])
def test_only_a_range_of_two_turns_a_sign(gates):
    """The transition's eigenvalue along the key is `alpha - eps`: within (0, 1) in general, within (-1, 1) with a range of 2."""
    x = 3 * randn(1, 500, D)
    for reach, turned in ((1.0, False), (2.0, True)):
        layer = gates(D, HEADS, reach).double()
        nn.init.normal_(layer.step.weight)
        alpha, eps, _ = layer(x)
        eigenvalue = (1.0 if alpha is None else alpha) - eps
        assert (eigenvalue.min() < -0.5) == turned and eigenvalue.abs().max() < 1
        assert turned or eigenvalue.min() > 0


def test_without_fading_gated_deltanet_is_deltanet():
    """A horizon without end leaves the delta rule."""
    gated = LinearMemory(D, HEADS, GatedDelta(D, HEADS)).double()
    plain = LinearMemory(D, HEADS, Delta(D, HEADS)).double()
    plain.load_state_dict(gated.state_dict(), strict=False)
    x = randn(2, L, D)
    differ(gated(x)[0], plain(x)[0], 1e-4)
    nn.init.constant_(gated.gates.horizon, -100.0)
    nn.init.zeros_(gated.gates.fade.weight)
    close(gated(x)[0], plain(x)[0])


def test_a_fresh_memory_forgets_within_its_horizons():
    """Before training heads fade by between 1/16 and 1/1024 a token, slower from head to head."""
    alpha, _, _ = GatedDelta(D, 6)(torch.zeros(1, 1, D))
    fading = 1 - alpha[0, :, 0]
    assert (fading.diff() < 0).all() and fading[0] < 1 / 16 and fading[-1] > 1 / 1100


def test_what_cannot_be_is_told():
    """Heads that do not divide the width, a step beyond 2, an input of another width."""
    with pytest.raises(ValueError, match=r"dim=8.*heads=3"):
        LinearMemory(8, 3, Hebbian())
    with pytest.raises(ValueError, match=r"reach=2.5.*\(0, 2\]"):
        Delta(8, 2, 2.5)
    with pytest.raises(ValueError, match=r"\(1, 5, 7\)"):
        LinearMemory(8, 2, Hebbian())(torch.zeros(1, 5, 7))
    with pytest.raises(ValueError, match=r"step_range=2.0.*'attention'.*leave it out"):
        HopeConfig(mixer="attention", step_range=2.0)
