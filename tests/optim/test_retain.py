"""Retention over what was seen: its limits, its memory as a batch inverse and as a window, and what wrappers owe."""

import copy
import gc
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from nestling.levels import Level, LevelOptimizer
from nestling.memory import RetainSeen
from nestling.optim.dgd import DGD, layer_groups
from nestling.optim.retain import Retained, curvature, retained
from tests.helpers import close, differ, named, randn, same

OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, 0.1, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda params: torch.optim.AdamW(params, 0.05, weight_decay=0.1),
    "adagrad": lambda params: torch.optim.Adagrad(params, 0.1),
}


def projector(x, damping, weights=None):
    """`a (a I + E[x x^T])^-1`, the inputs `[N, in]` scaled to unit mean square, by its definition."""
    weights = torch.ones(len(x), dtype=x.dtype) if weights is None else weights
    mean = (weights[:, None] * x).T @ x / weights.sum()
    width = x.shape[1]
    unit = mean * width / mean.trace()
    return damping * torch.linalg.inv(damping * torch.eye(width, dtype=x.dtype) + unit)


def learn(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


class Everything(nn.Module):
    """An embedding, a convolution, linear layers, and parameters without inputs."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.conv = nn.Conv1d(4, 4, 3, padding=1, groups=2)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 7)

    def forward(self, ids):
        return self.head(self.norm(F.gelu(self.conv(self.embedding(ids).mT).mT)))


def language_loss(model, batch):
    ids, targets = batch
    return F.cross_entropy(model(ids).flatten(0, -2), targets.flatten())


def batch():
    return torch.randint(7, (2, 5)), torch.randint(7, (2, 5))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_with_all_damping_it_is_the_bare_optimizer(kind):
    """a to infinity: every direction keeps the whole step, whatever the optimiser and the layer."""
    model = Everything().double()
    twin = copy.deepcopy(model)
    ours = Retained(OPTIMIZERS[kind](model.parameters()), model, damping=1e14)
    theirs = OPTIMIZERS[kind](twin.parameters())
    for _ in range(4):
        examples = batch()
        learn(ours, language_loss(model, examples))
        learn(theirs, language_loss(twin, examples))
    close(named(model.state_dict()), named(twin.state_dict()), 1e-10)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("bias", [False, True])
def test_without_damping_a_second_task_leaves_the_first_one_alone(kind, bias):
    """a to 0 on a linear layer: outputs on the first task's inputs stay to 1e-6 while the second task is learnt."""
    layer = nn.Linear(12, 3, bias=bias).double()
    optimizer = Retained(OPTIMIZERS[kind](layer.parameters()), layer, damping=1e-10)
    first, second, target = randn(6, 12), randn(4, 12), randn(4, 3)
    with optimizer.observe():
        layer(first)
    before, start = layer(first).detach(), F.mse_loss(layer(second), target).item()
    with optimizer.pause():
        for _ in range(300):
            learn(optimizer, F.mse_loss(layer(second), target))
    assert (layer(first) - before).abs().max() < 1e-6
    assert F.mse_loss(layer(second), target) < 0.05 * start


@pytest.mark.parametrize("kind", ["conv", "embedding"])
def test_convolutions_and_embeddings_leave_the_first_task_alone(kind):
    """The same for patches (in groups, with a bias) and for rows of a table."""
    if kind == "conv":
        layer, first, second = nn.Conv2d(4, 6, 3, groups=2).double(), randn(1, 4, 5, 4), randn(2, 4, 6, 6)
    else:
        layer, first, second = nn.Embedding(9, 3).double(), torch.tensor([1, 2, 2]), torch.tensor([2, 3, 4])
    optimizer = Retained(torch.optim.SGD(layer.parameters(), 0.05), layer, damping=1e-10)
    with optimizer.observe():
        layer(first)
    before, start = layer(first).detach(), layer(second).square().mean().item()
    with optimizer.pause():
        for _ in range(200):
            learn(optimizer, layer(second).square().mean() * 4)
    assert (layer(first) - before).abs().max() < 1e-6
    assert layer(second).square().mean() < 0.99 * start


def test_a_step_is_the_optimizer_s_times_p():
    """`W + dW P`, with the bias as the weight of a constant 1, and the step's own inputs in `P`."""
    layer, x, v = nn.Linear(4, 3).double(), randn(9, 4), randn(9, 3)
    twin = copy.deepcopy(layer)
    bare = torch.optim.AdamW(twin.parameters(), 0.1)
    learn(bare, F.mse_loss(twin(x), v))
    before = torch.cat([layer.weight, layer.bias[:, None]], 1).detach()
    change = torch.cat([twin.weight, twin.bias[:, None]], 1).detach() - before
    learn(Retained(torch.optim.AdamW(layer.parameters(), 0.1), layer, damping=0.2), F.mse_loss(layer(x), v))
    expected = before + change @ projector(torch.cat([x, torch.ones(9, 1)], 1), 0.2)
    close(torch.cat([layer.weight, layer.bias[:, None]], 1), expected)


def test_an_embedding_is_a_linear_layer_on_one_hot_tokens():
    """Rows are held back by their counts as a linear layer's columns are."""
    ids, v = torch.tensor([1, 1, 2, 3, 1]), randn(5, 3)
    table, linear = nn.Embedding(6, 3).double(), nn.Linear(6, 3, bias=False).double()
    linear.weight.data = table.weight.data.T.clone()
    for layer, x in ((table, ids), (linear, F.one_hot(ids, 6).double())):
        learn(Retained(torch.optim.SGD(layer.parameters(), 0.1), layer, damping=0.3), F.mse_loss(layer(x), v))
    close(table.weight, linear.weight.T)


@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5), damping=st.floats(1e-3, 10.0))
def test_streaming_is_the_batch_inverse(sizes, damping):
    """Whatever the pieces in which inputs come, the projector is that of all of them at once."""
    layer = nn.Linear(5, 2, bias=False).double()
    optimizer = Retained(torch.optim.SGD(layer.parameters(), 1.0), layer, damping)
    pieces = [randn(n, 5) for n in sizes]
    for piece in pieces[:-1]:
        learn(optimizer, 0 * layer(piece).sum())
    before, u = layer.weight.detach().clone(), randn(sizes[-1], 2)
    learn(optimizer, (layer(pieces[-1]) * u).sum())
    close(layer.weight, before - u.T @ pieces[-1] @ projector(torch.cat(pieces), damping))


