"""Baselines of online adaptation: what each must be in its limit, and what sets it apart beyond."""

import copy

import pytest
import torch
from torch.nn import functional as F

from nestling.continual.baselines import (
    DynamicEvaluation,
    ElasticWeights,
    FineTuning,
    Follower,
    LoRA,
    Replay,
    merge,
    root_mean_squares,
)
from nestling.continual.baselines.method import apart, moving
from nestling.continual.baselines.replay import Buffer, narrowest
from nestling.continual.baselines.squares import mean_squares, of_the_model, of_the_text
from tests import tiny
from tests.helpers import close, same
from tests.tiny import PERIOD, VOCAB

LR = 0.1


def sgd(weights):
    return torch.optim.SGD(weights, lr=LR)


def adamw(weights):
    return torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.0)


SGD = FineTuning(sgd)
OLD = torch.randint(0, VOCAB, (80,), generator=torch.Generator().manual_seed(1))
STREAM = torch.randint(0, VOCAB, (45,), generator=torch.Generator().manual_seed(2))

LIMITS = {
    "dynamic evaluation without decay": DynamicEvaluation(LR, decay=0.0),
    "EWC without strength": ElasticWeights(SGD, strength=0.0, length=PERIOD),
    "replay of nothing": Replay(SGD, size=0, length=PERIOD),
}
METHODS = {
    "SGD": SGD,
    "LoRA": LoRA(FineTuning(adamw), rank=2),
    "dynamic evaluation": DynamicEvaluation(LR, decay=0.1),
    "dynamic evaluation, RMS": DynamicEvaluation(LR, 0.1, root_mean_squares(PERIOD), epsilon=0.1),
    "EWC": ElasticWeights(SGD, strength=0.3, length=PERIOD),
    "replay": Replay(SGD, size=100, length=PERIOD),
}


@pytest.fixture(scope="module", params=["hope", "hope-attention"])
def model(request):
    return tiny.model(request.param)


def follow(model, method):
    """The losses of the stream, and where the weights are after it."""
    follower = Follower(model, method, PERIOD, OLD)
    return follower.observe(STREAM), follower


def weights(follower):
    return [weight.detach() for weight in follower.model.parameters()]


