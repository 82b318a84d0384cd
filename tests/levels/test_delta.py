"""Delta gradient descent as the rule of a level: what is erased, and when. Its argmin: `tests/identities/test_descent.py`.

`x [N, IN]` a period's inputs, `u [N, OUT]` the gradients at the layer's output, `G = E u x^T`, `C = E x x^T`.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

from nestling.levels import Level, LevelOptimizer, effective, gather, initial, step
from nestling.memory import DeltaGradientDescent, GradientDescent
from nestling.models import HopeCache
from nestling.optim import DGD
from tests.helpers import close, differ, randn, same
from tests.tiny import PERIOD, model, read, text

B, IN, OUT, P, NAME = 3, 4, 2, 5, "w"
RULE, PRINTED = DeltaGradientDescent(), DeltaGradientDescent(exact=False)
ERASING = Level(P, lr=0.4, rule=RULE)
N = 7


def moments(x, u):
    return u.mT @ x / len(x), x.mT @ x / len(x)


def moved(weight, x, u, rate, rule=RULE):
    """The weight after a period's step."""
    slope, moment = moments(x, u)
    return weight - rate * rule.direction(slope, weight, moment, rate)


@pytest.mark.parametrize("rate", [0.01, 0.7, 100.0])
def test_for_one_token_it_is_the_papers_step(rate):
    """Eq. 57, `W (I - eta' x x^T) - eta' u x^T` with `eta' = eta / (1 + eta |x|^2)`: what the rule says to a memory, and DGD does."""
    weight, x, u = randn(OUT, IN), randn(1, IN), randn(1, OUT)
    eps, beta = RULE.factors(torch.tensor([rate], dtype=torch.float64), x)
    expected = weight - eps * (weight @ x.mT) @ x - beta * u.mT @ x
    close(moved(weight, x, u, rate), expected)
    layer = nn.Linear(IN, OUT, bias=False).double()
    layer.weight.data = weight.clone()
    optimizer = DGD(layer.parameters(), layer, lr=rate)
    (layer(x) * u).sum().backward()
    optimizer.step()
    close(layer.weight.detach(), expected)


def test_for_small_rates_it_is_the_mean_of_the_tokens_steps():
    """To first order in the rate; beyond it another step than the average of the tokens' own ones. The printed form is that order."""
    weight, x, u, gaps = randn(OUT, IN), randn(N, IN), randn(N, OUT), []
    for rate in (1e-2, 1e-3):
        mean = torch.stack([moved(weight, x[i : i + 1], u[i : i + 1], rate) for i in range(N)]).mean(0)
        gaps.append((moved(weight, x, u, rate) - mean).norm())
        slope, moment = moments(x, u)
        close(moved(weight, x, u, rate, PRINTED), weight - rate * (weight @ moment + slope))
    assert 50 < gaps[0] / gaps[1] < 200  # of second order


@pytest.mark.parametrize("rate", [1e-3, 1.0, 1e3])
def test_erasing_is_a_contraction_at_every_rate(rate):
    """Without a surprise what lies along the inputs shrinks, the rest stays; the printed form expands it."""
    x, nothing = 3 * randn(2, IN), torch.zeros(2, IN, dtype=torch.float64)  # two inputs leave directions alone
    one = torch.eye(IN, dtype=torch.float64)
    left = moved(one, x, nothing, rate)
    sizes = torch.linalg.eigvalsh(left)
    across = one - torch.linalg.pinv(x) @ x
    assert sizes.min() > 0 and sizes[:2].max() < 1
    close(sizes[2:], torch.ones(IN - 2, dtype=torch.float64))
    close(left @ across, across)
    assert (torch.linalg.eigvalsh(moved(one, x, nothing, rate, PRINTED)).min() < -1) == (rate >= 1)


def learnt(levels, state, slope, x):
    """A period `x [B, P, IN]` with the gradients' sum `slope [B, OUT, IN]` on every level."""
    count = torch.full((B,), x.shape[1])
    return step(levels, gather(state, {NAME: slope}, {NAME: x.mT @ x}, count, count))


