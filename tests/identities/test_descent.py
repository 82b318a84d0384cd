"""Gradient descent: a step of it writes into an associative memory, and so does a pass of backpropagation."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestling.memory import DeltaGradientDescent, DotProduct, GradientDescent, RetainPredictions, RetainSeen
from nestling.ops import ScanState, scan
from nestling.optim import DGD
from tests.helpers import randn
from tests.identities.identity import Identity, argmin, proximal, token_by_token
from tests.identities.writing import a_layer, labelled, matrix_memory, taught, written

ETA = 0.3
HEBBIAN = DotProduct()


@Identity(
    "A step of gradient descent is a proximal argmin",
    r"W_t - \eta\, \nabla L(W_t) = \arg\min_W\ \langle \nabla L(W_t), W \rangle + \tfrac{1}{2\eta} |W - W_t|^2",
    "Eq. 2",
    ("`torch.optim.SGD` on a cross-entropy", "the argmin"),
)
def test_a_step_is_a_proximal_argmin():
    """The objective to first order, and not far from where the weights are."""
    x, labels = labelled(7)
    weight = randn(3, 4, grad=True)
    before = weight.detach().clone()
    (slope,) = torch.autograd.grad(F.cross_entropy(x @ weight.T, labels), weight)
    weight.grad = slope
    torch.optim.SGD([weight], lr=ETA).step()
    return weight.detach(), proximal(lambda w: (slope * w).sum(), before, ETA)


@Identity(
    "Gradient descent follows the regularised leader",
    r"W_{t+1} = \arg\min_W\ \sum_{s \le t} \langle \nabla L_s(W_s), W \rangle + \tfrac{1}{2\eta} |W - W_1|^2",
    "Eq. 3",
    ("`torch.optim.SGD`, nine steps", "the argmin"),
)
def test_steps_follow_the_regularised_leader():
    """All steps at once: every gradient so far, taken where the weights were then, and the distance from the first weights."""
    layer, tokens = a_layer(), labelled(9)
    before = layer.weight.detach().clone()
    x, u, after = taught(layer, *tokens, lambda p: torch.optim.SGD(p, lr=ETA))
    slopes = u.T @ x
    return after, proximal(lambda w: (slopes * w).sum(), before, ETA)


@Identity(
    "A linear layer trained by backpropagation is a memory of its local surprises",
    r"W_t - \eta\, \nabla_W L = W_t - \eta\, u_t^\top x_t"
    r" = \arg\min_W\ \langle x_t W^\top, u_t \rangle + \tfrac{1}{2\eta} |W - W_t|^2, \qquad u_t = \nabla_{y_t} L",
    "Eq. 8-9",
    (
        "`nn.Linear`, cross-entropy, `torch.optim.SGD`, a step a token",
        "`AssociativeMemory(Matrix, DotProduct(), GradientDescent())`, keys $x_t$, values $-u_t$",
        "the argmin, once a token",
    ),
)
def test_a_linear_layer_is_a_memory_of_its_surprises():
    """The keys are the layer's inputs, the values the gradients at its outputs: what it got wrong about each."""
    layer, tokens = a_layer(), labelled(9)
    before = layer.weight.detach().clone()
    x, u, after = taught(layer, *tokens, lambda p: torch.optim.SGD(p, lr=ETA))
    memory = matrix_memory(before.T, HEBBIAN, GradientDescent())
    least = token_by_token(lambda old, k, surprise: proximal(lambda w: w @ k @ surprise, old, ETA), before, x, u)
    return after, written(memory, x, -u, ETA).T, least


@Identity(
    "Every layer of a network is such a memory",
    r"W_\ell \leftarrow W_\ell - \eta \sum_i \delta_{\ell,i}^\top \hat x_{\ell-1,i}, \qquad"
    r" \delta_\ell = (\delta_{\ell+1} W_{\ell+1}) \odot \phi'(z_\ell)",
    "Eq. 29-31",
    (
        "a network of two layers, `torch.optim.SGD`, batches of five",
        "`nestling.ops.scan` for each layer: keys $\\hat x_{\\ell-1}$, writes $-\\eta\\,\\delta_\\ell$",
    ),
)
def test_every_layer_is_a_memory_of_its_surprises():
    """A key is what came in from below, its value what came back from above."""
    first, last = nn.Linear(4, 5, bias=False).double(), nn.Linear(5, 3, bias=False).double()
    optimizer = torch.optim.SGD([first.weight, last.weight], lr=ETA)
    before = [layer.weight.detach().T.clone() for layer in (first, last)]
    read: list[list[Tensor]] = [[], [], [], []]  # keys and surprises of the first, then of the last
    for _ in range(4):
        x, labels = labelled(5)
        optimizer.zero_grad()
        z = first(x)
        hidden = z.tanh()
        y = last(hidden)
        loss = F.cross_entropy(y, labels)
        at_z, at_y = torch.autograd.grad(loss, (z, y), retain_graph=True)
        for seen, part in zip(read, (x, at_z, hidden.detach(), at_y), strict=True):
            seen.append(part)
        loss.backward()
        optimizer.step()
    memories = []
    for start, k, delta in zip(before, read[::2], read[1::2], strict=True):
        given = torch.cat(k)[None, None], -ETA * torch.cat(delta)[None, None]
        _, state = scan(None, *given, state=ScanState(start[None, None]), read=None)
        memories.append(state.memory[0, 0].T)
    return [first.weight, last.weight], memories


