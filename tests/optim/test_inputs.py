"""The inputs of layers: a convolution is a linear layer on its patches; hooks count what is learnt from, once."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from nestling.optim.inputs import Inputs, counts, layers_of, surprises, tokens
from tests.helpers import close, randn

LAYERS = {
    "linear": (lambda: nn.Linear(3, 4), (2, 5, 3)),
    "linear, one token": (lambda: nn.Linear(3, 4), (3,)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 7)),
    "conv1d, causal and depthwise": (lambda: nn.Conv1d(4, 4, 4, padding=3, groups=4), (2, 4, 7)),
    "conv1d, no batch": (lambda: nn.Conv1d(4, 6, 2, stride=2), (4, 7)),
    "conv2d": (lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 2, 6, 5)),
    "conv2d, groups and dilation": (lambda: nn.Conv2d(4, 6, 3, dilation=2, groups=2, padding="same"), (2, 4, 6, 5)),
    "conv2d, even kernel, same": (lambda: nn.Conv2d(2, 3, 2, padding="same"), (2, 2, 4, 5)),
    "conv2d, circular": (lambda: nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="circular"), (2, 2, 4, 5)),
    "conv2d, reflected": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 2, 4, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 4, (1, 2, 3), groups=2, padding=(0, 1, 1)), (2, 2, 3, 4, 3)),
}


class Owner:
    """Writes down what its hooks show it."""

    def __init__(self, model):
        self.learnt, self.observed = [], []
        self.inputs = Inputs(layers_of(model, model.parameters()), self.on_learnt, self.on_observed)

    def on_learnt(self, name, reading, gradient):
        self.learnt.append((name, reading.input, reading.surprise, gradient, reading.new))

    def on_observed(self, name, x):
        self.observed.append((name, x))

    @property
    def names(self):
        return [entry[0] for entry in self.learnt]


def chain():
    """Two linear layers."""
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_is_its_weight_times_its_tokens(kind):
    """The layer's output, token by token, is the weight as a matrix on `tokens`; and its gradient the sum of `u x^T`."""
    make, shape = LAYERS[kind]
    layer, x = make().double(), randn(*shape)
    y = layer(x)
    u = randn(*y.shape)
    y.backward(u)
    z, v = tokens(layer, x), surprises(layer, u)
    matrix = layer.weight.reshape(len(z), -1, z.shape[-1])
    bias = layer.bias.reshape(len(z), 1, -1)
    close(surprises(layer, y), z @ matrix.mT + bias)
    close((v.mT @ z).reshape(layer.weight.shape), layer.weight.grad)


def test_low_precision_is_summed_in_float32():
    """What comes out of bfloat16 inputs is float32."""
    layer = nn.Linear(3, 2).bfloat16()
    x = torch.randn(4, 3).bfloat16()
    assert tokens(layer, x).dtype == surprises(layer, layer(x)).dtype == torch.float32


def test_an_embedding_counts_its_rows():
    """The second moment of one-hot tokens is the diagonal of their counts; padding is no token."""
    ids = torch.tensor([[1, 1, 0], [2, 1, 0]])
    assert counts(nn.Embedding(4, 2), ids).tolist() == [2, 3, 1, 0]
    assert counts(nn.Embedding(4, 2, padding_idx=0), ids).tolist() == [0, 3, 1, 0]


def test_a_backward_pass_shows_input_surprise_and_gradient():
    """`gradient = surprise^T input` of every layer, before it is in `.grad`; an in-place layer behind changes nothing."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)).double()
    owner = Owner(model)
    model(randn(5, 3)).square().sum().backward()
    assert sorted(owner.names) == ["0", "2"]
    for name, x, surprise, gradient, new in owner.learnt:
        close(surprise.mT @ x, gradient)
        close(gradient, model[int(name)].weight.grad)
        assert new


def test_only_what_is_learnt_from_counts():
    """Without gradients, or without a backward pass, a forward pass is none; and it is no obstacle to the next."""
    model = chain()
    owner = Owner(model)
    with torch.no_grad():
        model(randn(2, 3))
    model(randn(2, 3))  # with a graph that is dropped at once
    assert owner.learnt == []
    model(randn(2, 3)).sum().backward()
    model(randn(2, 3)).sum().backward()
    assert sorted(owner.names) == ["0", "0", "2", "2"]


def test_two_backward_passes_of_one_forward_pass_are_told_apart():
    """The second gradient is shown, and its inputs are marked as known."""
    model = chain()
    owner = Owner(model)
    y = model(randn(2, 3))
    y.sum().backward(retain_graph=True)
    y.square().sum().backward()
    assert [entry[-1] for entry in owner.learnt] == [True, True, False, False]


class Doubling(Owner):
    """Returns twice the gradient."""

    def on_learnt(self, name, reading, gradient):
        return 2 * gradient


def test_what_the_owner_returns_is_the_gradient():
    """As for any hook of a tensor: what is accumulated is what the owner made of a weight's gradient."""
    model, x = chain(), randn(2, 3)
    plain = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    owner = Doubling(model)
    model(x).sum().backward()
    factors = [2, 1, 2, 1]  # weights, not biases
    close([p.grad for p in model.parameters()], [f * g for f, g in zip(factors, plain, strict=True)])
    owner.inputs.remove()


