"""Carrying the state of an optimiser by the names of parameters: going on = never having stopped."""

import copy

import pytest
import torch
from torch import nn

from nestling.optim import carry
from tests.helpers import close, differ, same
from tests.optimizers import OPTIMIZERS, Momentum, Normalised, learn, make, network, state_of, values

LR = 0.01
every = pytest.mark.parametrize("name", OPTIMIZERS)


class Larger(nn.Module):
    """The network with a part in front of it, its parameters in another order, one of them no longer trained."""

    def __init__(self, module):
        super().__init__()
        self.more = nn.Linear(3, 3).double()
        nn.init.eye_(self.more.weight)
        nn.init.zeros_(self.more.bias)
        for index in reversed(range(len(module))):
            self.add_module(str(index), copy.deepcopy(module[index]))

    def forward(self, x):
        x = self.more(x)
        for index in range(7):
            x = self.get_submodule(str(index))(x)
        return x


def stepped(cls=Momentum, dtype=torch.float64, **settings):
    """A network and its optimiser after three steps."""
    module = network(dtype)
    optimizer = cls(module.named_parameters(), **{"lr": LR, **settings})
    learn(module, optimizer, range(3))
    return module, optimizer


def by_weight(optimizer, module):
    """The state by the names of a module's parameters."""
    return {name: dict(optimizer.state[p]) for name, p in module.named_parameters() if p in optimizer.state}


@every
def test_going_on_after_carrying_is_never_having_stopped(name):
    """A model made anew with the old weights, and an optimiser made anew for it: the same bits."""
    straight = network()
    optimizer = make(name, straight, lr=LR)
    learn(straight, optimizer, range(3))
    again = network()
    again.load_state_dict(straight.state_dict())
    new = make(name, again, lr=LR)
    found = carry(optimizer, new)
    assert sorted(found.names) == sorted(values(straight)) and not (found.missing or found.fresh or found.gone)
    learn(straight, optimizer, range(3, 7))
    learn(again, new, range(3, 7))
    same(values(again), values(straight))
    same(state_of(new), state_of(optimizer))


@every
def test_names_count_and_not_places(name):
    """Into a model with more parameters, in another order and other groups: those of one name go on, others begin."""
    module = network()
    optimizer = make(name, module, lr=LR)
    learn(module, optimizer, range(3))
    larger = Larger(module)
    named = list(larger.named_parameters())
    new = make(name, larger, [{"params": named[3:]}, {"params": named[:3]}], lr=LR)
    found = carry(optimizer, new)
    assert set(found.fresh) == {"more.weight", "more.bias"} and found.gone == ()
    learn(module, optimizer, [3])
    learn(larger, new, [3])
    went_on = values(larger)
    close({key: went_on[key] for key in values(module)}, values(module), 1e-12)


def test_what_is_told_is_what_happened():
    """Parameters that only one of the two has, and one that never had a gradient, are named as such."""
    module = network()
    module[0].bias.requires_grad_(False)
    old = Momentum(module.named_parameters())
    learn(module, old, range(2))
    kept = [(name, p) for name, p in network().named_parameters() if not name.startswith("6.")]
    new = Momentum([*kept, ("more", nn.Parameter(torch.ones(2)))])
    found = carry(old, new)
    assert set(found.names) == {"0.weight", "2.weight", "2.bias", "4.weight", "4.bias"}
    assert set(found.fresh) == {"0.bias", "more"} and set(found.gone) == {"6.weight", "6.bias"}
    assert found.left == {} and found.missing == {}


def test_another_class_takes_what_has_its_name_and_shape():
    """Two classes whose states look alike: everything moves, the count of steps too."""
    module, old = stepped()
    again = network()
    new = Normalised(again.named_parameters())
    found = carry(old, new)
    assert set(found.names) == set(values(module)) and found.left == {} and found.missing == {}
    same(by_weight(new, again), by_weight(old, module))


def test_a_partial_state_starts_its_count_anew():
    """A memory that the old optimiser did not have is told, and the count of steps stays behind with it."""

    class Two(Momentum):
        def initial_state(self, parameter, group):
            return {"momentum": torch.zeros_like(parameter), "slow": torch.full_like(parameter, 2.0)}

    module, old = stepped()
    again = network()
    new = Two(again.named_parameters())
    found = carry(old, new)
    assert found.missing == {name: ("step", "slow") for name in values(module)}
    assert found.left == {name: ("step",) for name in values(module)}
    for name, state in by_weight(new, again).items():
        same(state["momentum"], by_weight(old, module)[name]["momentum"])
        assert state["step"] == 0 and (state["slow"] == 2.0).all()
    back = carry(new, third := Momentum(network().named_parameters()))
    assert back.left == {name: ("slow",) for name in values(module)} and back.missing == {}
    same(state_of(third), {k: v for k, v in state_of(new).items() if "slow" not in k})


