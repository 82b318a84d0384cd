"""PyTorch's own tests of its optimisers, over every row of `tests.optimizers.OPTIMIZERS`.

The settings and the inputs that must be refused are PyTorch's (`torch.testing._internal.common_optimizers`, as far as they
concern settings that all optimisers have); the cases are those of `TestOptimRenewed` in its `test/test_optim.py`, which
no wheel contains, written anew. Its cases by name:

Here: errors, forloop_goes_right_direction, param_group_with_lrscheduler_goes_right_direction, param_groups_lr,
    param_groups_weight_decay, optimizer_can_be_printed, state_dict_deterministic, can_load_from_to_named_state_dict,
    can_load_older_state_dict, load_nontensor_step, state_dict_{pre,post,pre_post}_hook, load_state_dict_{pre_hook_and_
    prepend,post_hook,pre_post_hook}, step_all_hooks, deepcopy_copies_all_public_attrs, non_empty_state, step_iteration,
    set_default_dtype_works_with_foreach; and, where there is CUDA, cpu_load_state_dict, state_dict_with_cuda_params and
    mixed_device_dtype.
In `test_optimizers.py`, with equality where PyTorch has a direction or a tolerance: tensor_lr, step_{pre,post}_hook,
    step_is_noop_when_params_have_no_grad, step_is_noop_for_zero_grads, save_load_equality_with_weights_only,
    grads_are_never_inplaced_into, and foreach_matches_forloop (there is one implementation, on lists: a list is compared
    with its elements one at a time).
Refused, and tested to be: complex, complex_2d, rosenbrock_sparse (whose dense half is in `test_optimizers.py`).
Do not apply: all cases of `fused` and of `differentiable`, which are not offered; defaults_changed_to_foreach and
    optim_infos_do_not_specify_global_cliquey_kwargs, about choices that do not exist here; second_order_optims_*, as no
    optimiser here needs a closure.
Not run: foreach_large_tensor (72 GB), peak_memory_foreach (it pins torch's own intermediates), *_multigpu.

Two differences from torch.optim are on purpose: the count of steps is float64 whatever the default dtype is, and
`capturable` works on the CPU too, where torch refuses it.
"""

import copy
import importlib
import itertools

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from tests.helpers import close, same
from tests.optimizers import OPTIMIZERS, give, learn, loose, make, network, state_of, values

LR = 0.001
COMMON = {"lr", "weight_decay", "maximize", "capturable"}
every = pytest.mark.parametrize("name", OPTIMIZERS)
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.fixture(scope="session")
def theirs():
    """PyTorch's module of optimiser tests. Importing it takes seconds, and freezes the flags of torch.backends."""
    return importlib.import_module("torch.testing._internal.common_optimizers")


@pytest.fixture
def configurations(theirs, name):
    """Every setting of theirs that concerns all optimisers, each once, with the rate of these tests where it has none."""
    functions = [getattr(theirs, f"optim_inputs_func_{f}") for f in ("adadelta", "adam", "muon", "sgd")]
    kwargs = [one.kwargs for function in functions for one in function("cpu")]
    kwargs += [{"capturable": True}] if OPTIMIZERS[name].capturable else []
    return copy.deepcopy(list({str(k): {"lr": LR, **k} for k in kwargs if set(k) <= COMMON}.values()))


class Task:
    """Their task: `|W x + b|^2` with a matrix and a vector."""

    def __init__(self, contiguous=True, **factory):
        generator = torch.Generator().manual_seed(2)
        weight, bias = (torch.randn(*shape, generator=generator).to(**factory) for shape in ((10, 5, 2), (10, 2)))
        self.x = torch.randn(5, generator=generator).to(**factory)
        pick = (lambda t: t[..., 0].contiguous()) if contiguous else (lambda t: t[..., 0])
        self.module = nn.Module()
        self.module.weight, self.module.bias = nn.Parameter(pick(weight)), nn.Parameter(pick(bias))

    def named(self, names=True):
        return list(self.module.named_parameters() if names else self.module.parameters())

    def closure(self):
        self.module.zero_grad()
        loss = (self.module.weight.mv(self.x) + self.module.bias).square().sum()
        loss.backward()
        return loss

    def moved(self, optimizer, schedulers=(), steps=12):
        """By how much the loss rises in some steps."""
        start = self.closure().item()
        for _ in range(steps):
            loss = optimizer.step(self.closure)
            for scheduler in schedulers:
                scheduler.step(*([loss.detach()] if isinstance(scheduler, ReduceLROnPlateau) else []))
        return self.closure().item() - start


