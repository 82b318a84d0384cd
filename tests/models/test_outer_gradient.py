"""What training sees of the inner updates: all of it, none of it, or constants; by finite differences and by hand."""

import weakref
from dataclasses import replace
from unittest import mock

import pytest
import torch

from nestling.levels import Level, StepOf, effective
from nestling.memory import RetainSeen
from nestling.models import HopeConfig, segment
from nestling.ops.state import tree_map
from tests.helpers import close, differ, gradients, named, same
from tests.tiny import PERIOD, SLOW, config, knowledge, model, read, text

L = 27
CLIPPED = [Level(PERIOD, lr=0.3, clip=0.5, reset=0.9), replace(SLOW, clip=0.7)]
MODELS = {
    "hope": {},
    "hope-sequential": {},
    "hope-attention": {},
    "hope-low-rank": {},
    "hope-delta": {},
    "hope-nested": {},
    "hope-independent": {},
    "gpt2": {"window": 30},
    "phi": {"window": 30, "assign": "mlp", "form": "superposed", "levels": CLIPPED},
}
every_model = pytest.mark.parametrize("name", MODELS)


def meta(name, outer="second-order", **changes):
    return model(name, **{**MODELS[name], "outer_gradient": outer, **changes})


def loss(net, ids, sizes=(L,), lessons=None):
    """The mean loss of what was read, in calls of `sizes`; levels learn `lessons`, or the text."""
    cache, total = None, 0.0
    for piece, taught in zip(
        *((ids if t is None else t).split(list(sizes), dim=1) for t in (ids, lessons)), strict=True
    ):
        out = net(piece, past_key_values=cache, use_cache=True, lessons=taught)
        cache = out.past_key_values
        total = total + out.logits.log_softmax(-1).gather(2, piece.roll(-1, 1)[..., None]).mean()
    return total


@torch.no_grad()
def at_distance(parameters, way, distance, function):
    """The value of a function with every parameter moved along its way."""
    before = {n: p.clone() for n, p in parameters.items()}
    for n, d in way.items():
        parameters[n].add_(distance * d)
    value = function()
    for n, p in before.items():
        parameters[n].copy_(p)
    return value


@every_model
@pytest.mark.parametrize("sizes", [(L,), (4, 9, 14)], ids=str)
def test_second_order_is_the_derivative(name, sizes):
    """Central differences of the outer loss along random directions of the initial weights, those that levels move and all."""
    net, ids = meta(name), text(2, L)
    moved = {name for names in net.moves for name in names}
    parameters = {n: p for n, p in net.named_parameters() if p.requires_grad}
    found = dict(zip(parameters, torch.autograd.grad(loss(net, ids, sizes), parameters.values()), strict=True))
    generator, step = torch.Generator().manual_seed(0), 1e-5
    inside = {n for n in parameters if any(n.endswith(m) for m in moved)}
    assert inside
    for names in (inside, set(parameters)):
        way = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in parameters.items() if n in names}
        ends = {at: at_distance(parameters, way, at * step, lambda: loss(net, ids, sizes)) for at in (-2, -1, 1, 2)}
        difference = (8 * (ends[1] - ends[-1]) - (ends[2] - ends[-2])) / (12 * step)  # of fourth order
        expected = sum((found[n] * d).sum() for n, d in way.items())
        torch.testing.assert_close(difference, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sizes", [(L,), (3, 8, 16)], ids=str)
def test_second_order_goes_through_what_was_taught(sizes):
    """Lessons in place of the text, whole periods without one: the derivative is exact, in one call and in several."""
    net, ids = meta("hope-attention"), text(2, L)
    lessons, parameters = text(2, L, seed=1), dict(net.named_parameters())
    lessons[:, ::3], lessons[0, PERIOD + 1 : 2 * PERIOD + 1] = -100, -100
    found = torch.autograd.grad(loss(net, ids, sizes, lessons), parameters.values())
    differ(list(found), list(torch.autograd.grad(loss(net, ids, sizes), parameters.values())), least=1e-4)
    generator, step = torch.Generator().manual_seed(0), 1e-5
    way = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in parameters.items()}
    ends = [at_distance(parameters, way, at * step, lambda: loss(net, ids, sizes, lessons)) for at in (-2, -1, 1, 2)]
    expected = sum((slope * d).sum() for slope, d in zip(found, way.values(), strict=True))
    difference = (8 * (ends[2] - ends[1]) - (ends[3] - ends[0])) / (12 * step)
    torch.testing.assert_close(difference, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["hope-attention", "hope-nested", "hope-low-rank", "gpt2"])