def test_a_state_of_one_name_and_another_shape_stays_behind():
    """A momentum of each row is none of each number, whatever it is called; `slow`, of one shape, moves."""

    class Rows(Momentum):
        def initial_state(self, parameter, group):
            return {"momentum": torch.zeros_like(parameter[..., 0]), "slow": torch.zeros_like(parameter)}

        def directions(self, parameters, gradients, states, group):
            return [state["slow"].add_(g) for g, state in zip(gradients, states, strict=True)]

    class Whole(Rows):
        def initial_state(self, parameter, group):
            return {"momentum": torch.ones_like(parameter), "slow": torch.zeros_like(parameter)}

    module, old = stepped(Rows)
    again = network()
    found = carry(old, new := Whole(again.named_parameters()))
    assert found.left == found.missing == {name: ("step", "momentum") for name in values(module)}
    for name, state in by_weight(new, again).items():
        same(state["slow"], by_weight(old, module)[name]["slow"])
        same(state["momentum"], torch.ones_like(state["slow"]))


@pytest.mark.parametrize(("count", "times"), [(999, 25.1), (0, 10.0)])
def test_why_the_count_stays_behind(count, times):
    """Adam whose first moment was carried (gradients of one) and the second was not: its next step in units of the rate."""
    p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    adam = torch.optim.Adam([p], lr=1.0)
    p.grad = torch.ones_like(p)
    adam.state[p] = {"step": torch.tensor(float(count)), "exp_avg": p.grad.clone(), "exp_avg_sq": torch.zeros_like(p)}
    adam.step()
    assert -p.item() == pytest.approx(times, rel=0.01)


@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Muon])
def test_torch_optimisers_are_carried_too(cls):
    """The same promise for classes that are not ours, between optimisers of one class."""
    settings = {"momentum": 0.9} if cls is not torch.optim.AdamW else {}

    def made(module):
        return cls([(n, p) for n, p in module.named_parameters() if p.dim() == 2], lr=LR, **settings)

    module = network()
    old = made(module)
    learn(module, old, range(3))
    again = copy.deepcopy(module)
    new = made(again)
    carry(old, new)
    learn(module, old, range(3, 6))
    learn(again, new, range(3, 6))
    same(values(again), values(module))


@pytest.mark.parametrize(("theirs", "mine"), [(torch.bfloat16, torch.float64), (torch.float64, torch.bfloat16)])
def test_the_state_takes_the_precision_of_the_new_model(theirs, mine):
    """It is float32 where parameters are bfloat16, not bfloat16; otherwise it has their dtype."""
    module, old = stepped(dtype=theirs)
    again = network(mine)
    carry(old, new := Momentum(again.named_parameters()))
    for name, state in by_weight(new, again).items():
        expected = by_weight(old, module)[name]["momentum"]
        same(state["momentum"], expected.double() if mine == torch.float64 else expected.float())


def test_what_was_carried_is_a_copy_and_the_groups_stay_the_same_objects():
    """Steps of the old optimiser change nothing of the new one; a scheduler of the new one still sets its rate."""
    module, old = stepped()
    new = Momentum(network().named_parameters(), lr=0.5)
    group, schedule = new.param_groups[0], torch.optim.lr_scheduler.ExponentialLR(new, 0.1)
    carry(old, new)
    kept = state_of(new)
    learn(module, old, [3])
    differ(state_of(old), kept)
    same(state_of(new), kept)
    new.step()
    schedule.step()
    assert new.param_groups[0] is group and group["lr"] == pytest.approx(0.05)


def refused(old, new, match):
    """Carrying raises, and leaves the state of the new one as it was."""
    before = state_of(new)
    with pytest.raises(ValueError, match=match):
        carry(old, new)
    assert list(before) == list(state_of(new))
    same(state_of(new), before)


def test_an_optimiser_without_names_is_refused():
    """On either side, with how to make it."""
    module, old = stepped()
    refused(old, Momentum(network().parameters()), r"model\.named_parameters\(\)")
    refused(Momentum(module.parameters()), Momentum(network().named_parameters()), r"model\.named_parameters\(\)")


def test_other_shapes_are_refused_by_name():
    """All of them are named, with both shapes; nothing moves, not even what would fit."""
    _, old = stepped()
    other = network()
    other[0], other[6] = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()
    new = Momentum(other.named_parameters())
    refused(old, new, r"0\.weight \(5, 3\) and \(5, 4\), 6\.weight \(2, 5\) and \(3, 5\), 6\.bias")
    assert new.state == {}


def test_nothing_in_common_is_refused():
    """Other names; a name twice; an optimiser that has not stepped; states with nothing in common."""
    module, old = stepped()
    wrapped = nn.ModuleDict({"module": network()})
    refused(old, Momentum(wrapped.named_parameters()), "a wrapper puts its own name in front")
    twice = [("a", module[0].weight), ("a", module[2].weight)]
    refused(old, Momentum(twice), "'a' names two parameters")
    refused(Momentum(network().named_parameters()), Momentum(module.named_parameters()), "made no step")
    adamw = torch.optim.AdamW(module.named_parameters())
    learn(module, adamw, [0])
    refused(adamw, Momentum(network().named_parameters()), "no part of the state of AdamW")
    refused(old, torch.optim.AdamW(network().named_parameters()), "take one with lr=0 first")


def test_a_wrapper_is_refused():
    """What stands around an optimiser may remember more than that one's state: it is not left behind unsaid."""

    class Around(torch.optim.Optimizer):
        def __init__(self, inside):
            self.inside = inside
            self.__setstate__({"defaults": inside.defaults})

        @property
        def param_groups(self):
            return self.inside.param_groups

    _, old = stepped()
    refused(Around(old), Momentum(network().named_parameters()), "Around stands around another optimiser")
