"""Orthogonal tasks in sequence: what the problem promises, and how forgetting is measured."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nestling.evals.optimizers.orthogonal import (
    FAMILIES,
    Family,
    Outcome,
    Problem,
    decay,
    make_tasks,
    momentum,
    retention,
    run,
    sweep,
)
from nestling.report.studies import studies

SMALL = Problem(tasks=3, own=3, outputs=2, steps=40, batch=8)


def slopes(problem, weight, random):
    """Each task's gradient at one weight, on examples of its own."""
    found = []
    for task in make_tasks(problem, random):
        x, y = task.examples(64, random)
        found.append((x @ weight.T - y).T @ x)
    return torch.stack(found).flatten(1)


def test_gradients_are_orthogonal_but_for_the_share():
    """Between any two tasks, at a random weight: exactly with nothing shared, and clearly not with half of the energy."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(SMALL.outputs, SMALL.width, generator=random)
    for shared, orthogonal in ((0.0, True), (0.5, False)):
        g = F.normalize(slopes(Problem(tasks=3, own=3, outputs=2, shared=shared), weight, random), dim=1)
        off = (g @ g.T - torch.eye(3)).abs().max().item()
        assert off < 1e-5 if orthogonal else off > 0.05


@pytest.mark.parametrize("shared", [0.0, 0.7])
def test_one_map_solves_all_tasks(shared):
    """`O_t -> A_t / sqrt(1 - s)`, `S -> 0`: nothing has to be forgotten; inputs have one unit of energy a dimension."""
    random = torch.Generator().manual_seed(1)
    tasks = make_tasks(Problem(shared=shared), random)
    places = torch.cat([task.place for task in tasks])
    solution = torch.linalg.lstsq(places, torch.cat([task.teacher for task in tasks])).solution
    for task in tasks:
        x, y = task.examples(500, random)
        assert (x @ solution - y).abs().max() < 1e-4
        assert abs(x.square().sum(1).mean() / 8 - 1) < 0.1


def test_sgd_forgets_nothing_of_orthogonal_tasks():
    """The theory of section 4.3's linear case: orthogonal steps interfere with nothing. With a shared part they do."""
    apart, shared = (
        run(Problem(tasks=3, own=3, outputs=2, shared=s, steps=60), lambda m: momentum(m, 1.0, 0.3), 0)
        for s in (0.0, 0.7)
    )
    assert abs(apart.forgetting) < 1e-5 and apart.learning < 0.1
    assert shared.forgetting > 0.02


def test_a_memory_of_inputs_forgets_less():
    """Where tasks share directions, retention over all inputs forgets less than SGD that has learnt as much."""
    problem = Problem(tasks=3)
    plain = run(problem, lambda m: momentum(m, 1, 1.0), 0)
    short, long = (run(problem, lambda m, n=n: retention(m, n, 100.0), 0) for n in (2, 100))
    assert max(plain.learning, short.learning, long.learning) < 0.01
    assert long.forgetting < 0.1 * short.forgetting and short.forgetting < plain.forgetting


def test_learning_and_forgetting_by_hand():
    """Learning is the diagonal, forgetting the rise from it to the last row, and the end is the last row."""
    outcome = Outcome([[0.1, 1.0, 1.0], [0.5, 0.2, 1.0], [0.7, 0.6, 0.3]])
    assert outcome.learning == pytest.approx(0.2)
    assert outcome.forgetting == pytest.approx(((0.7 - 0.1) + (0.6 - 0.2)) / 2)
    assert outcome.final == pytest.approx((0.7 + 0.6 + 0.3) / 3)


def test_a_run_is_its_seed_s():
    """The same seed gives the same losses bit for bit, whatever else draws random numbers; another seed gives others."""
    for problem in (SMALL, Problem(tasks=3, own=3, outputs=2, hidden=5, steps=5)):
        first = run(problem, lambda m: momentum(m, 1.0, 0.3), 0)
        torch.rand(3)
        assert run(problem, lambda m: momentum(m, 1.0, 0.3), 0) == first
        assert run(problem, lambda m: momentum(m, 1.0, 0.3), 1) != first


def test_the_rate_is_chosen_on_other_seeds():
    """The best rate at the end of the tuning seeds is used, one that diverges never; reported are the other seeds."""
    seen = []

    def make(model: nn.Module, length: float, lr: float) -> torch.optim.Optimizer:
        seen.append((length, lr))
        return momentum(model, length, lr)

    family = Family("SGD", "steps", (1.0, 2.0), make, (1e-4, 0.5, 1e9))
    rows = sweep(SMALL, family, seeds=(0, 1), tuning=(7,))
    assert [(row.length, row.lr) for row in rows] == [(1.0, 0.5), (2.0, 0.5)]
    assert seen == [(n, lr) for n in (1.0, 2.0) for lr in (1e-4, 0.5, 1e9, 0.5, 0.5)]
    finals = [run(SMALL, lambda m: momentum(m, 1.0, 0.5), seed).final for seed in (0, 1)]
    assert rows[0].final == pytest.approx(finals)
    for bad in ((0,), (0, 7)):
        with pytest.raises(ValueError, match="seeds="):
            sweep(SMALL, family, seeds=bad, tuning=(7,))


def test_momentum_s_length_does_not_change_its_whole_step():
    """One gradient moves the weight by `lr` in all, however long its memory: so rates compare across lengths."""
    for length in (1.0, 10.0):
        model = nn.Linear(2, 1, bias=False).double()
        optimizer, before = momentum(model, length, 0.3), model.weight.detach().clone()
        for gradient in (1.0, *[0.0] * 400):
            model.weight.grad = torch.full_like(model.weight, gradient)
            optimizer.step()
        torch.testing.assert_close(before - model.weight, torch.full_like(before, 0.3))
    assert decay(10.0) == 0.9 and decay(math.inf) == 1.0


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: f"{family.name}, {family.memory}")
def test_every_family_learns_with_every_length(family):
    """With its shortest and its longest memory the loss of the first task halves, at one of its rates."""
    problem = Problem(tasks=2, own=3, outputs=2, steps=40)
    for length in (family.lengths[0], family.lengths[-1]):
        found = [run(problem, lambda m, lr=lr, n=length: family.make(m, n, lr), 0).losses[0][0] for lr in family.rates]
        assert min(found) < 0.5


def test_the_report_says_how_long_a_memory_is():
    """With mean and spread of all three figures; a memory of all that was seen stands at the right end of the drawing."""
    part = {"family": "SGD", "memory": "steps", "lr": 0.3}
    scores = {"learning": [0.1, 0.2], "forgetting": [0.3, 0.3], "final": [0.4, 0.6]}
    rows = [{**part, **scores, "length": length} for length in (10, None)]
    (found,) = studies({"studies": {"orthogonal": {"a map": rows}}})
    assert found.rows[0] == ["SGD", "steps: 10", "0.3", "0.150 ± 0.071", "0.300 ± 0.000", "0.500 ± 0.141"]
    assert found.rows[1][1] == "steps: all" and "<svg" in found.figure()