def test_rows_of_any_length_have_the_exact_gradient(name):
    """A ragged batch, in two calls: the gradient of the sum of its rows, each read alone."""
    net, lengths, split = meta(name), (L, 15, 4), 13
    ids, parameters = text(3, L), list(net.parameters())
    mask = (torch.arange(L) < torch.tensor(lengths)[:, None]).long()
    cache, total = None, 0.0
    for place in (slice(0, split), slice(split, L)):
        out = net(ids[:, place], attention_mask=mask[:, place], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        total = total + (out.logits.tanh() * mask[:, place, None]).sum()
    alone = sum(net(row[None, :length]).logits.tanh().sum() for row, length in zip(ids, lengths, strict=True))
    found, expected = (torch.autograd.grad(x, parameters, allow_unused=True) for x in (total, alone))
    for mine, theirs in zip(found, expected, strict=True):
        size = theirs.abs().max() if theirs is not None else 0.0
        assert theirs is None or (mine - theirs).abs().max() <= (1e-9 if name.startswith("hope") else 1e-5) * (1 + size)


def constant(memory, *what):
    """`gather` for which what a segment taught and showed is a constant."""
    return gather(memory, *tree_map(torch.Tensor.detach, what))


gather = segment.gather


@every_model
def test_first_order_is_second_order_with_the_inner_gradient_detached(name):
    """And it is another gradient than the exact one, of the same outputs."""
    ids = text(2, L)
    first, second = meta(name, "first-order"), meta(name)
    ones, twos = list(first.parameters()), list(second.parameters())
    expected = gradients(first(ids).logits, ones)
    differ(gradients(second(ids).logits, twos), expected, least=1e-4)
    with mock.patch.object(segment, "gather", constant):
        found = gradients(second(ids).logits, twos)
    close(found, expected, tolerance=1e-9 if name.startswith("hope") else 1e-5)  # gpt2 and phi attend in float32
    close(second(ids).logits.detach(), first(ids).logits.detach(), tolerance=1e-9 if name.startswith("hope") else 1e-5)


@every_model
def test_none_reaches_what_no_level_moves(name):
    """Of the weights that levels move nothing; of the others what a model has whose moved weights are constants."""
    changes = {"learnt": "mlp"} if name in ("hope-attention", "hope-low-rank", "hope-recall") else {}
    net, ids = meta(name, "none", recall=None, **changes), text(2, 20)
    parameters = dict(net.named_parameters())
    fixed = [
        n for n in parameters if any(n.endswith(moved) for moved in net.learnable_weights() if moved in net.moves[0])
    ]
    found = dict(zip(parameters, gradients(net(ids).logits, list(parameters.values())), strict=True))
    weights, mixers, outputs = net.learnable_weights(), net.begin(2), []
    for start in range(0, 20, PERIOD):
        memory = read(net, ids[:, : start + 1])[1].memory
        now = {**weights, **{n: w.detach() for n, w in effective(memory, weights).items()}}
        logits, _, mixers = net.run(now, ids[:, start : start + PERIOD], mixers, None)
        outputs.append(logits)
    expected = gradients(torch.cat(outputs, 1), list(parameters.values()))
    tolerance = 1e-9 if name.startswith("hope") else 1e-5
    close(found, dict(zip(parameters, expected, strict=True)), tolerance=tolerance)
    largest = max(slope.abs().max() for slope in found.values())
    assert fixed and all(found[n].abs().max() < 1e-12 * largest for n in fixed)


@every_model
def test_no_outer_gradient_changes_what_is_said(name):
    """Logits and memory are one whatever training would see, and recording a graph changes no bit."""
    ids, found = text(2, L), []
    for outer in ("second-order", "first-order", "none"):
        net = meta(name, outer)
        logits, cache = read(net, ids)
        same(net(ids).logits.detach(), logits)
        found.append((logits, knowledge(cache)))
    for other in found[1:]:
        close(other, found[0], tolerance=1e-9 if name.startswith("hope") else 1e-5)


def bytes_saved(net, ids):
    """What the graph of a reading still holds when it is over, each tensor once."""
    held = weakref.WeakSet()

    def keep(tensor):
        tensor = tensor.view_as(tensor)  # of its own, so that it goes when the graph does
        held.add(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = net(ids)
    assert out.logits.requires_grad
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}.values())


