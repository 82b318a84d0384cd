"""Training: one visible loop that lowers the loss, moves levels at their periods only, and is repeatable."""

import importlib
import inspect

import pytest
import torch

from nestling.errors import UserError
from nestling.levels import Level
from nestling.memory import RetainSeen
from nestling.train import TrainConfig, train
from tests.helpers import same
from tests.tiny import SETTINGS, model, text

IDS = text(1, 13)[0].repeat(40)
SHORT = TrainConfig(tokens=12 * 96, batch_size=4, length=24, lr=3e-2)
STEP = SHORT.batch_size * SHORT.length


@pytest.mark.parametrize("name", SETTINGS)
def test_the_loss_falls(name):
    """On a text that repeats, every configuration learns to predict it, whether it also learns while reading or not."""
    history = train(model(name).float(), IDS, SHORT)
    losses = [progress.loss for progress in history]
    assert len(history) == SHORT.steps == 12 and history[-1].tokens == 12 * STEP
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])


def weights_by_step(net, config):
    """Every weight after each step of training, the start first."""

    def snapshot():
        return {n: w.detach().clone() for n, w in net.named_parameters()}

    seen = [snapshot()]
    train(net, IDS, config, lambda _: seen.append(snapshot()))
    return seen


@pytest.mark.parametrize("variant", ["sequential", "superposed"])
def test_levels_move_only_at_their_period(variant):
    """In the parameter regime a level's weights step when its period is full, and all other weights at every step."""
    levels = [Level(2 * STEP, lr=0.05), Level(4 * STEP, lr=0.5, rule=RetainSeen(1.0))]
    net = model("hope", levels=levels, level_variant=variant, learning="parameter").float()
    seen = weights_by_step(net, TrainConfig(tokens=9 * STEP, batch_size=4, length=24, lr=1e-2))
    periods = {}
    for names, period in zip(net.moves, (2, 4), strict=True):
        for name in names:  # superposed levels name the same weights: the fastest one says when they move
            periods.setdefault(f"model.stack.{name}", period)
    for step in range(1, 10):
        for name, weight in seen[step].items():
            moved = not torch.equal(weight, seen[step - 1][name])
            assert moved == (step % periods.get(name, 1) == 0), (step, name)


def test_the_parameter_regime_lowers_the_loss():
    """With levels that move every step and slower ones beside an ordinary optimiser the model learns the text."""
    levels = [Level(STEP, lr=0.1), Level(4 * STEP, lr=0.5, rule=RetainSeen(1.0))]
    net = model("hope-sequential", levels=levels, learning="parameter").float()
    losses = [progress.loss for progress in train(net, IDS, SHORT)]
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])


def test_training_is_repeatable():
    """The same seed gives the same bits; another one gives other windows."""
    config = TrainConfig(tokens=5 * STEP, batch_size=4, length=24)
    one, two = (weights_by_step(model("hope-attention").float(), config)[-1] for _ in range(2))
    same(one, two)
    other = TrainConfig(tokens=5 * STEP, batch_size=4, length=24, seed=1)
    losses = [[p.loss for p in train(model("hope-attention").float(), IDS[:200], c)] for c in (config, config, other)]
    assert losses[0] == losses[1] != losses[2]


def test_training_leaves_a_model_that_is_ready():
    """In evaluation mode, without gradients, and reported step by step."""
    net, seen = model("transformer++").float(), []
    history = train(net, IDS, TrainConfig(tokens=3 * STEP, batch_size=4, length=24), seen.append)
    assert not net.training and all(p.grad is None for p in net.parameters())
    assert seen == history and [p.step for p in history] == [1, 2, 3] and all(p.norm > 0 for p in history)


def test_a_loss_that_is_not_finite_raises():
    """The message says at which step, and what to change."""
    with pytest.raises(UserError, match=r"at step \d+; try a lower lr than 1e\+30"):
        train(model("transformer++").float(), IDS, TrainConfig(tokens=9 * STEP, batch_size=4, length=24, lr=1e30))


def test_a_text_that_is_too_short_raises():
    """A window must fit: the message says how many tokens there are and how many are needed."""
    with pytest.raises(UserError, match="23 tokens; a window of 24 needs as many"):
        train(model("transformer++").float(), IDS[:23], SHORT)


@pytest.mark.parametrize("name", ["tokens", "batch_size", "length", "lr", "clip"])
def test_a_setting_that_cannot_be_raises(name):
    """The message repeats it."""
    with pytest.raises(UserError, match=f"{name}=0 must be above 0"):
        TrainConfig(**{name: 0})


def test_the_loop_is_one_that_can_be_read():
    """At most 80 lines of source, and no hook into it but `report` and the choice of an optimiser."""
    loop = importlib.import_module("nestling.train.train").train
    assert len(inspect.getsource(loop).splitlines()) <= 80
    assert list(inspect.signature(loop).parameters) == ["model", "ids", "config", "report", "make_optimizer"]


def test_another_optimiser_takes_its_place():
    """It gets all parameters in two groups, decayed matrices and the rest, and its rate follows the schedule."""
    net, made = model("transformer++").float(), []

    def make(groups):
        made.append(torch.optim.SGD(groups, lr=0.5))
        return made[0]

    train(net, IDS, SHORT, make_optimizer=make)
    first, second = made[0].param_groups
    assert first["weight_decay"] > 0 == second["weight_decay"]
    assert {id(p) for p in [*first["params"], *second["params"]]} == {id(p) for p in net.parameters()}
    assert all(0 < group["lr"] < 0.5 for group in made[0].param_groups)
