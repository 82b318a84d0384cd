"""Classifiers that learn in their body: curvature by closed forms, pulls by their stationarity, and what is stored."""

import pytest
import torch
from torch.nn import functional as F

from nestling.continual.bodies import (
    Descent,
    ElasticWeights,
    Joint,
    Levelled,
    OnlineLaplace,
    Perceptron,
    Replay,
    diagonals,
    factors,
)
from nestling.levels import Level
from nestling.memory import RetainPredictions
from tests.helpers import close, randn

WIDTHS = (6, 12, 3)
BYTES = 4 * (7 * 12 + 13 * 3)
RETAINING = [Level(8, lr=0.5, rule=RetainPredictions(1.0, 1.0))]
METHODS = {
    "descent": lambda network: Descent(network, 0.1, 0.5),
    "EWC": lambda network: ElasticWeights(network, 0.1, 1.0, 0.5),
    "online Laplace": lambda network: OnlineLaplace(network, 0.1, 1.0, 0.5),
    "replay": lambda network: Replay(network, 0.1, 3_000, 0.5),
    "DER++": lambda network: Replay(network, 0.1, 3_000, 0.5, distilled=0.5),
    "joint": lambda network: Joint(network, 0.1, 0.5, passes=3, batch=4),
    "levels": lambda network: Levelled(network, RETAINING),
}


def network(widths=WIDTHS):
    return Perceptron(widths, seed=1).double()


