"""Optimisers in the level table: all of their state, as often as it changes, and as much of the past as it holds."""

import math

import pytest
import torch
from torch import nn

from nestling.levels import StepOf, describe
from nestling.optim import M3, AdEMAMix, Kronecker, PreconditionedMomentum, Retained, matrix_groups
from nestling.optim.retain import STATE
from tests import optimizers as table
from tests.families import decoder

TORCH = {
    "SGD": {"momentum": 0.9},
    "AdamW": {"amsgrad": True},
    "Adam": {},
    "RMSprop": {"momentum": 0.5, "centered": True},
    "Adagrad": {},
    "Adadelta": {},
    "Adamax": {},
    "NAdam": {},
    "RAdam": {},
    "Rprop": {},
    "Muon": {},
}


def state(optimizer: torch.optim.Optimizer) -> int:
    """How many numbers an optimiser keeps."""
    found = sum(x.numel() for its in optimizer.state.values() for x in its.values() if isinstance(x, torch.Tensor))
    if isinstance(optimizer, Retained):
        kept = [getattr(memory, name) for memory in optimizer._memories.values() for name in STATE]
        found += sum(x.numel() for x in kept if isinstance(x, torch.Tensor))
    return found


@pytest.mark.parametrize("name", table.ALL)
def test_the_state_of_our_optimizers_adds_up(name):
    """Before the first step, where it is told, and after it. The sums of a DGD come with the first backward pass."""
    module = table.network()
    optimizer = table.make(name, module, lr=1e-3)
    before = describe(module, optimizer, 10)
    table.learn(module, optimizer, range(4))
    after = describe(module, optimizer, 10)
    assert after.state.numbers == state(optimizer)
    assert after.parameters.numbers == sum(p.numel() for p in module.parameters())
    assert before == after or name == "DGD"
    assert "not known" not in str(after) or name in (
        "Momentum",
        "Normalised",
        "Retained",
    )  # the tests' own ones say nothing


@pytest.mark.parametrize("name", TORCH)
def test_the_state_of_torch_s_optimizers_adds_up(name):
    """Told before the first step by one without data."""
    module = nn.Sequential(nn.Linear(3, 5, bias=False), nn.Tanh(), nn.Linear(5, 2, bias=False)).double()
    optimizer = getattr(torch.optim, name)(module.parameters(), **TORCH[name])
    before = describe(module, optimizer, 10)
    assert not any(p.grad is not None for p in module.parameters())
    table.learn(module, optimizer, range(2))
    assert before == describe(module, optimizer, 10)
    assert before.state.numbers == state(optimizer)


@pytest.mark.parametrize("name", ["Adafactor", "ASGD", "LBFGS"])
def test_a_state_that_cannot_be_told_is_no_guess(name):
    """Its first step needs data: the message says to make it, and no other one is behind it."""
    module = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=f"{name} makes its state in its first step.*make a step with lr=0") as raised:
        describe(module, getattr(torch.optim, name)(module.parameters()))
    assert raised.value.__cause__ is None


@pytest.mark.parametrize("name", ["Adafactor", "ASGD", "LBFGS", "AdamW"])
def test_after_a_step_the_state_is_what_is_there(name):
    """Also where one parameter had no gradient, and where all of it is kept with one parameter, as LBFGS does."""
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(3, 2))
    optimizer = getattr(torch.optim, name)(module.parameters())

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        found = module[0](torch.ones(1, 3)).square().sum()
        found.backward()
        return found

    optimizer.step(loss)
    found = describe(module, optimizer)
    kept = [its for its in optimizer.state.values() if its]
    assert 0 < len(kept) < 4
    assert found.state.numbers == sum(numbers(value) for its in kept for value in its.values())
    assert found.parameters.numbers == sum(p.numel() for p in module.parameters())


def numbers(value: object) -> int:
    """How many there are in an entry of a state, which may be a list."""
    if isinstance(value, list):
        return sum(map(numbers, value))
    return value.numel() if isinstance(value, torch.Tensor) else int(value is not None)


