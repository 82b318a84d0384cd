"""Levels: weights that move at a period, from never to every token."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestling import HopeConfig, HopeForCausalLM, Level
from nestling.levels import LevelOptimizer
from nestling.memory import L2, MLP, AssociativeMemory, DotProduct, GradientDescent
from tests.helpers import randn, randomise
from tests.identities.identity import Identity
from tests.identities.writing import matrix_memory

PERIOD, RATE = 4, 0.5
L, D = 11, 4


def hope(*levels: Level) -> HopeForCausalLM:
    """A model of one block, always with the same weights."""
    config = HopeConfig(
        vocab_size=17,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        mixer="attention",
        levels=list(levels),
    )
    torch.manual_seed(0)
    return randomise(HopeForCausalLM(config).double(), 0.3)


@Identity(
    "An MLP block is linear attention whose inner learning rate is 0",
    r"y_{\text{attn}} W_{\text{MLP}}^\top = y_{\text{attn}} M_t, \qquad"
    r" M_t = M_{t-1} + \eta\, k_t^\top v_t,\quad M_0 = W_{\text{MLP}}^\top,\quad \eta = 0",
    "Eq. 69 (Linear Attention++)",
    (
        "`nn.Linear` behind attention",
        "`AssociativeMemory(Matrix, DotProduct(), GradientDescent())` that starts there, `eta=0`",
    ),
)
def test_a_layer_is_a_memory_that_does_not_move():
    """Both are read in the same way; only the level on which the weights move is another."""
    q, k, v = randn(3, L, D)
    y = F.scaled_dot_product_attention(q[None, None], k[None, None], v[None, None], is_causal=True)
    layer = nn.Linear(D, D, bias=False).double()
    memory = matrix_memory(layer.weight.detach().T, DotProduct(), GradientDescent())
    still, moved = (memory(y, k[None, None], v[None, None], y.new_full((1, 1, L), eta))[0] for eta in (0.0, 0.1))
    assert (still - moved).abs().max() > 0.1
    return layer(y), still


@Identity(
    "So is a residual MLP, as a deep memory",
    r"x + \operatorname{silu}(x W_{\text{up}}) W_{\text{down}} = M_t(x), \qquad \eta = 0",
    "section 7.3, Eq. 69 and 89",
    ("two `nn.Linear` with a residual", "`AssociativeMemory(MLP, L2(), GradientDescent())`, `eta=0`"),
)
def test_an_mlp_is_a_deep_memory_that_does_not_move():
    """At frequency 0 a memory is a network."""
    q, k, v = randn(3, 1, 1, L, D)
    memory = AssociativeMemory(MLP(D, 6), L2(), GradientDescent(), chunk_size=4).double()
    up, down = nn.Linear(D, 6, bias=False).double(), nn.Linear(6, D, bias=False).double()
    for layer, weight in zip((up, down), memory.network.parameters(), strict=True):
        layer.weight.data = weight.detach().T.clone()
    return q + down(F.silu(up(q))), memory(q, k, v, torch.zeros(1, 1, L, dtype=torch.float64))[0]


@Identity(
    "A Transformer block is a continuum memory of frequency 0",
    r"y_t = \mathrm{MLP}^{(f_1)}(x_t), \qquad f_1 = 0",
    "section 7.1, Eq. 70 with $k = 1$; section 7.3",
    (
        "a model with `HopeConfig(levels=[])`",
        "the same weights with `levels=[Level(period=4, lr=0.0)]`, while it reads",
    ),
)
def test_a_transformer_is_a_continuum_of_frequency_0():
    """What converting a pretrained model rests on: at rate 0 it says what it said."""
    ids = torch.randint(17, (2, 13))
    assert (hope(Level(PERIOD, lr=RATE))(ids).logits - hope()(ids).logits).abs().max() > 1e-3
    return hope()(ids).logits, hope(Level(PERIOD))(ids).logits


@Identity(
    "Reading with a level is online training on the text, a batch a period",
    r"\theta \leftarrow \theta - \eta\, \frac1C \sum_{t \in \text{chunk}} \nabla_\theta L(\theta; x_t)"
    r" \qquad \text{where } t \equiv 0 \pmod C",
    "Eq. 71",
    (
        "a model with `levels=[Level(period=4, lr=0.5)]` reads a text: logits of every token",
        "the plain model: after every four tokens a step of `torch.optim.SGD` on its MLP, from their next-token loss",
    ),
)
def test_reading_is_online_training():
    """A prediction is made with the weights that did not see its answer. (The paper has a sum; the library's mean is another rate.)"""
    ids, plain = torch.randint(17, (1, 3 * PERIOD + 1)), hope()
    weights = [p for name, p in plain.named_parameters() if ".chain." in name and p.dim() == 2]
    optimizer, logits = torch.optim.SGD(weights, lr=RATE), []
    for start, end in ((0, PERIOD), (PERIOD, 2 * PERIOD), (2 * PERIOD, 3 * PERIOD)):
        optimizer.zero_grad()
        said = plain(ids[:, :end]).logits[0, start:]
        logits.append(said.detach())
        F.cross_entropy(said, ids[0, start + 1 : end + 1]).backward()
        optimizer.step()
    return torch.cat(logits), hope(Level(PERIOD, lr=RATE))(ids).logits[0, :-1]


@Identity(
    "Two levels on one weight are training at two paces",
    r"W = W_0 + D_1 + D_2, \qquad D_\ell \leftarrow D_\ell - \eta_\ell\, \overline{\nabla L}"
    r" \ \text{ where } t \equiv 0 \pmod{C_\ell}",
    "Eq. 71, 74 with a plain sum on a linear map",
    (
        "`nestling.levels.LevelOptimizer` with periods of 1 and 3",
        "two `torch.optim.SGD` on the same weight, one of them on the mean of its last three gradients",
    ),
)
def test_two_levels_are_two_paces():
    """Gradients are taken at the sum."""
    problem = list(zip(randn(9, 1, 4), randn(9, 1, 3), strict=True))
    ours, theirs = (nn.Linear(4, 3, bias=False).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())

    def slope(layer: nn.Linear, x: Tensor, y: Tensor) -> Tensor:
        layer.zero_grad()
        F.mse_loss(layer(x), y).backward()
        assert layer.weight.grad is not None
        return layer.weight.grad.clone()

    levels = LevelOptimizer(ours, [Level(1, lr=0.1), Level(3, lr=0.3)], [["weight"]] * 2)
    fast, slow = (torch.optim.SGD(theirs.parameters(), lr=rate) for rate in (0.1, 0.3))
    gathered = []
    for t, (x, y) in enumerate(problem):
        slope(ours, x, y)
        levels.step(tokens=1)
        gathered.append(slope(theirs, x, y))
        fast.step()
        if t % 3 == 2:
            theirs.weight.grad = torch.stack(gathered[-3:]).mean(0)
            slow.step()
    return ours.weight, theirs.weight