def schedules(optimizer):
    """Their pair of schedulers."""
    return [StepLR(optimizer, gamma=0.9, step_size=10), ReduceLROnPlateau(optimizer)]


def went_right(change, settings):
    """Up where it maximises, down otherwise."""
    assert change > 0 if settings.get("maximize") else change < 0, settings


@every
def test_errors(name, theirs):
    """What every optimiser of torch refuses is refused, with torch's message."""
    inputs = theirs.get_error_inputs_for_all_optims("cpu", torch.float32)
    assert len(inputs) > 4
    for case in inputs:
        given = case.optimizer_error_input
        params = [nn.Parameter(torch.ones(1, 1))] if given.params is None else given.params
        warns = issubclass(case.error_type, Warning)
        with (pytest.warns if warns else pytest.raises)(case.error_type, match=case.error_regex):
            make(name, nn.Module(), params, **{"lr": LR, **given.kwargs})


@every
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("scheduled", [False, True])
def test_the_loss_goes_the_right_way(name, contiguous, scheduled, configurations):
    """In a few steps, with each of torch's settings, whatever the memory's layout, with schedulers and without."""
    for settings in configurations:
        task = Task(contiguous)
        optimizer = make(name, task.module, **settings)
        went_right(task.moved(optimizer, schedules(optimizer) if scheduled else ()), settings)


@every
def test_a_group_with_its_own_rate_goes_the_right_way_under_schedulers(name):
    """A matrix with the default rate and a vector with its own."""
    task = Task()
    weight, bias = task.named(names=False)
    optimizer = make(name, task.module, [{"params": [weight]}, {"params": [bias], "lr": 0.01}], lr=LR)
    assert task.moved(optimizer, schedules(optimizer)) < 0
    assert optimizer.param_groups[0]["lr"] < LR and optimizer.param_groups[1]["lr"] < 0.01


@every
def test_groups_with_and_without_decay_go_the_right_way(name, configurations):
    """Settings in groups do what they do in the constructor."""
    for settings in configurations:
        task = Task()
        weight, bias = task.named(names=False)
        groups = [{"params": [weight], **settings}, {"params": [bias], **settings, "weight_decay": 0.0}]
        went_right(task.moved(make(name, task.module, groups, lr=LR)), settings)


@every
def test_a_rate_of_almost_nothing_does_nothing(name, configurations):
    """The parameters of a group with the constructor's rate of 1e-28 stay where they are; the others move."""
    for settings in configurations:
        task, still = Task(), nn.Parameter(torch.randn(2))
        before = still.detach().clone()
        groups = [{"params": task.named(names=False), **settings}, {"params": [still]}]
        optimizer = make(name, task.module, groups, lr=1e-28)
        still.grad = torch.ones(2)
        went_right(task.moved(optimizer), settings)
        same(still.detach(), before)


@every
def test_it_can_be_printed(name, configurations):
    """By its name, with the settings of its groups."""
    for settings in configurations:
        optimizer = make(name, network(), **settings)
        told = repr(optimizer)
        assert told.startswith(type(optimizer).__name__) and f"lr: {settings['lr']}" in told


def settings_of(optimizer):
    """Of its groups, without the names of parameters."""
    groups = optimizer.state_dict()["param_groups"]
    return [{k: str(v) for k, v in group.items() if k != "param_names"} for group in groups]