@pytest.mark.parametrize("forgetting", [0.5, 0.9])
def test_forgetting_is_an_exponential_window_over_steps(forgetting):
    """Inputs of `s` steps ago weigh `f^s`, tokens in their own step equally; and the window is long forgotten at its end."""
    layer = nn.Linear(5, 2, bias=False).double()
    optimizer = Retained(torch.optim.SGD(layer.parameters(), 1.0), layer, 0.1, forgetting)
    pieces = [randn(n, 5) for n in (3, 6, 2, 4)]
    for piece in pieces:
        before = layer.weight.detach().clone()
        learn(optimizer, layer(piece).sum())
    weights = torch.tensor(
        [forgetting**age for p, age in zip(pieces, (3, 2, 1, 0), strict=True) for _ in p], dtype=torch.float64
    )
    gradient = torch.ones(4, 2, dtype=torch.float64).T @ pieces[-1]
    close(layer.weight, before - gradient @ projector(torch.cat(pieces), 0.1, weights))


def test_between_two_factorisations_the_projector_stands_still():
    """With a period of 3, steps 1-3 use the inputs of step 1, and step 4 all of the first four."""
    layer = nn.Linear(5, 2, bias=False).double()
    optimizer = Retained(torch.optim.SGD(layer.parameters(), 1.0), layer, 0.1, period=3)
    pieces = [randn(4, 5) for _ in range(4)]
    for count, piece in zip((1, 1, 1, 4), pieces, strict=True):
        before = layer.weight.detach().clone()
        learn(optimizer, layer(piece).sum())
        gradient = torch.ones(4, 2, dtype=torch.float64).T @ piece
        close(layer.weight, before - gradient @ projector(torch.cat(pieces[:count]), 0.1))


def test_it_is_the_levels_rule():
    """Around SGD it moves a weight as `LevelOptimizer` does with `RetainSeen`, forgetting included."""
    model = nn.ModuleDict({"layer": nn.Linear(5, 2, bias=False)}).double()
    twin = copy.deepcopy(model)
    ours = Retained(torch.optim.SGD(model.parameters(), 0.3), model, 0.05, forgetting=0.8)
    theirs = LevelOptimizer(twin, [Level(6, lr=0.3, rule=RetainSeen(0.05, 0.8))], [["layer.weight"]])
    for _ in range(5):
        x, v = randn(2, 3, 5), randn(2, 3, 2)
        learn(ours, F.mse_loss(model["layer"](x), v))
        with theirs.watch():
            loss = F.mse_loss(twin["layer"](x), v)
        loss.backward()
        theirs.step(6)
    close(model["layer"].weight, twin["layer"].weight)