@pytest.mark.parametrize("name", LIMITS)
def test_in_the_limit_it_is_sgd(model, name):
    """Losses and every weight, but for rounding: a term that is zero is added in another order."""
    expected, plain = follow(model, SGD)
    losses, follower = follow(model, LIMITS[name])
    close(losses, expected, 1e-12)
    close(tuple(weights(follower)), tuple(weights(plain)), 1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_it_begins_as_the_model_and_leaves_the_model_alone(model, name):
    """Nothing is moved before the first chunk; only the follower's copy ever is; twice the same is the same."""
    before = copy.deepcopy(model.state_dict())
    follower = Follower(model, METHODS[name], PERIOD, OLD)
    assert torch.equal(follower.evaluate(STREAM), Follower(model, SGD, PERIOD).evaluate(STREAM))
    losses, first = follow(model, METHODS[name])
    again, second = follow(model, METHODS[name])
    assert torch.equal(losses, again)
    same(weights(first), weights(second))
    assert not torch.equal(first.evaluate(STREAM), follower.evaluate(STREAM))
    same(model.state_dict(), before)


@pytest.mark.parametrize("name", METHODS)
def test_a_prediction_is_made_before_its_token_is_learnt(model, name):
    """Another token changes no loss before it."""
    changed = STREAM.clone()
    changed[30] = (changed[30] + 1) % VOCAB
    losses, _ = follow(model, METHODS[name])
    found = Follower(model, METHODS[name], PERIOD, OLD).observe(changed)
    assert torch.equal(found[:29], losses[:29]) and not torch.equal(found[36:], losses[36:])


@pytest.mark.parametrize("name", METHODS)
def test_a_stream_goes_on_in_a_second_call(model, name):
    """Cut where a chunk ends, two calls are one."""
    whole, one = follow(model, METHODS[name])
    follower = Follower(model, METHODS[name], PERIOD, OLD)
    cut = 3 * PERIOD + 1
    losses = torch.cat([follower.observe(STREAM[:cut]), follower.observe(STREAM[cut:])])
    assert torch.equal(losses, whole)
    same(weights(follower), weights(one))


def test_lora_moves_only_its_pairs_and_merges_to_the_same_function(model):
    """The weights of the model stay; a merged model has no pairs, and the same logits."""
    _, follower = follow(model, METHODS["LoRA"])
    tuned = follower.model
    start = dict(model.named_parameters())
    for name, weight in tuned.named_parameters():
        if not weight.requires_grad:
            assert torch.equal(weight, start[name.replace("parametrizations.weight.original", "weight")])
    pairs = sum(weight.numel() for weight in moving(tuned))
    maps = [m for m in model.model.stack.layers.modules() if isinstance(m, torch.nn.Linear)]
    assert pairs == sum(2 * (m.in_features + m.out_features) for m in maps)
    expected = follower.evaluate(STREAM)
    merge(tuned)
    assert {name for name, _ in tuned.named_parameters()} == set(start)
    assert any(not torch.equal(weight, start[name]) for name, weight in tuned.named_parameters())
    close(follower.evaluate(STREAM), expected)


def test_decay_and_strength_hold_the_weights_to_their_start(model):
    """More of either, and the stream moves them less."""
    start = list(model.parameters())

    def moved(method):
        _, follower = follow(model, method)
        return sum((a - b).square().sum().item() for a, b in zip(weights(follower), start, strict=True))

    distances = [moved(DynamicEvaluation(LR, decay)) for decay in (0.0, 0.1, 0.5)]
    assert distances == sorted(distances, reverse=True)
    distances = [moved(ElasticWeights(SGD, strength, PERIOD)) for strength in (0.0, 1.0, 4.0)]
    assert distances == sorted(distances, reverse=True)


def test_a_step_of_dynamic_evaluation_is_its_equation(model):
    """`w - lr g / (s + e) + min(decay s, 1) (w_0 - w)`, from one gradient that no clip reaches."""
    method = DynamicEvaluation(LR, 0.4, root_mean_squares(PERIOD), epsilon=0.1, clip=1e9)
    follower = Follower(model, method, PERIOD, OLD)
    start, scales = follower.state.start, follower.state.scales
    entries = torch.cat([scale.flatten() for scale in scales])
    assert entries.mean().item() == pytest.approx(1.0)
    assert entries.max() > 2.5  # some weights go all the way back
    with torch.no_grad():
        for weight in moving(follower.model):
            weight.add_(0.01)
    before = [weight.detach().clone() for weight in moving(follower.model)]
    gradients = torch.autograd.grad(apart(follower.model, STREAM[:7]), moving(follower.model))
    method.step(follower.model, follower.state, STREAM[:7], apart(follower.model, STREAM[:7]))
    for w, w0, g, s, found in zip(before, start, gradients, scales, moving(follower.model), strict=True):
        close(found.detach(), w - LR * g / (s + 0.1) + (0.4 * s).clamp(max=1.0) * (w0 - w))


def test_squares_are_those_of_single_chunks(model):
    """Against one backward a chunk, by the text's own labels."""
    found = mean_squares(model, OLD, 20, of_the_text)
    expected = [torch.zeros_like(weight) for weight in model.parameters()]
    for chunk in OLD.view(4, 20):
        gradients = torch.autograd.grad(apart(model, chunk), list(model.parameters()), allow_unused=True)
        for total, gradient in zip(expected, gradients, strict=True):
            total += 0 if gradient is None else gradient.square() / 4
    close(found, expected)


def test_labels_of_the_model_make_the_fisher_information():
    """One weight vector of logits: the mean square of drawn labels' gradients is `p (1 - p)` over the tokens."""
    logits = torch.tensor([0.5, -1.0, 0.2]).repeat(20_000, 1)
    drawn = F.one_hot(of_the_model(0)(logits, torch.zeros(len(logits), dtype=torch.int64)), 3).double()
    p = logits[0].double().softmax(0)
    torch.testing.assert_close((p - drawn).square().mean(0), p * (1 - p), atol=5e-3, rtol=0)


def test_a_reservoir_keeps_everything_met_with_the_same_probability():
    """10 chunks into 3 places, 3000 times: each is kept in three tenths of them."""
    generator, kept = torch.Generator().manual_seed(0), torch.zeros(10)
    for _ in range(3000):
        buffer = Buffer(torch.empty(0, 1, dtype=torch.uint8), capacity=3)
        for i in range(10):
            buffer = buffer.add(torch.tensor([i]), generator)
        assert len(buffer.chunks) == 3
        kept[buffer.chunks[:, 0].long()] += 1
    torch.testing.assert_close(kept / 3000, torch.full((10,), 0.3), atol=0.04, rtol=0)


def test_a_buffer_stays_within_its_bytes(model):
    """One byte a token for this vocabulary; it holds old and read chunks."""
    _, follower = follow(model, METHODS["replay"])
    chunks = follower.state.buffer.chunks
    assert chunks.dtype == torch.uint8 and 100 - (PERIOD + 1) < chunks.nbytes <= 100
    assert follower.state.buffer.met == len(OLD) // (PERIOD + 1) + (len(STREAM) - 1) // PERIOD
    plain = follow(model, SGD)[1].own_bytes()
    assert follower.own_bytes() == plain + chunks.nbytes
    assert [narrowest(n) for n in (256, 257, 40_000)] == [torch.uint8, torch.int16, torch.int32]


def test_what_is_a_users_own(model):
    """Fine-tuning a copy of the weights, AdamW two more and its counters, LoRA little."""
    plain, adam, lora = (follow(model, m)[1].own_bytes() for m in (SGD, FineTuning(adamw), METHODS["LoRA"]))
    counters = 4 * len(list(model.parameters()))
    assert plain == sum(weight.nbytes for weight in model.parameters())
    assert 3 * plain - counters < adam + counters <= 3 * plain + 2 * counters
    assert lora < adam


def test_a_method_says_what_it_lacks(model):
    """No sample of the old domain, no rank."""
    with pytest.raises(ValueError, match="sample of the old domain has 0 tokens; give at least 6"):
        Follower(model, METHODS["EWC"], PERIOD)
    with pytest.raises(ValueError, match="rank=0 must be at least 1"):
        LoRA(SGD, rank=0)