@every
@pytest.mark.parametrize(("first", "second"), list(itertools.product([True, False], repeat=2)))
def test_state_dictionaries_are_deterministic(name, first, second, configurations):
    """Equal parameters, named or not, have equal dictionaries after equal steps; names come from whoever has them."""
    for settings in configurations:
        task, other = Task(), Task()
        optimizer = make(name, task.module, task.named(first), **copy.deepcopy(settings))
        task.moved(optimizer, steps=3)
        other.module.load_state_dict(task.module.state_dict())
        loaded = make(name, other.module, other.named(second), **copy.deepcopy(settings))
        loaded.load_state_dict(optimizer.state_dict())
        for one, its in ((task, optimizer), (other, loaded)):
            one.moved(its, steps=3)
        same(values(other.module), values(task.module))
        same(state_of(loaded), state_of(optimizer))
        assert settings_of(loaded) == settings_of(optimizer)
        names = [n for group in loaded.state_dict()["param_groups"] for n in group.get("param_names", [])]
        assert names == (["weight", "bias"] if first or second else [])


@every
def test_an_older_dictionary_can_be_loaded(name):
    """Settings that it does not have stay as the optimiser was made; a count of steps may be a number."""
    task, other = Task(), Task()
    optimizer = make(name, task.module, lr=LR)
    task.moved(optimizer, steps=3)
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        for flag in ("maximize", "capturable", "weight_decay"):
            del group[flag]
    for state in saved["state"].values():
        state["step"] = state["step"].item()
    other.module.load_state_dict(task.module.state_dict())
    loaded = make(name, other.module, lr=0.5, weight_decay=0.1, maximize=True)
    loaded.load_state_dict(saved)
    for group in loaded.param_groups:
        assert (group["lr"], group["weight_decay"], group["maximize"]) == (LR, 0.1, True)
    same(state_of(loaded), state_of(optimizer))
    other.moved(loaded, steps=1)


@every
def test_hooks_of_state_dict(name):
    """One before sees the optimiser, one after may change the dictionary."""
    optimizer = make(name, loose((2, 3)), lr=LR)
    optimizer.register_state_dict_pre_hook(lambda o: o.state.update(test=1))
    assert optimizer.state_dict()["state"]["test"] == 1
    optimizer.register_state_dict_post_hook(lambda o, saved: {**saved, "state": {}, "after": "test" in saved["state"]})
    saved = optimizer.state_dict()
    assert saved["state"] == {} and saved["after"]


@every
def test_hooks_of_load_state_dict(name):
    """Those before may change or replace the dictionary, in their order, and that is what is loaded before those after."""
    task, told = Task(), []
    optimizer, loaded = make(name, task.module, lr=LR), make(name, Task().module, lr=LR)
    task.moved(optimizer, steps=1)

    def replaces(o, saved):
        saved = copy.deepcopy(saved)
        saved["param_groups"][0]["lr"] = 0.003
        for value in saved["state"][0].values():
            value += 40
        return {**saved, "state": {**saved["state"], "more": 5}}

    def changes(o, saved):
        saved["param_groups"][0]["lr"] = 0.002

    def looks(o):
        told.append((o.param_groups[0]["lr"], o.state["more"], copy.deepcopy(o.state[o.param_groups[0]["params"][0]])))

    loaded.register_load_state_dict_pre_hook(changes)
    loaded.register_load_state_dict_pre_hook(replaces, prepend=True)
    loaded.register_load_state_dict_post_hook(looks)
    loaded.load_state_dict(optimizer.state_dict())
    ((lr, more, seen),) = told
    assert lr == 0.002 and more == 5
    for state in (seen, loaded.state[loaded.param_groups[0]["params"][0]]):
        same(dict(state), {key: value + 40 for key, value in optimizer.state_dict()["state"][0].items()})


@every
def test_global_and_own_hooks_of_a_step_run_in_order(name):
    """Global before, own before, own after, global after; and none of them once its handle is removed."""
    optimizer, order = make(name, loose((2, 3)), lr=LR), []
    handles = [
        register_optimizer_step_pre_hook(lambda o, a, k: order.append(0)),
        register_optimizer_step_post_hook(lambda o, a, k: order.append(3)),
        optimizer.register_step_pre_hook(lambda o, a, k: order.append(1)),
        optimizer.register_step_post_hook(lambda o, a, k: order.append(2)),
    ]
    for _ in range(2):
        optimizer.step()
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert order == [0, 1, 2, 3] * 2