@given(width=st.integers(1, 6), damping=st.floats(1e-4, 1e4))
def test_the_cached_factor_gives_the_rule_s_direction(width, damping):
    """`retained` of a Cholesky factor, and of a diagonal, against `RetainSeen.direction`; and where nothing was seen."""
    x, g = randn(8, width), randn(3, width)
    count = torch.tensor(8.0, dtype=torch.float64)
    rule = RetainSeen(damping)
    for seen in (x.T @ x, torch.zeros(width, width, dtype=torch.float64)):
        factor = torch.linalg.cholesky(curvature(seen, count, damping))
        close(retained(g, factor, damping), rule.direction(g, seen, count))
    diagonal = x.square().sum(0)
    expected = rule.direction(g, diagonal.diag(), count)
    close(retained(g.T, curvature(diagonal, count, damping), damping), expected.T)


def test_the_scale_of_the_inputs_does_not_matter():
    """Inputs are taken at unit mean square: a hundred times the inputs, the same projector."""
    x, count = randn(8, 4), torch.tensor(8.0, dtype=torch.float64)
    close(curvature((100 * x).T @ (100 * x), count, 0.1), curvature(x.T @ x, count, 0.1))


def test_accumulated_passes_are_one_batch():
    """Two backward passes of half the batch, each loss divided by two, step as the whole batch does."""
    model = Everything().double()
    twin = copy.deepcopy(model)
    whole, halves = (Retained(torch.optim.AdamW(m.parameters(), 0.1), m, 0.1, 0.9) for m in (model, twin))
    for _ in range(2):
        ids, targets = batch()
        learn(whole, language_loss(model, (ids, targets)))
        halves.zero_grad()
        for row in range(2):
            (language_loss(twin, (ids[row], targets[row])) / 2).backward()
        halves.step()
    close(named(twin.state_dict()), named(model.state_dict()), 1e-7)  # AdamW divides by small gradients


def test_observing_teaches_nothing_and_counts_at_once():
    """A sample moves no parameter; the next step is held back by it, without waiting for the period; pausing adds nothing."""
    layer = nn.Linear(5, 2, bias=False).double()
    optimizer = Retained(torch.optim.SGD(layer.parameters(), 1.0), layer, 0.1, period=100)
    pieces, before = [randn(4, 5) for _ in range(3)], layer.weight.detach().clone()
    for sample in pieces[:2]:
        with optimizer.observe(), torch.no_grad():
            layer(sample)
        same(layer.weight, before)
    with optimizer.pause():
        learn(optimizer, layer(pieces[2]).sum())
    gradient = torch.ones(4, 2, dtype=torch.float64).T @ pieces[2]
    first = before - gradient @ projector(torch.cat(pieces[:2]), 0.1)
    close(layer.weight, first)
    with optimizer.observe():
        layer(pieces[2])
    optimizer.remove()
    learn(optimizer, layer(pieces[2]).sum())
    close(layer.weight, first - gradient @ projector(torch.cat(pieces), 0.1))


def test_it_resumes_where_it_stopped():
    """Saved between two factorisations and loaded into a new model, it goes on bit for bit."""
    model = Everything()

    def wrap(m):
        return Retained(torch.optim.AdamW(m.parameters(), 0.1), m, 0.1, forgetting=0.9, period=3)

    optimizer = wrap(model)
    examples = [batch() for _ in range(9)]
    for example in examples[:5]:
        learn(optimizer, language_loss(model, example))
    twin = copy.deepcopy(model)
    resumed = wrap(twin)
    saved = copy.deepcopy(optimizer.state_dict())
    resumed.load_state_dict(saved)
    for m, o in ((model, optimizer), (twin, resumed)):
        for example in examples[5:]:
            learn(o, language_loss(m, example))
    same(named(twin.state_dict()), named(model.state_dict()))
    differ(saved["retained"]["memories"]["head"]["seen"], resumed.state_dict()["retained"]["memories"]["head"]["seen"])


def test_it_stands_behind_schedulers_scalers_and_our_own():
    """A scheduler moves the rate of the optimiser inside; DGD inside collects inputs of its own and agrees with DGD alone."""
    model = Everything().double()
    twin = copy.deepcopy(model)
    ours = Retained(DGD(layer_groups(model), model, 0.5), model, damping=1e14)
    theirs = DGD(layer_groups(twin), twin, 0.5)
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (ours, theirs)]
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for _ in range(3):
        example = batch()
        ours.zero_grad()
        scaler.scale(language_loss(model, example)).backward()
        scaler.step(ours)
        scaler.update()
        learn(theirs, language_loss(twin, example))
        for scheduler in schedulers:
            scheduler.step()
    assert ours.optimizer.param_groups[0]["lr"] == 0.0625
    close(named(model.state_dict()), named(twin.state_dict()), 1e-10)