def observed(body, classes=3, batches=1):
    """After some examples, every class among them; and the inputs."""
    x = torch.randn(batches, 4 * classes, WIDTHS[0], dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    for some in x:
        body.observe(some, torch.arange(4 * classes) % classes)
    return x.flatten(0, 1)


def test_the_bias_is_the_weight_of_a_one():
    """The network against the formula."""
    net, x = network(), randn(4, 6)
    scaled = 0.5 * x / x.square().mean(-1, keepdim=True).sqrt()
    first, second = (layer.weight for layer in net.linear())
    hidden = torch.relu(scaled @ first[:, :-1].mT + first[:, -1])
    close(net(x), hidden @ second[:, :-1].mT + second[:, -1])


def test_curvature_of_softmax_regression():
    """One layer: the Fisher information is E[(diag p - p p^T) x x^T], of which EWC keeps the diagonal."""
    body = Descent(network((6, 3)), 0.1)
    x = observed(body)
    given = F.pad(0.5 * x / x.square().mean(-1, keepdim=True).sqrt(), (0, 1), value=1.0)
    p = body.logits(x).softmax(-1).detach()
    close(diagonals(body, x)[0], (p * (1 - p)).mT @ given.square() / len(x))
    inner, outer = factors(body, x)[0]
    close(inner, given.mT @ given / len(x))
    close(outer, (torch.diag_embed(p) - p[:, :, None] * p[:, None]).mean(0))


def test_curvature_of_one_example_is_the_hessian_of_its_loss():
    """Of the last layer, where the loss is convex: both factors, and the diagonal of their product."""
    body = Descent(network(), 0.1)
    x = observed(body)[:1]
    last = body.network.linear()[-1].weight

    def loss(weight):
        logits = torch.func.functional_call(body.network, {"layers.1.weight": weight}, x)
        return F.cross_entropy(logits, torch.tensor([1]))

    hessian = torch.autograd.functional.hessian(loss, last.detach()).flatten(2).flatten(0, 1)
    inner, outer = factors(body, x)[1]
    close(torch.kron(outer, inner), hessian)
    close(diagonals(body, x)[1].flatten(), hessian.diagonal())


def test_the_diagonal_is_the_mean_of_squares_over_all_labels():
    """Every layer, against a gradient for each example and label."""
    body = Descent(network(), 0.1)
    x = observed(body)
    expected = [torch.zeros_like(weight) for weight in body.weights()]
    for one in x:
        p = body.logits(one[None]).softmax(-1)[0].detach()
        for label in range(3):
            found = torch.autograd.grad(body.loss(one[None], torch.tensor([label])), body.weights())
            for total, gradient in zip(expected, found, strict=True):
                total += p[label] * gradient.square() / len(x)
    close(diagonals(body, x), expected)


def test_the_pull_of_elastic_weights_is_the_minimum():
    """strength F (w - w*) + (w - w') / lr = 0, w' being where plain descent would have gone."""
    body, plain = ElasticWeights(network(), 0.1, strength=7.0), Descent(network(), 0.1)
    x = observed(body)
    observed(plain)
    close(body.weights(), plain.weights())  # nothing to hold on to yet
    fisher = diagonals(body, x)
    body.end_experience()
    close(body.fisher, fisher)
    x, labels = randn(4, 6), torch.tensor([0, 1, 2, 0])
    for each in (body, plain):
        each.observe(x, labels)
    for weight, went, stiff, centre in zip(body.weights(), plain.weights(), fisher, body.centre, strict=True):
        close(7.0 * stiff * (weight - centre) + (weight - went) / 0.1, torch.zeros_like(weight))


def test_the_pull_of_online_laplace_is_the_minimum():
    """strength B (W - W*) A + (W - W') / rate = 0; and two experiences alike are twice one."""
    body, plain = OnlineLaplace(network(), 0.1, strength=7.0, period=1), Descent(network(), 0.1)
    x = observed(body)
    observed(plain)
    found = factors(body, x)
    body.end_experience()
    x, labels = randn(4, 6), torch.tensor([0, 1, 2, 0])
    for each in (body, plain):
        each.observe(x, labels)
    for weight, went, (a, b), centre in zip(body.weights(), plain.weights(), found, body.centre, strict=True):
        close(7.0 * b @ (weight - centre) @ a + (weight - went) / 0.1, torch.zeros_like(weight))
    still = OnlineLaplace(network(), 0.0, strength=7.0)
    for _ in range(2):
        still.met.add(torch.arange(3))
        still.recent.add(x)
        still.end_experience()
    for (a, b), (_, _, eigenvalues) in zip(factors(still, x), still.bases, strict=True):
        both = torch.linalg.eigvalsh(torch.kron(2 * b, a))
        close(eigenvalues.flatten().sort().values, both.clamp_min(0).sort().values, 1e-7)


def test_a_plain_level_is_descent():
    """And so is retention without limit to its damping."""
    free = RetainPredictions(1e12, 1e12)
    for levels in ([Level(4, lr=0.1)], [Level(4, lr=0.1, rule=free)]):
        body, plain = Levelled(network(), levels), Descent(network(), 0.1)
        for each in (body, plain):
            observed(each, batches=3)
        close(body.weights(), plain.weights())


def test_a_reservoir_holds_each_example_with_the_same_probability():
    """Bytes are the limit, inputs come back to a 255th, and places are shared fairly."""
    size = BYTES + 20 * (6 + 1) + 3
    counts = torch.zeros(60)
    for seed in range(60):
        body = Replay(Perceptron(WIDTHS), 0.0, size, seed=seed)
        x = (torch.arange(60.0)[:, None] / 255).expand(60, 6)
        body.observe(x, torch.arange(60) % 3)
        counts[body.inputs[:, 0].long()] += 1
        close(body.columns.long(), body.inputs[:, 0].long() % 3)
    assert size - 7 < body.bytes() <= size and counts.sum() == 60 * 20
    assert (counts.view(6, 10).sum(1) - 200).abs().max() < 60
    with pytest.raises(ValueError, match="leaves no room for an example: the network itself takes 492"):
        Replay(Perceptron(WIDTHS), 0.1, BYTES + 3)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns(name):
    """Three classes a fixed distance apart; what it says it stores are finite tensors, the weights among them."""
    draws = torch.Generator().manual_seed(0)
    means, body = 3 * torch.eye(3, 6), METHODS[name](Perceptron(WIDTHS, seed=2))
    for _ in range(2):
        for _ in range(40):
            labels = torch.randint(3, (8,), generator=draws)
            inputs = means[labels] + 0.3 * torch.randn(8, 6, generator=draws)
            body.observe(torch.sigmoid(inputs), labels + 10)
        body.end_experience()
    labels = torch.arange(30) % 3
    found = body.predict(torch.sigmoid(means[labels] + 0.3 * torch.randn(30, 6, generator=draws)))
    assert (found == labels + 10).double().mean() > 0.9
    assert all(tensor.isfinite().all() or name == "levels" for tensor in body.stored())
    assert body.bytes() >= 4 * body.parameters() == BYTES


def test_more_classes_than_outputs_raise():
    """A network that cannot answer says so."""
    with pytest.raises(ValueError, match="4 classes came, and the network has 3 outputs"):
        Descent(network(), 0.1).observe(randn(4, 6), torch.arange(4))
