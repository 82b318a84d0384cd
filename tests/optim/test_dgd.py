"""DGD (Eq. 56-57): its average over tokens, its limit, what it owes to training loops. Its argmin: `tests/identities/test_descent.py`."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nestling.optim.dgd import DGD, layer_groups
from tests.helpers import close, differ, named, randn, same

EXACT = 1e-12


def transcription(weight, xs, us, eta, c=1.0):
    """The average over tokens of `W (I - c eta' x x^T) - eta' u x^T`, one token after the other."""
    total = torch.zeros_like(weight)
    for x, u in zip(xs, us, strict=True):
        rate = eta / (1 + c * eta * (x @ x))
        total += weight @ (torch.eye(len(x)) - c * rate * torch.outer(x, x)) - rate * torch.outer(u, x)
    return total / len(xs)


def regression(outputs, targets):
    """The mean over tokens of 1/2 |y - v|^2; the surprise of a token is y - v."""
    return 0.5 * (outputs - targets).square().sum(-1).mean()


def step(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_the_paper_s_objective_is_an_erasure_of_one():
    """`1/2 |V x + u|^2` and `<V x, u> + 1/2 |V x|^2` differ by a constant: a step lowers Eq. 56 more than any nearby weight."""
    layer, x, v, eta = nn.Linear(4, 3, bias=False).double(), randn(1, 4), randn(1, 3), 0.7
    before = layer.weight.detach().clone()
    u = (layer(x) - v).detach()
    step(DGD(layer.parameters(), layer, lr=eta), regression(layer(x), v))

    def objective(w):
        return 0.5 * (x @ w.T + u).square().sum() + (w - before).square().sum() / (2 * eta)

    best = objective(layer.weight.detach())
    assert all(objective(layer.weight.detach() + 1e-3 * randn(3, 4)) > best for _ in range(50))


@pytest.mark.parametrize("c", [0.25, 1.0])
def test_a_batch_is_the_average_of_its_tokens(c):
    """Each token with its own `eta'`, against the loop over tokens; two dimensions of tokens are as good as one."""
    layer, x, v = nn.Linear(4, 3, bias=False).double(), randn(2, 5, 4) * 3, randn(2, 5, 3)
    before = layer.weight.detach().clone()
    us = (layer(x) - v).detach().reshape(-1, 3)
    step(DGD(layer.parameters(), layer, lr=0.4, erasure=c), regression(layer(x), v))
    close(layer.weight, transcription(before, x.reshape(-1, 4), us, 0.4, c), EXACT)


def test_a_convolution_learns_from_its_patches():
    """Against the loop over places of a convolution with two groups, whose weight is two matrices."""
    layer, x = nn.Conv1d(4, 6, 2, groups=2, stride=2, bias=False).double(), randn(3, 4, 6)
    before = layer.weight.detach().clone()
    v, optimizer = randn(3, 6, 3), DGD(layer.parameters(), layer, lr=0.4)
    y = layer(x)
    us = (y - v).detach()
    step(optimizer, 0.5 * (y - v).square().sum() / 9)
    for g in range(2):
        patches = [x[b, 2 * g : 2 * g + 2, 2 * p : 2 * p + 2].reshape(-1) for b in range(3) for p in range(3)]
        surprise = [us[b, 3 * g : 3 * g + 3, p] for b in range(3) for p in range(3)]
        expected = transcription(before[3 * g : 3 * g + 3].reshape(3, 4), patches, surprise, 0.4)
        close(layer.weight[3 * g : 3 * g + 3].reshape(3, 4), expected, EXACT)


def test_an_embedding_is_a_linear_layer_on_one_hot_tokens():
    """The same step as that of the linear layer; padding is no token there."""
    ids, v = torch.tensor([[1, 1, 2], [3, 1, 1]]), randn(2, 3, 3)
    table = nn.Embedding(6, 3, padding_idx=0).double()
    linear = nn.Linear(6, 3, bias=False).double()
    linear.weight.data = table.weight.data.T.clone()
    step(DGD(linear.parameters(), linear, lr=0.6), regression(linear(F.one_hot(ids, 6).double()), v))
    padded = torch.cat([ids, torch.zeros(2, 4, dtype=torch.int64)], dim=1)
    step(DGD(table.parameters(), table, lr=0.6), regression(table(padded)[:, :3], v))
    close(table.weight, linear.weight.T, EXACT)


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


def batches(count=3):
    return torch.randint(7, (count, 2, 5)), torch.randint(7, (count, 2, 5))


def language_loss(model, ids, targets):
    return F.cross_entropy(model(ids).flatten(0, -2), targets.flatten())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("maximize", [False, True])
def test_without_erasure_it_is_sgd(momentum, maximize):
    """`erasure=0` is torch's SGD, in groups of both rules."""
    model = Everything().double()
    twin = copy.deepcopy(model)
    ours = DGD(layer_groups(model), model, 0.3, erasure=0.0, momentum=momentum, maximize=maximize)
    theirs = torch.optim.SGD(twin.parameters(), 0.3, momentum=momentum, maximize=maximize)
    for ids, targets in zip(*batches(), strict=True):
        step(ours, language_loss(model, ids, targets))
        step(theirs, language_loss(twin, ids, targets))
    close(named(model.state_dict()), named(twin.state_dict()), EXACT)