@pytest.mark.parametrize("name", [name for name, row in OPTIMIZERS.items() if not row.watches])
def test_a_copy_has_all_public_attributes(name):
    """Nothing that an optimiser shows is lost by deepcopy."""
    module = network()
    optimizer = make(name, module, lr=LR)
    learn(module, optimizer, range(3))
    assert {k for k in vars(optimizer) if k[0] != "_"} == {k for k in vars(copy.deepcopy(optimizer)) if k[0] != "_"}


@every
@pytest.mark.parametrize("default", [torch.float32, torch.float64, torch.float16], ids=str)
def test_steps_are_counted_in_float64_whatever_the_default(name, default):
    """The state is not empty, its count is the number of steps, and the default dtype changes no number of it."""
    plain, module = (loose((3, 2), (4,), dtype=torch.float32) for _ in range(2))
    for p, q in zip(module, plain, strict=True):
        p.data.copy_(q)
    optimizers = [make(name, m, lr=LR) for m in (plain, module)]
    for seed in range(3):
        for m, optimizer, dtype in zip((plain, module), optimizers, (torch.float32, default), strict=True):
            give(m, seed)
            torch.set_default_dtype(dtype)
            try:
                optimizer.step()
            finally:
                torch.set_default_dtype(torch.float32)
    same(state_of(optimizers[1]), state_of(optimizers[0]))
    same(values(module), values(plain))
    for p in module:
        step = optimizers[1].state[p]["step"]
        assert step == 3 and step.dtype == torch.float64 and len(optimizers[1].state[p]) > 1


@every
@cuda
@pytest.mark.parametrize("capturable", [False, True])
def test_a_state_from_the_cpu_goes_on_on_cuda(name, capturable):
    """The count of steps stays on the CPU unless it must be part of a graph; the dictionary is left as it was."""
    if capturable and not OPTIMIZERS[name].capturable:
        pytest.skip("not offered")
    task, other = Task(), Task(device="cuda")
    optimizer = make(name, task.module, lr=LR)
    task.moved(optimizer, steps=3)
    other.module.load_state_dict(task.module.state_dict())
    loaded = make(name, other.module, lr=LR, **({"capturable": True} if capturable else {}))
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        group["capturable"] = capturable
    kept = copy.deepcopy(saved)
    loaded.load_state_dict(saved)
    assert str(kept) == str(saved)
    devices = {key: t.device.type for key, t in state_of(loaded).items()}
    assert all(d == "cuda" for key, d in devices.items() if capturable or not key.endswith(".step"))
    assert all(d == "cpu" for key, d in devices.items() if not capturable and key.endswith(".step"))
    for one, its in ((task, optimizer), (other, loaded)):
        one.moved(its, steps=5)
    close({k: v.cpu() for k, v in values(other.module).items()}, values(task.module), 1e-5)


@every
@cuda
def test_devices_and_precisions_may_be_mixed(name):
    """Parameters on two devices in three precisions in one group move as each kind does alone."""
    kinds = [("cpu", torch.float32), ("cuda", torch.float32), ("cuda", torch.bfloat16), ("cpu", torch.float64)]
    mixed = nn.ParameterList([torch.ones(3, 2, device=device, dtype=dtype) for device, dtype in kinds])
    singles = [nn.ParameterList([p.detach().clone()]) for p in mixed]
    optimizer, others = make(name, mixed, lr=LR), [make(name, single, lr=LR) for single in singles]
    for seed in range(3):
        give(mixed, seed)
        optimizer.step()
        for p, single, other in zip(mixed, singles, others, strict=True):
            single[0].grad = p.grad.clone()
            other.step()
    for p, single in zip(mixed, singles, strict=True):
        torch.testing.assert_close(p, single[0])