def test_the_graph_of_a_segment_is_not_kept():
    """Each further segment costs the state it started from, a fraction of the graph through its inner gradient."""
    net = meta("hope-attention", levels=[Level(60, lr=0.3)], learnt="mlp")
    short, long = text(1, 3 * 60 + 1), text(1, 7 * 60 + 1)
    kept = bytes_saved(net, long) - bytes_saved(net, short)
    with mock.patch.object(segment, "recompute", lambda function, inputs, _: function(inputs)):
        whole = bytes_saved(net, long) - bytes_saved(net, short)
    assert kept < 0.25 * whole


def test_truncated_backpropagation_is_bounded():
    """`cache.detach()` cuts the levels' past as well as the session's."""
    net, ids = meta("hope-attention"), text(2, L)
    cache = net(ids, use_cache=True).past_key_values
    assert any(t.requires_grad for t in named(cache.memory).values())
    cache.detach()
    assert not any(t.requires_grad for t in named((cache.memory, cache.session)).values())


def test_meta_learning_learns_to_learn():
    """A few outer steps on a phrase that repeats: the loss after learning falls, by the exact gradient."""
    net, ids = meta("hope-attention"), text(4, 7).repeat(1, 4)
    optimizer, losses = torch.optim.Adam(net.parameters(), lr=3e-3), []
    for _ in range(8):
        out = net(ids, labels=ids)
        losses.append(out.loss.item())
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.05


def test_what_has_no_gradient_raises():
    """An optimiser's step has no gradient, and the modes are three."""
    levels = [Level(PERIOD, lr=0.1, rule=StepOf("DeltaMomentum"))]
    with pytest.raises(ValueError, match=r"does not go through the step of an optimiser.*'first-order'"):
        HopeConfig(levels=levels, outer_gradient="second-order")
    with pytest.raises(ValueError, match=r"outer_gradient='third' is unknown; choose 'second-order' or"):
        config("hope", outer_gradient="third")
    with pytest.raises(ValueError, match="does not go through"):
        model("llama", levels=levels, outer_gradient="second-order")


def test_retention_is_differentiated_through():
    """The second moments that `RetainSeen` divides by depend on the weights, too: without them the gradient is another."""
    levels = [Level(PERIOD, lr=0.5, rule=RetainSeen(0.1))]
    net, ids = meta("hope-attention", levels=levels), text(2, L)
    parameters = list(net.parameters())

    def unseen(memory, slopes, seen, *counts):
        return gather(memory, slopes, tree_map(torch.Tensor.detach, seen), *counts)

    whole = gradients(net(ids).logits, parameters)
    with mock.patch.object(segment, "gather", unseen):
        differ(gradients(net(ids).logits, parameters), whole, least=1e-4)