def test_a_level_erases_what_it_holds_and_nothing_else():
    """Where nothing surprises, its own difference shrinks along the inputs; the weight it starts from, and others' shares, stay."""
    levels, start, x = [Level(P, lr=0.1), ERASING], randn(OUT, IN), randn(B, P, IN)
    state = initial(levels, [[NAME]] * 2, {NAME: start}, B)
    nothing = torch.zeros(B, OUT, IN, dtype=torch.float64)
    same(effective(learnt(levels, state, nothing, x), {NAME: start})[NAME], start.expand(B, OUT, IN))
    state = learnt(levels, state, randn(B, OUT, IN), x)
    held = [level.weights[NAME].value for level in state]
    fast, slow = (level.weights[NAME].value for level in learnt(levels, state, nothing, x))
    same(fast, held[0])
    left = torch.linalg.inv(torch.eye(IN) + ERASING.lr * x.mT @ x / P)
    close(slow, held[1] @ left)
    assert held[1].any()


def test_only_the_periods_own_inputs_count():
    """What was seen before an update, without gradients, while a level stood still, or in a step that was refused is not erased along."""
    start, x, slope = randn(OUT, IN), randn(B, P, IN), randn(B, OUT, IN)
    fresh = initial([ERASING], [[NAME]], {NAME: start}, B)
    held = replace(fresh[0].weights[NAME], value=randn(B, OUT, IN))
    state = (replace(fresh[0], weights={NAME: held}),)
    (after,) = learnt([ERASING], state, slope, x)
    other, count = randn(B, 3, IN), torch.full((B,), 3)
    seen = {NAME: other.mT @ other}
    shown = gather(state, None, seen, count, count)
    frozen = (replace(state[0], frozen=torch.ones(B, dtype=torch.bool)),)
    stood = gather(frozen, {NAME: slope}, seen, count, count)
    stood = (replace(stood[0], frozen=~stood[0].frozen),)
    refused = learnt([ERASING], state, torch.full_like(slope, torch.nan), 2 * x)
    assert refused[0].refused.tolist() == [1] * B
    for before in (shown, stood, refused):
        (found,) = learnt([ERASING], before, slope, x)
        close(found.weights[NAME].value, after.weights[NAME].value)
    assert not after.weights[NAME].moment.any() and after.weights[NAME].seen is None


@pytest.mark.parametrize("value", [torch.inf, torch.nan, 1e200])
def test_inputs_whose_moments_overflow_are_refused(value):
    """In their row; the next period is learnt as if they had not been."""
    start, x, slope = randn(OUT, IN), randn(B, P, IN), randn(B, OUT, IN)
    state = initial([ERASING], [[NAME]], {NAME: start}, B)
    spoilt = x.clone()
    spoilt[1, 2, 0] = value
    (bad,), (good,) = (learnt([ERASING], state, slope, given) for given in (spoilt, x))
    assert bad.refused.tolist() == [0, 1, 0] and not bad.weights[NAME].value[1].any()
    close(bad.weights[NAME].value[::2], good.weights[NAME].value[::2])
    (after,) = learnt([ERASING], (bad,), slope, x)
    close(after.weights[NAME].value[1], good.weights[NAME].value[1])


def train(module, levels, x, y):
    """The parameter regime on a stream of batches, mean of `1/2 |W x - y|^2`."""
    optimizer = LevelOptimizer(nn.ModuleList([module]), levels, [["0.weight"]] * len(levels))
    for inputs, targets in zip(x, y, strict=True):
        with optimizer.watch():
            loss = 0.5 * (module(inputs) - targets).square().sum() / inputs[..., 0].numel()
        loss.backward()
        optimizer.step(inputs[..., 0].numel())
    return optimizer


def linear():
    return nn.Linear(IN, OUT, bias=False).double()


def test_in_the_parameter_regime_the_weight_is_what_a_level_holds():
    """A period of one token: the optimiser `DGD`, which erases the whole weight, step by step."""
    ours, theirs = linear(), linear()
    theirs.load_state_dict(ours.state_dict())
    x, y = randn(12, 1, 1, IN), randn(12, 1, 1, OUT)
    train(ours, [Level(1, lr=0.4, rule=RULE)], x, y)
    optimizer = DGD(theirs.parameters(), theirs, lr=0.4)
    for inputs, targets in zip(x, y, strict=True):
        optimizer.zero_grad()
        (0.5 * (theirs(inputs) - targets).square().sum()).backward()
        optimizer.step()
    close(ours.weight.detach(), theirs.weight.detach())