def test_parameters_without_inputs_take_sgd():
    """In one step from the same weights, biases and norms move as SGD moves them, and no layer's weight does."""
    model = Everything().double()
    twin = copy.deepcopy(model)
    ids, targets = (batch[0] for batch in batches())
    step(DGD(layer_groups(model), model, 0.3, momentum=0.5), language_loss(model, ids, targets))
    step(torch.optim.SGD(twin.parameters(), 0.3, momentum=0.5), language_loss(twin, ids, targets))
    for name, p in model.named_parameters():
        if name in ("embedding.weight", "conv.weight", "head.weight"):
            differ(p, twin.get_parameter(name))
        else:
            same(p, twin.get_parameter(name))


def test_momentum_gathers_writes_and_not_erasures():
    """`m <- theta m + g'`, `W <- (1 - lr wd) W - lr (m + c W A)`, written out for two steps."""
    layer, x, v = nn.Linear(4, 3, bias=False).double(), randn(2, 6, 4), randn(2, 6, 3)
    eta, theta, c, decay = 0.3, 0.8, 0.5, 0.1
    optimizer = DGD(layer.parameters(), layer, eta, c, theta, weight_decay=decay)
    w, m = layer.weight.detach().clone(), torch.zeros(3, 4)
    for inputs, targets in zip(x, v, strict=True):
        share = 1 / (1 + c * eta * inputs.square().sum(-1, keepdim=True))
        m = theta * m + ((inputs @ w.T - targets) * share).T @ inputs / 6
        w = (1 - eta * decay) * w - eta * (m + c * w @ (inputs * share).T @ inputs / 6)
        step(optimizer, regression(layer(inputs), targets))
    close(layer.weight, w, EXACT)


@pytest.mark.parametrize("grad", [None, 0])
def test_accumulated_passes_are_one_batch(grad):
    """Two backward passes of half the batch, each loss divided by two, step as the whole batch does; twice in a row."""
    model = Everything().double()
    twin = copy.deepcopy(model)
    whole, halves = (DGD(layer_groups(m), m, 0.5, momentum=0.9) for m in (model, twin))
    for ids, targets in zip(*batches(2), strict=True):
        step(whole, language_loss(model, ids, targets))
        halves.zero_grad(set_to_none=grad is None)
        for row in range(2):
            (language_loss(twin, ids[row], targets[row]) / 2).backward()
        halves.step()
    close(named(twin.state_dict()), named(model.state_dict()), EXACT)


def test_two_losses_of_one_forward_pass_are_their_sum():
    """Two backward passes through one graph: gradients add, and the tokens are counted once."""
    layer, x = nn.Linear(4, 3).double(), randn(5, 4)
    twin = copy.deepcopy(layer)
    ours, theirs = (DGD(layer_groups(m), m, 0.5) for m in (layer, twin))
    y = layer(x)
    y.square().mean().backward(retain_graph=True)
    y.exp().mean().backward()
    ours.step()
    y = twin(x)
    step(theirs, y.square().mean() + y.exp().mean())
    close(layer.weight, twin.weight, EXACT)


@pytest.mark.parametrize("clear", ["optimizer", "optimizer, zeros", "model"])
def test_a_batch_whose_step_was_skipped_leaves_nothing(clear):
    """Gradients that are thrown away (a GradScaler's overflow) take their inputs along."""
    layer = nn.Linear(4, 3, bias=False).double()
    twin = copy.deepcopy(layer)
    ours, theirs = (DGD(m.parameters(), m, 0.5) for m in (layer, twin))
    (100 * layer(randn(9, 4)).sum()).backward()
    if clear == "model":
        layer.zero_grad()
    else:
        ours.zero_grad(set_to_none=clear == "optimizer")
    x, v = randn(5, 4), randn(5, 3)
    regression(layer(x), v).backward()
    ours.step()
    step(theirs, regression(twin(x), v))
    close(layer.weight, twin.weight, EXACT)


