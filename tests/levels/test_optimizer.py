"""The parameter regime: levels as groups that gather gradients and step at their own periods."""

import pytest
import torch
from torch import nn

from nestling.levels import Level, LevelOptimizer, effective, gather, initial, step
from nestling.memory import DeltaGradientDescent, RetainPredictions, RetainSeen
from tests.helpers import close, randn

B, L, IN, OUT = 2, 3, 4, 2
TOKENS = B * L
PLAIN, SLOW = Level(TOKENS, lr=0.1), Level(3 * TOKENS, lr=0.5, rule=RetainSeen(0.1, 0.9))


class Task:
    """A linear map, and batches for it."""

    def __init__(self, levels, batches=9):
        self.module = nn.ModuleDict({"moved": nn.Linear(IN, OUT, bias=False), "other": nn.Linear(IN, OUT)}).double()
        self.start = self.module["moved"].weight.detach().clone()
        self.x, self.y = randn(batches, B, L, IN), randn(batches, B, L, OUT)
        self.optimizer = LevelOptimizer(self.module, levels, [["moved.weight"]] * len(levels))

    @property
    def weight(self):
        return self.module["moved"].weight.detach().clone()

    def train(self, x, y):
        with self.optimizer.watch():
            loss = 0.5 * (self.module["moved"](x) + self.module["other"](x) - y).square().sum() / TOKENS
        loss.backward()
        self.optimizer.step(TOKENS)


def test_a_plain_level_is_gradient_descent_on_the_mean():
    """Each period's gradients gathered, one step on their mean; between two steps the weight is the same bits."""
    task = Task([Level(3 * TOKENS, lr=0.1)])
    weight, slopes = task.start, []
    for x, y in zip(task.x, task.y, strict=True):
        before = task.weight
        error = x @ weight.mT + task.module["other"](x).detach() - y
        slopes.append((error.mT @ x).sum(0) / TOKENS)
        task.train(x, y)
        if len(slopes) < 3:
            assert torch.equal(task.weight, before)
        else:
            weight, slopes = weight - 0.1 * sum(slopes) / 3, []
            close(task.weight, weight)
    assert task.optimizer.state[0].updates.tolist() == [3]


def test_tokens_are_what_a_clock_counts():
    """A period that no number of batches fills exactly is over with the batch that fills it."""
    task, counts = Task([Level(TOKENS + 1, lr=0.1)]), []
    for x, y in zip(task.x, task.y, strict=True):
        task.train(x, y)
        counts.append(int(task.optimizer.state[0].updates))
    assert counts == [0, 1, 1, 2, 2, 3, 3, 4, 4]


RESETS = {
    "plain": [PLAIN],
    "retaining": [SLOW],
    "both": [PLAIN, SLOW],
    "decaying": [Level(TOKENS, lr=0.1, reset=0.8), SLOW],
    "nested": [Level(TOKENS, lr=0.1, reset="slower"), SLOW],
}


@pytest.mark.parametrize("levels", RESETS.values(), ids=RESETS)
def test_is_the_context_regime_of_one_row(levels):
    """One set of weights is fast weights with a single row, whose differences are folded in: the same numbers."""
    task = Task(levels)
    fast = initial(levels, [["w"]] * len(levels), {"w": task.start}, 1)
    for x, y in zip(task.x, task.y, strict=True):
        weight = effective(fast, {"w": task.start})["w"][0]
        error = x @ weight.mT + task.module["other"](x).detach() - y
        slope, seen = (error.mT @ x).sum(0, keepdim=True), (x.mT @ x).sum(0, keepdim=True)
        count = torch.tensor([TOKENS])
        fast = step(levels, gather(fast, {"w": slope}, {"w": seen}, count, count))
        task.train(x, y)
        close(task.weight, effective(fast, {"w": task.start})["w"][0])
    for mine, theirs in zip(task.optimizer.state, fast, strict=True):
        close((mine.gathered, mine.updates), (theirs.gathered, theirs.updates))
        if mine.weights["moved.weight"].seen is not None:
            close((mine.count, mine.weights["moved.weight"].seen), (theirs.count, theirs.weights["w"].seen))


def test_a_context_that_ends_takes_back_what_its_level_added():
    """What is left is what the other level alone has added, as `at_rest` showed before."""
    task = Task([Level(TOKENS, lr=0.1, reset="context"), SLOW])
    for x, y in zip(task.x, task.y, strict=True):
        task.train(x, y)
    held = task.weight
    added = task.optimizer.state[0].weights["moved.weight"].value[0]
    with task.optimizer.at_rest(0):
        rest = task.weight
    assert torch.equal(task.weight, held) and added.abs().max() > 0.01
    close(rest, held - added)
    task.optimizer.end_context()
    close(task.weight, rest)
    assert not task.optimizer.state[0].weights["moved.weight"].value.any()


def test_it_touches_its_own_weights_only():
    """The other weights keep their values and their gradients; its own gradients are cleared."""
    task = Task([PLAIN])
    other = task.module["other"].weight.detach().clone()
    task.train(task.x[0], task.y[0])
    assert torch.equal(task.module["other"].weight, other) and task.module["other"].weight.grad.any()
    assert task.module["moved"].weight.grad is None and task.optimizer.moved == {"moved.weight"}


def test_a_gradient_that_is_not_finite_is_refused():
    """The weight stays, the step is counted, and the next one is taken."""
    task = Task([PLAIN])
    task.train(task.x[0], task.y[0] * torch.inf)
    assert torch.equal(task.weight, task.start) and task.optimizer.state[0].refused.tolist() == [1]
    task.train(task.x[1], task.y[1])
    assert not torch.equal(task.weight, task.start) and task.optimizer.state[0].updates.tolist() == [1]


def test_what_it_cannot_do_raises():
    """What erases the whole weight cannot go back, and a step needs a gradient."""
    with pytest.raises(ValueError, match="reset='context' with DeltaGradientDescent needs learning='context'"):
        Task([Level(4, reset="context", rule=DeltaGradientDescent())])
    with pytest.raises(ValueError, match=r"moved\.weight has no gradient; call backward"):
        Task([PLAIN]).optimizer.step(TOKENS)


def test_what_was_felt_is_of_the_sum_of_losses():
    """However the tokens are divided among passes, the moments of the outputs' gradients are those of the whole sum."""
    task = Task([Level(3 * TOKENS, lr=0.0, rule=RetainPredictions())])
    expected = 0.0
    for x, y in zip(task.x[:3], task.y, strict=False):
        error = (x @ task.start.mT + task.module["other"](x).detach() - y).flatten(0, 1)
        expected = expected + error.mT @ error
        task.train(x, y)
    close(task.optimizer.state[0].weights["moved.weight"].felt[0], expected)


def test_predictions_that_were_not_learnt_from_raise():
    """A forward pass inside `watch` shows the inputs; the gradients at the outputs come with the pass backward."""
    task = Task([Level(TOKENS, lr=0.1, rule=RetainPredictions())])
    with task.optimizer.watch():
        task.module["moved"](task.x[0])
    task.module["moved"].weight.grad = torch.ones_like(task.start)
    with pytest.raises(ValueError, match="no gradient came to the outputs"):
        task.optimizer.step(TOKENS)


def test_retention_that_was_shown_nothing_raises():
    """A level that retains what was seen needs `watch`; without it the message says so."""
    task = Task([SLOW])
    task.module["moved"](task.x[0]).sum().backward()
    with pytest.raises(ValueError, match="watch"):
        task.optimizer.step(TOKENS)
