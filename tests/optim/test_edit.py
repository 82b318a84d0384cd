"""Editing: new answers in the directions that what is kept does not use, against plain fine-tuning."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nestling.evals.optimizers.editing import learnt, protected, run
from nestling.optim.edit import edit
from nestling.optim.retain import Retained
from tests.helpers import close, differ, named, randn, same


def test_at_equal_success_the_kept_facts_suffer_less():
    """All changed facts changed, three seeds: at most a tenth of what fine-tuning at its best step costs the kept ones."""
    for seed in range(3):
        known = learnt(seed)
        plain = [run(known, lambda m, lr=lr: torch.optim.SGD(m.parameters(), lr)) for lr in (0.003, 0.01, 0.03)]
        kept = run(known, lambda m: protected(0.01)(m, 0.3))
        assert all(outcome.changed == 1 for outcome in [*plain, kept])
        assert kept.worse < 0.1 * min(outcome.worse for outcome in plain)


def test_a_rate_that_diverges_changes_nothing():
    """And is never the one that is chosen."""
    outcome = run(learnt(0), lambda m: torch.optim.SGD(m.parameters(), 1e30))
    assert outcome.changed == outcome.lost == outcome.worse == 0


def test_a_linear_model_answers_as_before_what_was_observed():
    """Without damping an edit is confined to the null space of the sample: exact where the model is linear."""
    model, kept, x, v = nn.Linear(12, 3).double(), randn(5, 12), randn(2, 12), randn(2, 3)
    optimizer = Retained(torch.optim.SGD(model.parameters(), 0.2), model, damping=1e-10)
    with optimizer.observe():
        before = model(kept).detach()
    assert edit(model, x, v, optimizer, F.mse_loss, until=1e-6, steps=2000).reached
    assert (model(kept) - before).abs().max() < 1e-6


def test_the_step_is_the_optimizer_s():
    """With a bare optimiser it is fine-tuning, step by step; losses are those before each step and after the last."""
    model, x, v = nn.Linear(4, 3).double(), randn(5, 4), randn(5, 3)
    weight, bias, losses = model.weight.detach().clone(), model.bias.detach().clone(), []
    for _ in range(4):
        error = x @ weight.T + bias - v
        losses.append(error.square().mean().item())
        weight, bias = weight - 0.1 * error.T @ x * 2 / 15, bias - 0.1 * error.sum(0) * 2 / 15
    found = edit(model, x, v, torch.optim.SGD(model.parameters(), 0.1), F.mse_loss, until=0.0, steps=3)
    assert (found.steps, found.reached) == (3, False)
    close(torch.tensor(found.losses), torch.tensor(losses))
    assert all(p.grad is None for p in model.parameters())


def test_it_stops_as_soon_as_the_answers_are_right():
    """No step where none is needed, and none beyond `until`."""
    model, x = nn.Linear(4, 3).double(), randn(5, 4)
    before = model.weight.detach().clone()
    assert edit(model, x, model(x).detach(), torch.optim.SGD(model.parameters(), 0.1), F.mse_loss).steps == 0
    same(model.weight, before)
    found = edit(model, x, randn(5, 3), torch.optim.SGD(model.parameters(), 0.1), F.mse_loss, until=0.9)
    assert found.reached and found.losses[-1] <= 0.9 < min(found.losses[:-1])


def test_dropout_is_off_and_the_edit_is_not_remembered():
    """Modes come back as they were, module by module; the memory of inputs is the sample's alone."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(3, 3)).double().train()
    model[0].eval()
    optimizer = Retained(torch.optim.SGD(model.parameters(), 0.01), model, 0.1)
    with optimizer.observe():
        model(randn(5, 4))
    memory = {name: m["seen"].clone() for name, m in optimizer.state_dict()["retained"]["memories"].items()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    x, v = randn(2, 4), randn(2, 3)
    with torch.no_grad():
        loss = F.mse_loss(model[2](model[0](x)), v).item()
    assert abs(edit(model, x, v, optimizer, F.mse_loss, until=0.0, steps=2).losses[0] - loss) < 1e-12
    differ(named(model.state_dict()), weights)
    same({name: m["seen"] for name, m in optimizer.state_dict()["retained"]["memories"].items()}, memory)
    assert [module.training for module in model] == [False, True, True] and model.training


def test_what_goes_wrong_changes_nothing():
    """A loss that is not finite, or a memory that has seen nothing: the model is what it was, and the message says why."""
    model, x, v = nn.Linear(4, 3).double(), randn(5, 4), randn(5, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sgd = torch.optim.SGD(model.parameters(), 1e200)
    with pytest.raises(ValueError, match="smaller learning rate"):
        edit(model, x, v, sgd, F.mse_loss)
    with pytest.raises(ValueError, match=r"never seen.*observe"):
        edit(model, x, v, Retained(sgd, model), F.mse_loss)
    for bad in ({"steps": 0}, {"until": -0.1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            edit(model, x, v, sgd, F.mse_loss, **bad)
    same(named(model.state_dict()), before)