def test_what_loops_do_to_gradients_reaches_the_step():
    """A loss scaled by 8 and its gradient divided by 8, as GradScaler does; then a clipped gradient: both act on `.grad`."""
    layer, x, v = nn.Linear(4, 3, bias=False).double(), randn(5, 4), randn(5, 3)
    twin = copy.deepcopy(layer)
    ours, theirs = (DGD(m.parameters(), m, 0.5) for m in (layer, twin))
    (8 * regression(layer(x), v)).backward()
    layer.weight.grad /= 8
    ours.step()
    step(theirs, regression(twin(x), v))
    close(layer.weight, twin.weight, EXACT)

    ours.zero_grad()
    regression(layer(x), v).backward()
    nn.utils.clip_grad_norm_(layer.parameters(), 0.0)
    before = layer.weight.detach().clone()
    ours.step()
    share = 1 / (1 + 0.5 * x.square().sum(-1, keepdim=True))
    close(layer.weight, before - 0.5 * before @ (share * x).T @ x / 5, EXACT)


def test_erasure_is_a_contraction():
    """Without a gradient, no step size makes any weight larger, whatever the inputs (exact `eta'`; `eta` itself would)."""
    for eta in (0.01, 1.0, 1e4):
        layer = nn.Linear(4, 3, bias=False).double()
        before = torch.linalg.matrix_norm(layer.weight.detach(), 2)
        step(DGD(layer.parameters(), layer, eta), 0 * layer(10 * randn(20, 4)).sum())
        assert torch.linalg.matrix_norm(layer.weight.detach(), 2) < before


def test_a_closure_is_called_and_its_loss_returned():
    """The forward and backward pass may happen inside `step`."""
    layer, x, v = nn.Linear(4, 3, bias=False).double(), randn(5, 4), randn(5, 3)
    twin = copy.deepcopy(layer)
    ours, theirs = (DGD(m.parameters(), m, 0.5) for m in (layer, twin))

    def closure():
        loss = regression(layer(x), v)
        loss.backward()
        return loss

    close(ours.step(closure), regression(twin(x), v), EXACT)
    step(theirs, regression(twin(x), v))
    close(layer.weight, twin.weight, EXACT)


def test_it_resumes_in_the_middle_of_an_accumulation():
    """Saved between two backward passes and loaded into a new model, it goes on bit for bit."""
    model = Everything()
    optimizer = DGD(layer_groups(model), model, 0.5, momentum=0.9)
    ids, targets = batches(3)
    step(optimizer, language_loss(model, ids[0], targets[0]))
    optimizer.zero_grad()
    language_loss(model, ids[1], targets[1]).backward()
    twin = copy.deepcopy(model)
    for p, q in zip(twin.parameters(), model.parameters(), strict=True):
        p.grad = q.grad.clone()
    resumed = DGD(layer_groups(twin), twin, 0.5, momentum=0.9)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for m, o in ((model, optimizer), (twin, resumed)):
        language_loss(m, ids[2], targets[2]).backward()
        o.step()
    same(named(twin.state_dict()), named(model.state_dict()))


def test_low_precision_weights_have_exact_sums():
    """In bfloat16 the step is the float32 step on the same weights, rounded once; its state is float32."""
    layer = nn.Linear(8, 4, bias=False).bfloat16()
    optimizer = DGD(layer.parameters(), layer, 0.5, momentum=0.9)
    x = torch.randn(6, 8).bfloat16()
    before = layer.weight.detach().clone()
    y = layer(x)
    u = torch.randn(6, 4).bfloat16()
    y.backward(u)
    gradient = layer.weight.grad.clone()
    optimizer.step()
    share = 1 / (1 + 0.5 * x.float().square().sum(-1, keepdim=True))
    moved = before.float() - 0.5 * (gradient.float() + before.float() @ (share * x.float()).T @ x.float() / 6)
    same(layer.weight, moved.bfloat16())
    state = optimizer.state[layer.weight]
    assert state["seen"].dtype == state["momentum"].dtype == torch.float32