def test_what_is_protected_is_told():
    """Layers' weights and biases, not norms, and not what the optimiser does not move; a new group joins them."""
    model = Everything()
    optimizer = Retained(torch.optim.SGD([model.head.weight, model.norm.weight], 0.1), model)
    assert optimizer.protected == ["head.weight"] and optimizer.unprotected == ["norm.weight"]
    optimizer.add_param_group({"params": model.conv.parameters()})
    assert optimizer.protected == ["conv.weight", "conv.bias", "head.weight"]
    assert "unprotected: norm.weight" in repr(optimizer) and "SGD" in repr(optimizer)
    part = Retained(torch.optim.SGD(model.parameters(), 0.1), model.conv)
    assert part.protected == ["weight", "bias"]


def test_hooks_go_with_the_wrapper():
    """`with`, or no reference left."""
    layer = nn.Linear(3, 2)
    with Retained(torch.optim.SGD(layer.parameters(), 0.1), layer):
        assert layer._forward_hooks
    assert not layer._forward_hooks and not layer.weight._backward_hooks
    gc.disable()
    try:
        optimizer = Retained(torch.optim.SGD(layer.parameters(), 0.1), layer)
        assert layer._forward_hooks
        del optimizer
        assert not layer._forward_hooks
    finally:
        gc.enable()


def test_inputs_that_are_not_finite_are_not_remembered():
    """They would be for ever; what comes after them is held back as if they had never come."""
    layer, x = nn.Linear(3, 2, bias=False).double(), randn(4, 3)
    optimizer = Retained(torch.optim.SGD(layer.parameters(), 1.0), layer, 0.1)
    with optimizer.observe():
        layer(torch.full((5, 3), torch.inf, dtype=torch.float64))
    before = layer.weight.detach().clone()
    learn(optimizer, layer(x).sum())
    close(layer.weight, before - torch.ones(4, 2, dtype=torch.float64).T @ x @ projector(x, 0.1))


def test_low_precision_weights_have_an_exact_memory():
    """In bfloat16 the memory is float32, and the weights keep their type."""
    layer = nn.Linear(4, 3).bfloat16()
    optimizer = Retained(torch.optim.SGD(layer.parameters(), 0.1), layer, 1e-3)
    before = layer.weight.detach().clone()
    learn(optimizer, layer(torch.randn(5, 4).bfloat16()).sum())
    assert layer.weight.dtype == torch.bfloat16
    differ(layer.weight.float(), before.float())
    assert optimizer.state_dict()["retained"]["memories"][""]["seen"].dtype == torch.float32


def test_bad_input_is_refused():
    """Every message says what was given and what to do, and a refused step moves nothing."""
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    sgd = torch.optim.SGD(layer.parameters(), 0.1)
    for bad, match in (
        ({"damping": 0.0}, "damping=0.0"),
        ({"forgetting": 0.0}, "forgetting=0.0"),
        ({"period": 0}, "period=0"),
    ):
        with pytest.raises(ValueError, match=match):
            Retained(sgd, layer, **bad)
    with pytest.raises(ValueError, match="moves no linear"):
        Retained(sgd, nn.Linear(3, 2))
    tied = nn.ModuleList([nn.Sequential(OrderedDict(embedding=nn.Embedding(7, 4))), nn.Linear(4, 7)])
    tied[1].weight = tied[0].embedding.weight
    with pytest.raises(ValueError, match="share one weight"):
        Retained(torch.optim.SGD(tied.parameters(), 0.1), tied)

    optimizer, before = Retained(sgd, layer), layer.weight.detach().clone()
    F.linear(x, layer.weight).sum().backward()
    with pytest.raises(ValueError, match="inputs were never seen"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"load it into `.optimizer`"):
        optimizer.load_state_dict(sgd.state_dict())
    other = Retained(torch.optim.SGD(tied.parameters(), 0.1), tied[0])
    with pytest.raises(ValueError, match=r"this state protects \['embedding'\]"):
        optimizer.load_state_dict(other.state_dict())
    optimizer.zero_grad()
    hopeless = Retained(sgd, layer, damping=1e-30)
    layer(x[:1]).sum().backward()
    with pytest.raises(ValueError, match="use more damping"):
        hopeless.step()
    same(layer.weight, before)