def test_a_layer_that_runs_twice_in_a_step_is_refused():
    """Its inputs would be those of two uses; the message names the layer and what to do, and the next step is not harmed."""
    model = chain()
    owner = Owner(model)
    with pytest.raises(ValueError, match=r"'2' ran 2 times in one step.*backward\(\) after each pass"):
        (model(randn(2, 3)) + model(randn(2, 3))).sum().backward()
    model(randn(2, 3)).sum().backward()
    assert sorted(owner.names) == ["0", "2"]


def test_a_backward_pass_that_stops_before_the_weight_is_none():
    """A gradient of activations alone (a penalty, say) is not learnt from, and the backward pass after it is seen once."""
    model, x = chain(), randn(2, 3, grad=True)
    owner = Owner(model)
    y = model(x).square().sum()
    torch.autograd.grad(y, x, retain_graph=True)
    assert owner.learnt == []
    y.backward()
    assert sorted(owner.names) == ["0", "2"] and all(entry[-1] for entry in owner.learnt)


def test_passes_with_a_backward_pass_each_may_overlap():
    """Two forward passes before the first backward pass are two readings, each with its own input."""
    model, x = chain(), randn(2, 2, 3)
    owner = Owner(model)
    first, second = model(x[0]).sum(), model(x[1]).sum()
    second.backward()
    first.backward()
    close([entry[1] for entry in owner.learnt if entry[0] == "0"], [x[1], x[0]])


def test_a_shared_weight_is_refused():
    """One weight under two layers has no input of its own; left out of the wanted weights, it is no matter."""
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "body": nn.Linear(3, 3), "head": nn.Linear(3, 5)})
    model["head"].weight = model["embedding"].weight
    with pytest.raises(ValueError, match="'embedding' and 'head' share one weight"):
        layers_of(model, model.parameters())
    assert list(layers_of(model, model["body"].parameters())) == ["body"]


def test_projections_that_never_run_are_no_layers():
    """`nn.MultiheadAttention` multiplies by its weights itself."""
    model = nn.TransformerEncoderLayer(4, 2, 8)
    assert list(layers_of(model, model.parameters())) == ["linear1", "linear2"]


@pytest.mark.parametrize("end", ["remove", "drop"])
def test_hooks_go(end):
    """With `remove`, or with their owner and without the garbage collector: then the model is as it was."""
    model = chain()
    gc.disable()
    try:
        owner = Owner(model)
        learnt = owner.learnt
        assert model[0]._forward_hooks and model[0].weight._backward_hooks
        if end == "remove":
            owner.inputs.remove()
        else:
            del owner
        assert not any(m._forward_hooks for m in model.modules())
        assert not any(p._backward_hooks for p in model.parameters())
        model(randn(2, 3)).sum().backward()
        assert learnt == []
    finally:
        gc.enable()


def test_other_weights_in_the_same_layers_are_not_watched():
    """A copy of the model carries the hooks along, `functional_call` puts other weights in: neither is this model."""
    model = chain()
    owner = Owner(model)
    copy.deepcopy(model)(randn(2, 3)).sum().backward()
    other = {name: randn(*p.shape, grad=True) for name, p in model.named_parameters()}
    functional_call(model, other, randn(2, 3)).sum().backward()
    assert owner.learnt == []
    model(randn(2, 3)).sum().backward()
    assert len(owner.learnt) == 2


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_layer_is_seen_once(reentrant):
    """Though it runs again in the backward pass."""
    model = chain()
    owner = Owner(model)
    x = randn(2, 3, grad=True)
    checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    assert sorted(owner.names) == ["0", "2"]
    close(dict(zip(owner.names, [e[1] for e in owner.learnt], strict=True))["0"], x)


def test_observing_sees_every_forward_pass_and_pausing_none():
    """With and without gradients; and a backward pass through what was observed is not learnt from."""
    model = chain()
    owner = Owner(model)
    x = randn(2, 3)
    with owner.inputs.observe():
        with torch.no_grad():
            model(x)
        y = model(x)
        model(x)  # twice is fine: these are inputs, not a step
    y.sum().backward()
    assert [name for name, _ in owner.observed] == ["0", "2"] * 3
    close(owner.observed[0][1], x)
    with owner.inputs.pause():
        model(x).sum().backward()
    assert owner.learnt == [] and len(owner.observed) == 6