def test_a_scheduler_moves_the_rate():
    """With a rate that is a number or a tensor, and another erasure for each group."""
    layer, twin = (nn.Linear(4, 3, bias=False).double() for _ in range(2))
    twin.load_state_dict(layer.state_dict())
    ours = DGD([{"params": layer.parameters(), "lr": 0.5, "erasure": 0.2}], layer, 9.0)
    theirs = DGD(twin.parameters(), twin, torch.tensor(0.5, dtype=torch.float64), 0.2)
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (ours, theirs)]
    w = layer.weight.detach().clone()
    for rate in (0.5, 0.25, 0.125):
        x, v = randn(5, 4), randn(5, 3)
        w = transcription(w, x, x @ w.T - v, rate, 0.2)
        for m, o, s in zip((layer, twin), (ours, theirs), schedulers, strict=True):
            step(o, regression(m(x), v))
            s.step()
    close(layer.weight, w, EXACT)
    close(twin.weight, w, EXACT)


def test_hooks_go_with_the_optimizer():
    """`with`, `remove`, or no reference left: the model's gradients are again its own."""
    layer, x = nn.Linear(4, 3, bias=False).double(), randn(5, 4)

    def gradient():
        layer.zero_grad()
        layer(x).sum().backward()
        return layer.weight.grad.clone()

    plain = gradient()
    with DGD(layer.parameters(), layer, 0.5):
        differ(gradient(), plain)
    same(gradient(), plain)
    gc.disable()
    try:
        optimizer = DGD(layer.parameters(), layer, 0.5)
        differ(gradient(), plain)
        del optimizer
        same(gradient(), plain)
    finally:
        gc.enable()


def test_who_takes_which_rule_is_told():
    """`layer_groups` names every parameter once, `plain` moves some over, and `repr` shows each group's rule."""
    model = Everything()
    names = {p: name for name, p in model.named_parameters()}
    told = [(group["rule"], {names[p] for p in group["params"]}) for group in layer_groups(model, plain=["embedding"])]
    rest = {"embedding.weight", "conv.bias", "norm.weight", "norm.bias", "head.bias"}
    assert told == [("dgd", {"conv.weight", "head.weight"}), ("sgd", rest)]
    text = repr(DGD(layer_groups(model), model, 0.1))
    assert "rule: dgd" in text and "rule: sgd" in text


def test_bad_input_is_refused():
    """Every message says what was given and what to do."""
    model = Everything()
    with pytest.raises(ValueError, match=r"conv.bias.*norm.weight.*rule=\"sgd\""):
        DGD(model.parameters(), model, 0.1)
    with pytest.raises(ValueError, match="not the model's"):
        DGD([nn.Parameter(torch.zeros(2, 3))], model, 0.1)
    with pytest.raises(ValueError, match="rule='adam'"):
        DGD([{"params": [model.head.weight], "rule": "adam"}], model, 0.1)
    for bad in ({"lr": -1.0}, {"erasure": -0.1}, {"momentum": 1.0}, {"weight_decay": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            DGD([model.head.weight], model, **{"lr": 0.1, **bad})
    optimizer = DGD([model.head.weight], model, 0.1)
    with pytest.raises(ValueError, match=r"norm\.bias"):
        optimizer.add_param_group({"params": [model.norm.bias]})
    assert len(optimizer.param_groups) == 1
    tied = nn.ModuleList([nn.Embedding(7, 4), nn.Linear(4, 7)])
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="share one weight"):
        layer_groups(tied)
    assert [len(group["params"]) for group in layer_groups(tied, plain=["0"])] == [2]


def test_a_weight_whose_inputs_were_not_seen_is_refused():
    """It was used outside of its layer, the step was repeated, or the rate was changed in between."""
    layer, x = nn.Linear(4, 3, bias=False), torch.randn(5, 4)
    optimizer = DGD(layer.parameters(), layer, 0.1)
    F.linear(x, layer.weight).sum().backward()
    with pytest.raises(ValueError, match="weight has a gradient, and its layer's inputs were not seen"):
        optimizer.step()
    step(optimizer, layer(x).sum())
    with pytest.raises(ValueError, match="not seen since the last step"):
        optimizer.step()
    optimizer.zero_grad()
    layer(x).sum().backward()
    optimizer.param_groups[0]["lr"] = 0.2
    with pytest.raises(ValueError, match=r"lr was 0.1 in the backward pass and is 0.2 now"):
        optimizer.step()


def test_sparse_gradients_are_refused():
    """As by every optimiser here."""
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = DGD(table.parameters(), table, 0.1)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match="sparse=False"):
        optimizer.step()