@Identity(
    "Weight decay is retention",
    r"W_t - \eta\, (\nabla L + \lambda W_t) = \alpha\, W_t - \eta\, u_t^\top x_t, \qquad \alpha = 1 - \eta \lambda",
    "Eq. 64, 88",
    (
        "`nn.Linear`, `torch.optim.SGD(weight_decay=0.2)`",
        "`AssociativeMemory(Matrix, DotProduct(), GradientDescent())` with that retention",
    ),
)
def test_weight_decay_is_retention():
    """What a memory forgets at each token is what an optimiser takes off the weights at each step."""
    layer, tokens, decay = a_layer(), labelled(9), 0.2
    memory = matrix_memory(layer.weight.detach().T, HEBBIAN, GradientDescent())
    x, u, after = taught(layer, *tokens, lambda p: torch.optim.SGD(p, lr=ETA, weight_decay=decay))
    return after, written(memory, x, -u, ETA, alpha=1 - ETA * decay).T


@pytest.mark.parametrize("eta", [0.01, 1.0, 100.0])
@Identity(
    "Delta gradient descent is its argmin, by Sherman and Morrison",
    r"W_t (I - \eta' x_t^\top x_t) - \eta' u_t^\top x_t"
    r" = \arg\min_W\ \tfrac12 |x_t W^\top + u_t|^2 + \tfrac{1}{2\eta} |W - W_t|^2,"
    r" \qquad \eta' = \frac{\eta}{1 + \eta |x_t|^2}",
    "Eq. 56-57, Appendix C",
    (
        "`nestling.optim.DGD` on an `nn.Linear`, a step a token",
        "`AssociativeMemory(Matrix, DotProduct(), DeltaGradientDescent())`, values $-u_t$",
        "the argmin, once a token",
    ),
)
def test_delta_gradient_descent_is_its_argmin(eta):
    """Exact for every rate and input. (The paper's $\\eta' = \\eta / (1 + \\eta)$ is for inputs of norm 1.)"""
    layer, tokens = a_layer(), labelled(6)
    before = layer.weight.detach().clone()
    memory = matrix_memory(before.T, HEBBIAN, DeltaGradientDescent())
    x, u, after = taught(layer, *tokens, lambda p: DGD(p, layer, lr=eta))

    def step(old, k, surprise):
        return proximal(lambda w: 0.5 * (w @ k + surprise).square().sum(), old, eta)

    return after, written(memory, x, -u, eta).T, token_by_token(step, before, x, u)


@pytest.mark.parametrize("erasure", [0.0, 0.3, 1.0])
@Identity(
    "Between gradient descent and delta gradient descent",
    r"W_t (I - c\, \eta' x^\top x) - \eta' u^\top x"
    r" = \arg\min_W\ \langle x W^\top, u \rangle + \tfrac{c}{2} |x W^\top|^2 + \tfrac{1}{2\eta} |W - W_t|^2,"
    r" \qquad \eta' = \frac{\eta}{1 + c\, \eta |x|^2}",
    "Eq. 56 with $c = 1$, Eq. 9 with $c = 0$",
    ("`nestling.optim.DGD(erasure=c)`, $c$ of 0, 0.3 and 1", "the argmin"),
)
def test_an_erasure_is_between_the_two(erasure):
    """A part of the erasure is an argmin too; $\\tfrac12 |x W^\\top + u|^2$ is the objective for $c = 1$ but for a constant."""
    layer = a_layer()
    before = layer.weight.detach().clone()
    x, u, after = taught(layer, *labelled(1), lambda p: DGD(p, layer, lr=ETA, erasure=erasure))

    def objective(w):
        y = w @ x[0]
        return y @ u[0] + erasure / 2 * y @ y

    return after, proximal(objective, before, ETA)