def test_a_state_that_nobody_explains_is_listed_by_its_key():
    """After a step of Adafactor: its factors, with their sizes, and nothing claimed about them."""
    module = nn.Linear(3, 2)
    optimizer = torch.optim.Adafactor(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    found = describe(module, optimizer)
    assert found.state.numbers == state(optimizer)
    assert found["row_var"].rule == "not known" and found["row_var"].compression is None


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_default_device_changes_nothing(device):
    """A table needs no data, wherever new tensors go."""
    module = table.network()
    made = [getattr(torch.optim, name)(module.parameters()) for name in TORCH if name != "Muon"]
    made += [table.make(name, module, lr=1e-3) for name in table.ALL]
    expected = [describe(module, optimizer, 10) for optimizer in made]
    with torch.device(device):
        assert [describe(module, optimizer, 10) for optimizer in made] == expected


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9, 0.99])
def test_what_a_momentum_holds_is_what_an_impulse_leaves(beta):
    """One gradient, then none: all that is ever left of it, over what it was, is the effective context; and where 99% of it is."""
    parameter = nn.Parameter(torch.zeros((), dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=1.0, momentum=beta)
    holder = nn.Module()
    holder.weight = parameter
    context = describe(holder, optimizer)["momentum"].context
    left = []
    for step in range(3000):
        parameter.grad = torch.ones_like(parameter) * (step == 0)
        optimizer.step()
        left.append(float(optimizer.state[parameter]["momentum_buffer"]))
    assert sum(left) == pytest.approx(context.effective, rel=5e-6)  # six digits are given
    share = [sum(left[:n]) / sum(left) for n in range(context.most + 1)]
    assert share[-2] < 0.99 - 1e-9 and share[-1] >= 0.99 - 1e-12
    assert context.most == {0.1: 2, 0.5: 7, 0.9: 44, 0.99: 459}[beta]


def test_weights_forget_by_decoupled_decay():
    """An AdamW weight keeps `1 - lr wd` of itself a step: it is a mean of the last `1 / (lr wd)` steps. Without decay of all."""
    model = nn.Linear(3, 3)
    for decay, effective in ((0.1, 1000.0), (0.0, math.inf)):
        found = describe(model, torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=decay), 1)
        assert found["linear maps"].context.effective == effective
    found = describe(model, torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1), 1)
    assert found["linear maps"].context.effective == math.inf  # a penalty in the gradient, which Adam rescales


def changes(optimizer: torch.optim.Optimizer, module: nn.Module, parameter: nn.Parameter, steps: int) -> dict[str, int]:
    """How often each entry of a parameter's state changes."""
    counted: dict[str, int] = {}
    table.learn(module, optimizer, [0])
    for i in range(1, steps + 1):
        before = {key: value.clone() for key, value in optimizer.state[parameter].items()}
        table.learn(module, optimizer, [i])
        for key, value in optimizer.state[parameter].items():
            counted[key] = counted.get(key, 0) + bool((value != before[key]).any())
    return counted


def test_slow_memories_have_the_frequency_at_which_they_are_read_anew():
    """M3's slow direction and Shampoo's roots: every so many steps, slower than the weights that need them."""
    module = table.network()
    for optimizer, key, name in (
        (M3(matrix_groups(module), periods=(3,), weights=(1.0,)), "slow_direction_3", "slow momentum of 3 steps"),
        (PreconditionedMomentum(module.parameters(), preconditioner=Kronecker(period=3)), "left_root", "inverse roots"),
    ):
        found = describe(module, optimizer, 10)
        assert changes(optimizer, module, module[0].weight, 12)[key] == 12 * found[name].frequency * 10 == 4
        assert found[name] in found.levels[-1] and len(found.levels[-1]) == 1


def test_memories_that_need_each_other_are_levels():
    """A preconditioner is faster than the momentum that stores by it, and this one than the weights; all move in every step."""
    module = table.network()
    found = describe(module, PreconditionedMomentum(module.parameters(), preconditioner=Kronecker(period=1)), 1)
    assert [level[0].name for level in found.levels] == [
        "second moments of rows and columns",
        "inverse roots",
        "momentum",
        "linear maps",
    ]
    found = describe(module, AdEMAMix(module.parameters()), 1)
    assert [c.name for c in found.levels[0]] == ["first moment", "second moment", "slow first moment"]


def test_muon_beside_adamw():
    """Two optimisers of one model: rows that both move are apart, and each memory knows the gradients of its own."""
    model = decoder("gpt2")
    hidden, rest = matrix_groups(model)
    found = describe(model, [torch.optim.Muon(hidden["params"]), torch.optim.AdamW(rest["params"])], 100)
    assert {t.source for t in found["momentum"].knowledge} == {"projections (Muon)", "MLPs (Muon)"}
    assert found["MLPs (Muon)"].needs == ("momentum",) and "NS(m)" in found["MLPs (Muon)"].rule
    assert set(found["MLPs (AdamW)"].needs) == {"first moment", "second moment"}  # their biases
    assert found["momentum"].state.numbers == sum(p.numel() for p in hidden["params"])


def test_plain_descent_keeps_nothing():
    """SGD without momentum: the weights alone."""
    model = nn.Linear(3, 3)
    found = describe(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    assert [c.name for c in found] == ["linear maps"] and found["linear maps"].rule == "W <- W - lr G"


def test_groups_that_move_differently_are_told_apart():
    """By the group, where settings that matter differ; not where only a rate does."""
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    groups = [{"params": model[0].parameters(), "betas": (0.8, 0.9)}, {"params": model[1].parameters()}]
    found = describe(model, torch.optim.AdamW(groups), 1)
    assert found["first moment (AdamW, group 1)"].context.effective == 5
    assert found["first moment (AdamW, group 2)"].context.effective == 10
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[1].parameters()}]
    assert describe(model, torch.optim.AdamW(groups), 1)["first moment"].state.numbers == 3 * 3 + 3 + 3 + 3 + 4


def test_the_step_of_an_optimizer_in_a_level_says_what_it_remembers():
    """As the optimiser itself does."""
    assert [part.name for part in StepOf("M3", periods=(8,), weights=(1.0,)).parts()] == [
        "fast momentum",
        "slow momentum of 8 steps",
    ]