def test_both_regimes_are_one_where_a_weight_begins_at_zero():
    """Then the difference is the weight: fast weights of one row and an optimiser's level give the same numbers."""
    module, levels = linear(), [Level(2 * P, lr=0.4, rule=RULE)]
    nn.init.zeros_(module.weight)
    x, y, start = randn(9, 1, P, IN), randn(9, 1, P, OUT), torch.zeros(OUT, IN, dtype=torch.float64)
    fast, count = initial(levels, [[NAME]], {NAME: start}, 1), torch.tensor([P])
    for inputs, targets in zip(x, y, strict=True):
        error = inputs @ effective(fast, {NAME: start})[NAME].mT - targets
        fast = step(levels, gather(fast, {NAME: error.mT @ inputs}, {NAME: inputs.mT @ inputs}, count, count))
    optimizer = train(module, levels, x, y)
    close(module.weight.detach(), fast[0].weights[NAME].value[0])
    same(optimizer.state[0].updates, fast[0].updates)
    assert module.weight.any()


def test_levels_on_one_weight_add_their_steps():
    """Both due with one batch: what each would do alone to the weight of before, together."""
    levels = [Level(P, lr=0.1), Level(P, lr=0.4, rule=RULE), Level(P, lr=0.2, rule=PRINTED)]
    module, x, y = linear(), randn(1, 1, P, IN), randn(1, 1, P, OUT)
    before, changes = module.weight.detach().clone(), []
    for level in levels:
        alone = linear()
        alone.weight.data = before.clone()
        train(alone, [level], x, y)
        changes.append(alone.weight.detach() - before)
    train(module, levels, x, y)
    close(module.weight.detach(), before + sum(changes))
    assert len({float(change.norm()) for change in changes}) == 3


@pytest.mark.parametrize("rate", [1e2, 1e4, 1e6])
def test_no_rate_makes_a_level_expand(rate):
    """In float32, where plain descent is refused or spoils the model: every step is taken, and what is held stays small."""
    erasing = [Level(period, lr=rate, rule=RULE) for period in (PERIOD, 2 * PERIOD)]
    plain = [replace(level, rule=GradientDescent()) for level in erasing]
    ids, sizes = text(2, 10 * PERIOD), []
    for levels in (erasing, plain):
        logits, cache = read(model("hope-delta", levels=levels).float(), ids)
        sizes.append(max(d.value.abs().max() for level in cache.memory for d in level.weights.values()))
        if levels is erasing:
            assert logits.isfinite().all() and not any(level.refused.any() for level in cache.memory)
    assert sizes[0] < 5 and sizes[1] > 10 * sizes[0]


def test_reading_erases_along_the_words_of_its_period():
    """In a model: two updates of a level on the second block's MLP are those of the rule, from what went into each map."""
    net = model("hope-delta", levels=[Level(PERIOD, lr=0.3, rule=RULE)])
    ids, found = text(2, 2 * PERIOD + 1), []
    for length in (PERIOD + 1, 2 * PERIOD + 1):
        found.append(read(net, ids[:, :length])[1].memory[0])
    plain = model("hope-delta", levels=[Level(PERIOD, lr=0.3)])
    first = read(plain, ids[:, : PERIOD + 1])[1].memory[0]
    for name, d in found[0].weights.items():
        inputs = {}
        handle = net.module_of(name).register_forward_pre_hook(lambda _, given, i=inputs: i.setdefault("x", given[0]))
        read(net, ids[:, :PERIOD], HopeCache("off"))
        handle.remove()
        moment = inputs["x"].mT @ inputs["x"] / PERIOD
        close(d.value, torch.linalg.solve(torch.eye(moment.shape[-1]) + 0.3 * moment, first.weights[name].value.mT).mT)
        differ(d.value, first.weights[name].value, least=1e-4)
    assert found[1].updates.tolist() == [2, 2]
