"""Sequence layers: memories that differ in what they minimise at a token, and in where they begin."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestling.layers import Attention
from nestling.layers.attention import rotate
from nestling.memory import (
    KL,
    L2,
    MLP,
    AssociativeMemory,
    DeltaRule,
    DotProduct,
    GradientDescent,
    LeastSquares,
    Matrix,
    Oja,
    Omega,
    Orthogonal,
    SoftmaxAttention,
)
from nestling.ops import newton_schulz, scan
from nestling.ops.scan import BACKENDS
from tests.helpers import directions, randn, randomise, uniform
from tests.identities.identity import Identity, argmin, proximal, token_by_token
from tests.identities.writing import matrix_memory, written

L, D = 11, 4
ETA = 0.4
backends = pytest.mark.parametrize("backend", BACKENDS)


def tokens() -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values `[L, D]`."""
    return randn(L, D), randn(L, D), randn(L, D)


def scanned(backend: str, q: Tensor, k: Tensor, u: Tensor, **gates: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs `[L, D]`, read after writing, and the last memory `[D, D]`, of one head."""
    gates = {name: gate[None, None] for name, gate in gates.items()}
    y, state = scan(q[None, None], k[None, None], u[None, None], **gates, backend=backend, chunk_size=4)
    assert y is not None
    return y[0, 0], state.memory[0, 0]


def answers(objective, rule, q: Tensor, k: Tensor, v: Tensor, eta: float = 1.0, **options) -> tuple[Tensor, Tensor]:
    """As `scanned`, of an `AssociativeMemory` of one matrix that starts at zero."""
    memory = matrix_memory(torch.zeros(D, D), objective, rule, read="inclusive", **options)
    y, state = memory(q[None, None], k[None, None], v[None, None], k.new_full((1, 1, L), eta))
    assert y is not None
    return y[0, 0].detach(), state.weights[0][0, 0].detach()


def descended(loss, weight: Tensor, *pair: Tensor, rate: float) -> Tensor:
    """The weight after one step of `torch.optim.SGD` on `loss(weight, *pair)`."""
    parameter = nn.Parameter(weight.clone())
    loss(parameter, *pair).backward()
    torch.optim.SGD([parameter], lr=rate).step()
    return parameter.detach()


def regression(memory: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return 0.5 * (k @ memory - v).square().sum()


def similarity(memory: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return -(k @ memory) @ v


def oja(memory: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return similarity(memory, k, v) + 0.5 * (memory @ v).square().sum()


def read_on_the_way(step, q: Tensor, *pairs: Tensor) -> tuple[Tensor, Tensor]:
    """As `scanned`, of a memory that starts at zero and moves by `memory = step(memory, *token)`."""
    memory, outputs = torch.zeros(D, D, dtype=torch.float64), []
    for query, *token in zip(q, *pairs, strict=True):
        memory = step(memory, *token)
        outputs.append(query @ memory)
    return torch.stack(outputs), memory


# ---- the Hebbian rule


@backends
@Identity(
    "Linear attention is a Hebbian memory, and its quadratic form",
    r"M_t = M_{t-1} + k_t^\top v_t = M_{t-1} - \nabla_M (-\langle k_t M, v_t \rangle),"
    r" \qquad q_t M_t = \sum_{s \le t} (q_t k_s^\top)\, v_s",
    "Eq. 14-18, 64; Katharopoulos et al. 2020",
    (
        "`nestling.ops.scan(q, k, v)`",
        "`AssociativeMemory(Matrix, DotProduct(), GradientDescent())` at rate 1",
        "`torch.optim.SGD` on $-\\langle k M, v \\rangle$, a step a token",
        "`(q @ k.mT).tril() @ v`",
    ),
)
def test_linear_attention_is_a_hebbian_memory(backend):
    """Outputs of every token, and the memory at the end."""
    q, k, v = tokens()
    step = lambda m, *pair: descended(similarity, m, *pair, rate=1.0)  # noqa: E731
    return (
        scanned(backend, q, k, v),
        answers(DotProduct(), GradientDescent(), q, k, v),
        read_on_the_way(step, q, k, v),
        ((q @ k.mT).tril() @ v, k.mT @ v),
    )


@backends
@Identity(
    "RetNet is linear attention that decays by distance",
    r"M_t = \gamma M_{t-1} + k_t^\top v_t, \qquad q_t M_t = \sum_{s \le t} \gamma^{t-s} (q_t k_s^\top)\, v_s",
    "Eq. 64; Sun et al. 2023",
    ("`nestling.ops.scan(q, k, v, alpha=gamma)`", "its quadratic form"),
)
def test_retnet_decays_by_distance(backend):
    """Retention of one constant: $|M|^2$ is in the objective."""
    q, k, v = tokens()
    distance = torch.arange(L)[:, None] - torch.arange(L)
    gamma = torch.tensor(0.9, dtype=torch.float64)
    y, _ = scanned(backend, q, k, v, alpha=gamma.expand(L))
    return y, (q @ k.mT * (gamma**distance).tril()) @ v


@backends
@Identity(
    "Gated linear attention decays by what was said",
    r"M_t = \alpha_t M_{t-1} + k_t^\top v_t, \qquad"
    r" q_t M_t = \sum_{s \le t} \Big( \prod_{r=s+1}^{t} \alpha_r \Big) (q_t k_s^\top)\, v_s",
    "Eq. 64 with a retention of each token; Yang et al. 2023",
    ("`nestling.ops.scan(q, k, v, alpha=alpha)`", "its quadratic form"),
)
def test_gated_linear_attention_decays_by_what_was_said(backend):
    """A score weighs the product of the retentions since."""
    (q, k, v), alpha = tokens(), uniform(0.5, 1.0, L)
    total = alpha.cumprod(-1)
    y, _ = scanned(backend, q, k, v, alpha=alpha)
    return y, (q @ k.mT * (total[:, None] / total).tril()) @ v


# ---- the delta rule


@backends
@Identity(
    "DeltaNet is regression, one step of gradient descent a token",
    r"M_t = (I - \beta k_t^\top k_t) M_{t-1} + \beta k_t^\top v_t"
    r" = M_{t-1} - \beta\, \nabla_M\, \tfrac12 |k_t M - v_t|^2",
    "Eq. 65; Schlag et al. 2021. With a chunk of one token it is TTT-Linear, too (Sun et al. 2024)",
    (
        "`nestling.ops.scan(q, k, beta v, eps=beta)`",
        "`AssociativeMemory(Matrix, L2(), GradientDescent(), chunk_size=1)`",
        "`AssociativeMemory(Matrix, L2(), DeltaRule(), chunk_size=7)`",
        "`torch.optim.SGD` on $\\tfrac12 |k M - v|^2$, a step a token",
    ),
)
def test_deltanet_is_regression(backend):
    """Outputs of every token, and the memory at the end."""
    (q, _, v), k = tokens(), directions(L, D)
    step = lambda m, *pair: descended(regression, m, *pair, rate=ETA)  # noqa: E731
    return (
        scanned(backend, q, k, ETA * v, eps=torch.full((L,), ETA, dtype=torch.float64)),
        answers(L2(), GradientDescent(), q, k, v, ETA),
        answers(L2(), DeltaRule(), q, k, v, ETA, chunk_size=7),
        read_on_the_way(step, q, k, v),
    )


@backends
@Identity(
    "Gated DeltaNet retains, then takes that step",
    r"M_t = (I - \beta_t k_t^\top k_t)\, \alpha_t M_{t-1} + \beta_t k_t^\top v_t",
    "Eq. 65 with retention; Yang et al. 2024",
    ("`nestling.ops.scan(q, k, beta v, alpha, eps=alpha beta)`", "`torch.optim.SGD` from $\\alpha_t M_{t-1}$"),
)
def test_gated_deltanet_retains_then_corrects(backend):
    """So the erasure in the scan is $\\alpha_t \\beta_t$: it is of what was retained."""
    (q, _, v), k, alpha, beta = tokens(), directions(L, D), uniform(0.5, 1.0, L), uniform(0.0, 1.0, L)

    def step(memory, key, value, keep, rate):
        return descended(regression, keep * memory, key, value, rate=rate.item())

    found = scanned(backend, q, k, beta[:, None] * v, alpha=alpha, eps=alpha * beta)
    return found, read_on_the_way(step, q, k, v, alpha, beta)


@backends
@Identity(
    "Longhorn is regression, one proximal step a token",
    r"M_t = \arg\min_M\ \tfrac12 |k_t M - v_t|^2 + \tfrac{1}{2\eta} |M - M_{t-1}|^2"
    r" = (I - \beta_t k_t^\top k_t) M_{t-1} + \beta_t k_t^\top v_t, \qquad \beta_t = \frac{\eta}{1 + \eta |k_t|^2}",
    "Eq. 65; Liu et al. 2024",
    (
        "`nestling.ops.scan(q, k, beta v, eps=beta)`",
        "`AssociativeMemory(Matrix, L2(), DeltaRule(exact=True))`",
        "the argmin, once a token",
    ),
)
def test_longhorn_is_the_proximal_step(backend):
    """DeltaNet with the step that no rate can make overshoot."""
    q, k, v = tokens()
    beta = ETA / (1 + ETA * k.square().sum(-1))

    def step(memory, key, value):
        return proximal(lambda m: regression(m, key, value), memory, ETA)

    return (
        scanned(backend, q, k, beta[:, None] * v, eps=beta),
        answers(L2(), DeltaRule(exact=True), q, k, v, ETA, chunk_size=7),
        read_on_the_way(step, q, k, v),
    )


@Identity(
    "Recursive least squares over n pairs is ridge regression",
    r"g = \frac{P k_t^\top}{1 + k_t P k_t^\top},\quad M_t = M_{t-1} + g\,(v_t - k_t M_{t-1}),\quad P \leftarrow P - g\, k_t P"
    r" \quad\Longrightarrow\quad M_n = \arg\min_M \sum_t |k_t M - v_t|^2 + \rho\, |M|^2",
    "Definition 1 for a linear memory and the L2 objective; Sherman and Morrison 1950",
    (
        "`AssociativeMemory(Matrix, L2(), LeastSquares(ridge=rho))`, the tokens so far, for every token",
        "the argmin",
        "`torch.linalg.solve` of the normal equations",
    ),
)
def test_recursive_least_squares_is_the_ridge_solution():
    """After every token, without ever solving a system of all: what no linear memory can beat."""
    (q, k, v), ridge = tokens(), 0.1
    identity = torch.eye(D, dtype=torch.float64)
    y, memory = answers(L2(), LeastSquares(ridge), q, k, v)

    def least(n: int) -> Tensor:
        return argmin(lambda m: (k[:n] @ m - v[:n]).square().sum() + ridge * m.square().sum(), D, D)

    def solved(n: int) -> Tensor:
        return torch.linalg.solve(k[:n].mT @ k[:n] + ridge * identity, k[:n].mT @ v[:n])

    sides = [(torch.stack([q[t] @ found(t + 1) for t in range(L)]), found(L)) for found in (least, solved)]
    return (y, memory), *sides


@Identity(
    "Oja's rule is a delta rule that erases along values",
    r"M_t = M_{t-1} (I - \eta\, v_t^\top v_t) + \eta\, k_t^\top v_t"
    r" = M_{t-1} - \eta\, \nabla_M \big( -\langle k_t M, v_t \rangle + \tfrac12 |M v_t^\top|^2 \big)",
    "Eq. 66-67 (OjaNet), halved",
    (
        "`nestling.ops.scan` of the transposed memory: keys $v_t$, writes $\\eta\\, k_t$",
        "`AssociativeMemory(Matrix, DotProduct(), Oja())`",
        "`torch.optim.SGD`, a step a token",
    ),
)
def test_ojas_rule_erases_along_values():
    """The DeltaNet of the other side: what the memory holds about a value makes room."""
    (q, k, _), v = tokens(), directions(L, D)
    eps = torch.full((1, 1, L), ETA, dtype=torch.float64)
    _, state = scan(None, v[None, None], ETA * k[None, None], eps=eps, read=None)
    start = torch.zeros(D, D, dtype=torch.float64)
    _, memory = answers(DotProduct(), Oja(), q, k, v, ETA)
    return state.memory[0, 0].T, memory, token_by_token(lambda m, *p: descended(oja, m, *p, rate=ETA), start, k, v)


# ---- momentum, chunks and deep memories


@Identity(
    "The momentum of Titans is the momentum of SGD",
    r"S_t = \theta S_{t-1} - \eta\, \nabla_M\, \tfrac12 |k_t M_{t-1} - v_t|^2, \qquad M_t = M_{t-1} + S_t",
    "Eq. 33; Behrouz et al. 2024 (Titans)",
    (
        "`AssociativeMemory(Matrix, L2(), GradientDescent(momentum=True))` at rate $\\eta / (1 - \\theta)$",
        "`torch.optim.SGD(momentum=theta)`, a step a token",
    ),
)
def test_titans_momentum_is_that_of_sgd():
    """The rate is another since the library's momentum is a mean of the writes, and SGD's a sum."""
    _, k, v = tokens()
    start, theta, rate = randn(D, D), 0.6, 0.1
    memory = matrix_memory(start, L2(), GradientDescent(momentum=True))
    parameter = nn.Parameter(start.clone())
    optimizer = torch.optim.SGD([parameter], lr=rate, momentum=theta)
    for pair in zip(k, v, strict=True):
        optimizer.zero_grad()
        regression(parameter, *pair).backward()
        optimizer.step()
    return parameter.detach(), written(memory, k, v, rate / (1 - theta), theta=theta)


@Identity(
    "The delta rule with momentum is SGD with momentum",
    r"S_t = \theta S_{t-1} - \eta\, \nabla_M\, \tfrac12 |k_t M_{t-1} - v_t|^2, \qquad M_t = M_{t-1} + S_t",
    "Eq. 33, 65, whatever the chunk",
    (
        "`AssociativeMemory(Matrix, L2(), DeltaRule(momentum=True), chunk_size=7)` at rate $\\eta / (1 - \\theta)$",
        "`torch.optim.SGD(momentum=theta)`, a step a token",
    ),
)
def test_the_delta_rule_takes_momentum():
    """The surprise is that of the running memory, which the momentum has moved."""
    (_, _, v), k, start, theta, rate = tokens(), directions(L, D), randn(D, D), 0.6, 0.1
    memory = matrix_memory(start, L2(), DeltaRule(momentum=True), chunk_size=7)
    parameter = nn.Parameter(start.clone())
    optimizer = torch.optim.SGD([parameter], lr=rate, momentum=theta)
    for pair in zip(k, v, strict=True):
        optimizer.zero_grad()
        regression(parameter, *pair).backward()
        optimizer.step()
    return parameter.detach(), written(memory, k, v, rate / (1 - theta), theta=theta)


@Identity(
    "TTT-Linear with one chunk for all is linear attention",
    r"M_0 = 0: \qquad M_t = \sum_{s \le t} -\eta\, \nabla_M\, \tfrac12 |k_s M_0 - v_s|^2 = \eta \sum_{s \le t} k_s^\top v_s",
    "Sun et al. 2024, Theorem 1; section 8.2 on chunks",
    (
        "`AssociativeMemory(Matrix, L2(), GradientDescent(), chunk_size=L)`, read before each write",
        "`eta * (q @ k.mT).tril(-1) @ v`",
    ),
)
def test_regression_at_zero_is_linear_attention():
    """At the weights that the chunk started from, zero, a surprise is the value: the chunk size is part of the rule."""
    q, k, v = (x[None, None] for x in tokens())
    memory = matrix_memory(torch.zeros(D, D), L2(), GradientDescent(), chunk_size=L)
    y, _ = memory(q, k, v, torch.full((1, 1, L), ETA, dtype=torch.float64))
    return y.detach(), ETA * (q @ k.mT).tril(-1) @ v


@Identity(
    "A chunk of a deep memory is a batch of SGD",
    r"W \leftarrow W - \eta \sum_{t \in \text{chunk}} \nabla_W\, \tfrac12 |M(k_t) - v_t|^2, \qquad"
    r" M(x) = x + \operatorname{silu}(x W_{\text{up}}) W_{\text{down}}",
    "section 8.2, Eq. 89-91; TTT-MLP (Sun et al. 2024)",
    (
        "`AssociativeMemory(MLP, L2(), GradientDescent(), chunk_size=5)`, a scan a weight",
        "the network by autograd, `torch.optim.SGD`, a step a chunk",
    ),
)
def test_a_chunk_is_a_batch():
    """Three chunks; at their ends the running weights, which a scan moved token by token, are those of the optimiser."""
    k, v, rate = randn(15, D), randn(15, D), 0.1
    memory = AssociativeMemory(MLP(D, 6), L2(), GradientDescent(), chunk_size=5).double()
    up, down = (nn.Parameter(w.detach().clone()) for w in memory.network.parameters())
    optimizer = torch.optim.SGD([up, down], lr=rate)
    for keys, values in zip(k.split(5), v.split(5), strict=True):
        optimizer.zero_grad()
        regression(torch.eye(D, dtype=torch.float64), keys + F.silu(keys @ up) @ down, values).backward()
        optimizer.step()
    _, state = memory(None, k[None, None], v[None, None], torch.full((1, 1, 15), rate, dtype=torch.float64))
    return [up, down], [w[0, 0] for w in state.weights]


@Identity(
    "The Omega rule is SGD on a window",
    r"W_t = W_{t-1} - \eta\, \nabla_W\, \frac1c \sum_{s=t-c+1}^{t} \tfrac12 |k_s W_{t-1} - v_s|^2",
    "Behrouz et al. 2025 (Atlas), with the mean for the sum",
    (
        "`AssociativeMemory(Matrix, L2(), Omega(window=c), chunk_size=1)`",
        "`torch.optim.SGD` on the mean loss of the last $c$ tokens, a step a token",
    ),
)
def test_omega_is_descent_on_a_window():
    """Those before the first token count as nothing."""
    (_, k, v), c, rate = tokens(), 3, 0.1
    memory = matrix_memory(torch.zeros(D, D), L2(), Omega(c))

    def step(weight, *last):
        keys, values = (torch.stack(x) for x in zip(*last, strict=True))
        return descended(regression, weight, keys, values, rate=rate / c)

    weight, pairs = torch.zeros(D, D, dtype=torch.float64), list(zip(k, v, strict=True))
    for t in range(L):
        weight = step(weight, *pairs[max(0, t - c + 1) : t + 1])
    return written(memory, k, v, rate), weight


@Identity(
    "Orthogonal writes are steps of Muon",
    r"S_t = \theta S_{t-1} + (1 - \theta)\, \nabla_W \ell_t, \qquad W_t = W_{t-1} - \eta\, \operatorname{NewtonSchulz}(S_t)",
    "Eq. 42-44; Behrouz et al. 2025 (Atlas); Jordan et al. 2024",
    (
        "`AssociativeMemory(Matrix, L2(), Orthogonal(GradientDescent(momentum=True)))`",
        "the running mean of gradients by autograd, `nestling.ops.newton_schulz`, a step a token",
    ),
)
def test_orthogonal_writes_are_muon():
    """The optimiser of a network, and the rule of a memory, are one."""
    (_, k, v), start, theta, rate = tokens(), randn(D, D), 0.6, 0.1
    memory = matrix_memory(start, L2(), Orthogonal(GradientDescent(momentum=True)))
    weight, gathered = start.clone(), torch.zeros_like(start)
    for pair in zip(k, v, strict=True):
        parameter = nn.Parameter(weight)
        regression(parameter, *pair).backward()
        gathered = theta * gathered + (1 - theta) * parameter.grad
        weight = weight - rate * newton_schulz(gathered, steps=2)
    return written(memory, k, v, rate, theta=theta), weight


@Identity(
    "Retention on a simplex is exponentiated gradient",
    r"\arg\min_{W \in \Delta} \langle \nabla \ell(W_t), W \rangle + \tfrac1\eta \operatorname{KL}(W \,\|\, W_t)"
    r" \;\propto\; W_t \odot e^{-\eta \nabla \ell(W_t)}",
    "Behrouz et al. 2025 (Memora); Kivinen and Warmuth 1997",
    (
        "`AssociativeMemory(Matrix, L2(), GradientDescent(), retention=KL())`",
        "the multiplicative update by autograd, made to sum to 1 over the inputs",
    ),
)
def test_retention_on_a_simplex_is_exponentiated_gradient():
    """What is stored is the logarithm of the weights, up to a constant for each output."""
    (_, k, v), start, rate = tokens(), randn(D, D), 0.3
    memory = AssociativeMemory(Matrix(D, D), L2(), GradientDescent(), chunk_size=1, retention=KL()).double()
    memory.network.weight.data = start
    stored = written(memory, k, v, rate)
    weight = start.softmax(0)
    for pair in zip(k, v, strict=True):
        parameter = nn.Parameter(weight)
        regression(parameter, *pair).backward()
        weight = weight * (-rate * parameter.grad).exp()
        weight = weight / weight.sum(0)
    return KL().weight(stored), weight


# ---- memories without parameters


@Identity(
    "Softmax attention is the argmin of Nadaraya and Watson",
    r"\operatorname{softmax}\Big( \tfrac{q k^\top}{\sqrt d} \Big) v"
    r" = \arg\min_m \sum_i s(k_i, q)\, |v_i - m|^2, \qquad s(k, q) = \exp \tfrac{q k^\top}{\sqrt d}",
    "Eq. 62",
    (
        "`torch.nn.functional.scaled_dot_product_attention`",
        "`nestling.memory.SoftmaxAttention`",
        "the argmin, for each query over the tokens so far",
    ),
)
def test_softmax_attention_is_an_argmin():
    """A regression anew for every query, with nothing but a constant as its model: the memory has no parameters."""
    q, k, v = tokens()
    y = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
    memory, _ = SoftmaxAttention(D, D)(q[None, None], k[None, None], v[None, None])
    return y, memory[0, 0], torch.stack([nadaraya_watson(q[t], k[: t + 1], v[: t + 1]) for t in range(L)])


@pytest.mark.parametrize("window", [1, 3, 8])
@Identity(
    "Sliding-window attention is that argmin over the last c tokens",
    r"y_t = \arg\min_m \sum_{i=t-c+1}^{t} s(k_i, q_t)\, |v_i - m|^2",
    "Eq. 63",
    (
        "`nestling.layers.Attention(window=c)`, rotary positions included",
        "the argmin, for each query over the last $c$ tokens",
        "`torch.nn.functional.scaled_dot_product_attention` with a band as its mask",
    ),
)
def test_a_sliding_window_is_an_argmin_of_fewer(window):
    """What left the window is not in the regression."""
    layer, x = randomise(Attention(D, 1, window).double()), randn(1, L, D)
    q, k, v = (project(x)[:, :, None] for project in (layer.query, layer.key, layer.value))
    q, k = (rotate(z, torch.arange(L)[None], layer.rope_theta) for z in (q, k))
    q, k, v = (z[0, :, 0] for z in (q, k, v))
    spans = [slice(max(0, t - window + 1), t + 1) for t in range(L)]
    least = torch.stack([nadaraya_watson(q[t].detach(), k[s].detach(), v[s].detach()) for t, s in enumerate(spans)])
    band = torch.ones(L, L, dtype=torch.bool).tril().triu(1 - window)
    masked = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=band)[0]
    return layer(x)[0][0], layer.out(least), layer.out(masked)


def nadaraya_watson(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """For one query `[d]`, keys and values `[n, d]`."""
    similarities = (k @ q * q.shape[-1] ** -0.5).exp()
    return argmin(lambda m: (similarities * (v - m).square().sum(-1)).sum(), v.shape[-1])