@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("rate", [1e-3, 0.3, 1e4])
@Identity(
    "Delta gradient descent of a level: the argmin over a period",
    r"(W - \eta G)(I + \eta C)^{-1}"
    r" = \arg\min_V\ \mathbb{E}\, \tfrac12 |x V^\top + u|^2 + \tfrac{1}{2\eta} |V - W|^2,"
    r" \qquad G = \mathbb{E}\, u^\top x,\ C = \mathbb{E}\, x^\top x",
    "Eq. 56 with the mean of the tokens' objectives",
    ("`nestling.memory.DeltaGradientDescent().direction`", "the argmin over the tokens themselves"),
)
def test_a_level_s_step_is_the_argmin_over_its_period(tokens, rate):
    """The tokens of a period are in its step by two means alone."""
    weight, x, u = randn(3, 4), randn(tokens, 4), randn(tokens, 3)
    slope, moment = u.T @ x / tokens, x.T @ x / tokens
    moved = weight - rate * DeltaGradientDescent().direction(slope, weight, moment, rate)

    def objective(w):
        return 0.5 * (x @ w.T + u).square().sum() / tokens

    return moved, proximal(objective, weight, rate)


def damped(moment, damping):
    """Scaled to a mean eigenvalue of one, and damped."""
    width = len(moment)
    return moment * width / moment.trace() + damping * torch.eye(width, dtype=moment.dtype)


@Identity(
    "Retention over what was seen is generalised gradient descent",
    r"-\eta\, a\, G A^{-1} = \arg\min_{\Delta}\ \langle G, \Delta \rangle"
    r" + \tfrac{1}{2 \eta a} \operatorname{tr}(\Delta A \Delta^\top), \qquad A = a I + \mathbb{E}\, x^\top x",
    "Definition 5",
    ("`nestling.memory.RetainSeen.direction`", "the argmin"),
)
def test_retention_over_what_was_seen_is_its_argmin():
    """What is retained is what the weight did with its past inputs, here scaled to unit mean square."""
    slope, x, damping = randn(3, 4), randn(30, 4), 0.1
    moment, count = x.T @ x, torch.tensor(30.0, dtype=torch.float64)
    curvature = damped(moment, damping) / (2 * ETA * damping)
    found = -ETA * RetainSeen(damping).direction(slope, moment, count)
    return found, argmin(lambda d: (slope * d).sum() + (d @ curvature @ d.T).trace(), 3, 4)


@Identity(
    "Retention over what was predicted, likewise",
    r"-a b\, B^{-1} G A^{-1} = \arg\min_{\Delta}\ \langle G, \Delta \rangle"
    r" + \tfrac{1}{2 a b} \operatorname{tr}(B \Delta A \Delta^\top), \qquad B = b I + \mathbb{E}\, g^\top g",
    "Definition 5; Martens and Grosse 2015",
    ("`nestling.memory.RetainPredictions.direction`", "the argmin"),
)
def test_retention_over_what_was_predicted_is_its_argmin():
    """To second order the trace is by how much the predictions change; $g$ are the gradients at the outputs."""
    slope, x, g, rule = randn(1, 3, 4), randn(1, 30, 4), randn(1, 30, 3), RetainPredictions(0.3, 0.7)
    seen, felt = x.mT @ x, g.mT @ g
    memory = rule.renewed(rule.initial(slope), seen, felt, torch.tensor([30.0], dtype=torch.float64))
    inputs, outputs = damped(seen[0], 0.3), damped(felt[0], 0.7)

    def objective(d):
        return (slope[0] * d).sum() + (outputs @ d @ inputs @ d.T).trace() / (2 * 0.3 * 0.7)

    return -rule.direction(slope, memory)[0], argmin(objective, 3, 4)


@Identity(
    "With much damping retention is plain descent",
    r"\lim_{a \to \infty} a\, G A^{-1} = G",
    "Definition 5 with $|\\Delta|^2$ as its retention, which is Eq. 2",
    ("`nestling.memory.RetainSeen(1e6).direction`", "the gradient"),
    tolerance=1e-5,
    approximation="a limit: at $a = 10^6$ the step is apart from it by the order of $1/a$",
)
def test_with_all_damping_retention_is_plain_descent():
    """Where nothing in particular is retained, weights are."""
    slope, x = randn(3, 4), randn(50, 4)
    return RetainSeen(1e6).direction(slope, x.T @ x, torch.tensor(50.0, dtype=torch.float64)), slope
