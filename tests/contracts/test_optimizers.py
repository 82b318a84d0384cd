"""The contract of every optimiser, `tests.optimizers.OPTIMIZERS`: what users of torch.optim count on.

PyTorch's own cases are in `test_optimizers_torch.py`, the mathematics of each optimiser in its own file.
"""

import copy
import importlib
import inspect
import io
import json
import pkgutil
from itertools import product

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from nestling import optim
from tests.helpers import close, differ, same
from tests.optimizers import ALL, OPTIMIZERS, add, give, learn, loose, loss_of, make, network, state_of, values

LR = 0.01
every = pytest.mark.parametrize("name", OPTIMIZERS)
wrapped_too = pytest.mark.parametrize("name", ALL)
alone = pytest.mark.parametrize("name", [name for name, row in OPTIMIZERS.items() if not row.watches])


def started(name, dtype=torch.float64, steps=3, **settings):
    """A network and its optimiser after some steps."""
    module = network(dtype)
    optimizer = make(name, module, **{"lr": LR, **settings})
    learn(module, optimizer, range(steps))
    return module, optimizer


def twin(name, module, optimizer, **settings):
    """A new optimiser over a copy of the module, its state loaded from the old one's."""
    module = copy.deepcopy(module)
    other = make(name, module, **{"lr": LR, **settings})
    other.load_state_dict(optimizer.state_dict())
    return module, other


def halves(module):
    """The parameters in two groups, with their names."""
    named = list(module.named_parameters())
    return named[:4], named[4:]


def test_every_optimiser_has_a_row():
    """No class of `nestling.optim` that steps is missing in the table."""
    rows = {type(make(name, network(), lr=LR)) for name in ALL}
    for file in pkgutil.iter_modules(optim.__path__):
        module = importlib.import_module(f"{optim.__name__}.{file.name}")
        classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, torch.optim.Optimizer)]
        assert {c for c in classes if c.__module__ == module.__name__ and not inspect.isabstract(c)} <= rows


# ---- steps


@wrapped_too
def test_a_step_moves_every_parameter(name):
    """The guard of this file: a step that did nothing would pass most of it."""
    module = network()
    before = values(module)
    learn(module, make(name, module, lr=LR), range(2))
    for key, value in values(module).items():
        assert (value - before[key]).abs().max() > 1e-6, key


@wrapped_too
def test_a_closure_is_called_once_with_gradients_on(name):
    """`step(closure)` is zero_grad, backward, step; it returns the loss, and works where gradients are off."""
    plain, module = network(), network()
    learn(plain, make(name, plain, lr=LR), range(3))
    optimizer, seen = make(name, module, lr=LR), []

    def closure():
        optimizer.zero_grad()
        loss = loss_of(module, len(seen))
        loss.backward()
        seen.append(loss)
        return loss

    with torch.no_grad():
        losses = [optimizer.step(closure) for _ in range(3)]
    assert all(loss is found for loss, found in zip(losses, seen, strict=True))
    same(values(module), values(plain))


@wrapped_too
def test_maximize_climbs(name):
    """`maximize` is descent on the negated loss."""
    up, down = network(), network()
    learn(up, make(name, up, lr=LR, maximize=True), range(4))
    learn(down, make(name, down, lr=LR), range(4), sign=-1.0)
    same(values(up), values(down))


@every
def test_weight_decay_is_decoupled(name):
    """From the same place: `p_decayed = p_plain - lr wd p`, and the state does not see the decay."""
    module, optimizer = started(name)
    decayed, other = twin(name, module, optimizer)
    before = values(module)
    for group in other.param_groups:
        group["weight_decay"] = 0.3
    learn(module, optimizer, [3])
    learn(decayed, other, [3])
    close(values(decayed), {key: p - LR * 0.3 * before[key] for key, p in values(module).items()}, 1e-12)
    same(state_of(other), state_of(optimizer))


@every
def test_zero_gradients_do_nothing_at_the_start_and_no_harm_later(name):
    """Gradients of zeros from the beginning move nothing; after real ones everything stays finite."""
    module = loose((4, 3), (3, 4), (5,), ())
    optimizer, before = make(name, module, lr=LR, weight_decay=0.0), values(module)
    for _ in range(3):
        for p in module.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    same(values(module), before)
    for seed in (1, None, None):
        if seed is None:
            optimizer.zero_grad(set_to_none=False)
        else:
            give(module, seed)
        optimizer.step()
    differ(values(module), before)
    assert all(t.isfinite().all() for t in [*values(module).values(), *state_of(optimizer).values()])


@wrapped_too
def test_gradients_are_read_only(name):
    """A step changes no gradient, and what is done to a gradient afterwards changes no state."""
    module, optimizer = started(name, torch.float32)
    loss_of(module, 3).backward()
    before = {key: p.grad.clone() for key, p in module.named_parameters()}
    optimizer.step()
    same({key: p.grad for key, p in module.named_parameters()}, before)
    kept = state_of(optimizer)
    for p in module.parameters():
        p.grad.fill_(float("nan"))
    same(state_of(optimizer), kept)


@wrapped_too
def test_a_step_is_determined(name):
    """Neither memory's layout nor earlier random numbers enter: two runs are the same bits, and no random one is drawn."""
    first, _ = started(name)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    second, _ = started(name)
    same(values(first), values(second))
    assert torch.equal(torch.get_rng_state(), before)


# ---- which parameters, in which groups


@wrapped_too
def test_groups_are_optimisers_of_their_own(name):
    """Two groups with their own rate and decay = two optimisers with them."""
    module, other = network(), network()
    first, second = halves(module)
    own = {"lr": 3 * LR, "weight_decay": 0.2}
    together = make(name, module, [{"params": first}, {"params": second, **own}], lr=LR, weight_decay=0.0)
    first, second = halves(other)
    apart = [make(name, other, first, lr=LR, weight_decay=0.0), make(name, other, second, **own)]
    for index in range(3):
        learn(module, together, [index])
        other.zero_grad()
        loss_of(other, index).backward()
        for optimizer in apart:
            optimizer.step()
    same(values(module), values(other))


@wrapped_too
def test_a_group_can_be_added_later(name):
    """`add_param_group` = an optimiser that starts then; the others go on."""
    module, other = network(), network()
    first, second = halves(module)
    together = make(name, module, first, lr=LR, weight_decay=0.0)
    learn(module, together, range(2))
    add(name, module, together, {"params": second, "lr": 3 * LR})
    first, second = halves(other)
    learn(other, early := make(name, other, first, lr=LR, weight_decay=0.0), range(2))
    late = make(name, other, second, lr=3 * LR, weight_decay=0.0)
    for index in (2, 3):
        learn(module, together, [index])
        other.zero_grad()
        loss_of(other, index).backward()
        early.step()
        late.step()
    same(values(module), values(other))


@every
def test_a_parameter_without_a_gradient_keeps_its_place_and_its_state(name):
    """It is skipped, decay included; its own memory goes on where it stopped when the gradient comes back."""
    module, optimizer = loose((4, 3), (4, 3), (5,)), None
    alone = loose((4, 3))
    alone[0].data.copy_(module[1])
    optimizer, single = (make(name, m, lr=LR, weight_decay=0.1) for m in (module, alone))
    for seed in range(6):
        give(module, seed)
        if seed in (0, 3, 4):  # without one from the beginning, and again later
            module[1].grad = None
            before, kept = module[1].detach().clone(), copy.deepcopy(dict(optimizer.state.get(module[1], {})))
            optimizer.step()
            same(module[1].detach(), before)
            same(dict(optimizer.state.get(module[1], {})), kept)
        else:
            alone[0].grad = module[1].grad.clone()
            optimizer.step()
            single.step()
            close(module[1].detach(), alone[0].detach(), 1e-12)


@every
def test_many_of_one_shape_are_each_alone(name):
    """Batching over parameters of one shape changes no number beyond the order of sums."""
    shapes = [(4, 3)] * 5 + [(3, 4), (6,), (6,), (2, 3, 2), (1, 1), ()]
    module = loose(*shapes)
    singles = [nn.ParameterList([p.detach().clone()]) for p in module]
    optimizer = make(name, module, lr=LR, weight_decay=0.1)
    others = [make(name, single, lr=LR, weight_decay=0.1) for single in singles]
    for seed in range(4):
        give(module, seed)
        optimizer.step()
        for p, single, other in zip(module, singles, others, strict=True):
            single[0].grad = p.grad.clone()
            other.step()
    close([p.detach() for p in module], [single[0].detach() for single in singles], 1e-12)


@every
def test_empty_parameters_are_no_obstacle(name):
    """A parameter without elements has nowhere to go, and the others move as if it were not there."""
    module, other = loose((4, 3), (0,), (0, 3), (3, 0), (5,)), loose((4, 3), (5,))
    for i, j in ((0, 0), (4, 1)):
        other[j].data.copy_(module[i])
    optimizers = [make(name, m, lr=LR) for m in (module, other)]
    for seed in range(2):
        give(other, seed)
        for p in module:
            p.grad = torch.zeros_like(p)
        module[0].grad, module[4].grad = other[0].grad.clone(), other[1].grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    same([module[0].detach(), module[4].detach()], [p.detach() for p in other])


@every
def test_strides_do_not_matter(name):
    """Parameters and gradients that are transposed or strided in memory move like contiguous ones."""
    plain = loose((4, 3), (6,))
    strided = nn.ParameterList(
        [nn.Parameter(torch.empty(3, 4).double().t()), nn.Parameter(torch.empty(12).double()[::2])]
    )
    for p, q in zip(strided, plain, strict=True):
        p.data.copy_(q)
        assert not p.is_contiguous()
    optimizers = [make(name, m, lr=LR, weight_decay=0.1) for m in (plain, strided)]
    for seed in range(3):
        for m, optimizer in zip((plain, strided), optimizers, strict=True):
            give(m, seed)
            optimizer.step()
    close([p.detach() for p in strided], [p.detach() for p in plain], 1e-12)


@every
def test_each_precision_goes_its_own_way_in_one_group(name):
    """float64, float32, bfloat16 and float16 parameters in one group move as each does alone."""
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    mixed = nn.ParameterList([torch.ones(4, 3, dtype=dtype) for dtype in dtypes])
    optimizer = make(name, mixed, lr=LR)
    singles = [nn.ParameterList([p.detach().clone()]) for p in mixed]
    others = [make(name, single, lr=LR) for single in singles]
    for seed in range(3):
        give(mixed, seed)
        optimizer.step()
        for p, single, other in zip(mixed, singles, others, strict=True):
            single[0].grad = p.grad.clone()
            other.step()
    for p, single in zip(mixed, singles, strict=True):
        assert p.dtype == single[0].dtype
        torch.testing.assert_close(p, single[0])


# ---- precision


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_float32_rounded_once(name, dtype):
    """From one place with one gradient: the state is that of a float32 parameter, the parameter is that one's, rounded."""
    low, full = loose((4, 3), (5,), dtype=dtype), loose((4, 3), (5,), dtype=torch.float32)
    for p, q in zip(full, low, strict=True):
        p.data.copy_(q)
    optimizers = [make(name, m, lr=LR, weight_decay=0.1) for m in (low, full)]
    for seed in range(3):
        give(low, seed)
        for p, q in zip(full, low, strict=True):
            p.data.copy_(q)
            p.grad = q.grad.float()
        for optimizer in optimizers:
            optimizer.step()
        same([p.detach() for p in low], [p.detach().to(dtype) for p in full])
    same(state_of(optimizers[0]), state_of(optimizers[1]))
    assert all(t.dtype == torch.float32 for t in state_of(optimizers[0]).values() if t.is_floating_point() and t.dim())


@every
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_a_rate_may_be_a_tensor(name, shape):
    """A tensor of one element, of any shape, is the number in it."""
    plain, module = network(), network()
    learn(plain, make(name, plain, lr=LR, weight_decay=0.1), range(3))
    learn(module, make(name, module, lr=torch.full(shape, LR, dtype=torch.float64), weight_decay=0.1), range(3))
    close(values(module), values(plain), 1e-12)


# ---- saving, loading, copying


def through_torch(saved):
    """A file of torch.save, read with nothing but plain data allowed."""
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def through_safetensors(saved):
    """Tensors as safetensors, the rest as JSON: how this library keeps what was learnt."""
    tensors = {f"{i}/{key}": value for i, state in saved["state"].items() for key, value in state.items()}
    tensors = load_tensors(save_tensors(tensors))
    state = {int(i): {} for i in saved["state"]}
    for key, value in tensors.items():
        state[int(key.split("/")[0])][key.split("/", 1)[1]] = value
    return {"state": state, "param_groups": json.loads(json.dumps(saved["param_groups"]))}


@pytest.mark.parametrize(
    ("name", "through"), [*product(ALL, [through_torch]), *product(OPTIMIZERS, [through_safetensors])]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_saved_optimiser_goes_on_as_the_old_one(name, through, dtype):
    """Saved and loaded into an optimiser made with other settings: state, settings and steps are the same bits."""
    module, optimizer = started(name, dtype, weight_decay=0.1)
    copied = copy.deepcopy(module)
    other = make(name, copied, lr=0.5)
    other.load_state_dict(through(optimizer.state_dict()))
    same(state_of(other), state_of(optimizer))
    assert json.dumps(other.state_dict()["param_groups"], sort_keys=True) == json.dumps(
        optimizer.state_dict()["param_groups"], sort_keys=True
    )
    learn(module, optimizer, range(3, 7))
    learn(copied, other, range(3, 7))
    same(values(copied), values(module))
    same(state_of(other), state_of(optimizer))


@wrapped_too
def test_what_was_loaded_is_a_copy(name):
    """After one has loaded the other's state in memory, the steps of one are none of the other."""
    module, optimizer = started(name)
    _, other = twin(name, module, optimizer)
    kept = state_of(other)
    learn(module, optimizer, [3])
    differ(state_of(optimizer), kept)
    same(state_of(other), kept)


@wrapped_too
def test_the_state_follows_the_precision_of_the_model(name):
    """A state saved in float64 works on float32 parameters, and the other way: it takes their precision."""
    for theirs, mine in ((torch.float64, torch.float32), (torch.float32, torch.float64)):
        _, optimizer = started(name, theirs)
        module = network(mine)
        other = make(name, module, lr=LR)
        other.load_state_dict(optimizer.state_dict())
        learn(module, other, [3])
        floats = {k: t for k, t in state_of(other).items() if t.is_floating_point() and t.dim()}
        assert floats and all(t.dtype == mine for t in floats.values())


@wrapped_too
def test_a_deep_copy_is_a_second_optimiser(name):
    """It comes with copies of the parameters, goes on identically, and leaves the first one alone.

    One with hooks in a module says that it cannot be copied, and so does a shallow copy.
    """
    module, optimizer = started(name)
    if ALL[name].watches:
        for function in (copy.deepcopy, copy.copy):
            with pytest.raises(ValueError, match="cop"):
                function(optimizer)
        return
    both, second = copy.deepcopy((module, optimizer))
    before = values(module)
    learn(both, second, range(3, 6))
    same(values(module), before)
    learn(module, optimizer, range(3, 6))
    same(values(both), values(module))


@alone
def test_a_shallow_copy_is_the_same_optimiser(name):
    """`copy.copy` shares parameters and state: steps by either are steps of one."""
    module, optimizer = started(name)
    other, straight = copy.copy(optimizer), network()
    learn(module, other, [3])
    learn(module, optimizer, [4])
    learn(straight, make(name, straight, lr=LR), range(5))
    same(values(module), values(straight))


@wrapped_too
def test_distributed_checkpoints_know_it(name):
    """torch.distributed.checkpoint's state by parameter name goes into an optimiser that has not stepped.

    It makes the state by a step with gradients of zero, at which one that wants to see inputs says so.
    """
    from torch.distributed.checkpoint import state_dict as dcp

    module, optimizer = started(name)
    saved = dcp.get_optimizer_state_dict(module, optimizer)
    copied = copy.deepcopy(module)
    other = make(name, copied, lr=0.5)
    if ALL[name].watches:
        with pytest.raises(ValueError, match="inputs"):
            dcp.set_optimizer_state_dict(copied, other, saved)
        return
    dcp.set_optimizer_state_dict(copied, other, copy.deepcopy(saved))
    same(values(copied), values(module))
    learn(module, optimizer, range(3, 5))
    learn(copied, other, range(3, 5))
    same(values(copied), values(module))


# ---- what stands around an optimiser


@wrapped_too
def test_a_schedule_sets_the_rate(name):
    """LambdaLR = setting the rate by hand before each step, with a number and with a tensor."""
    rates = [1.0, 0.5, 0.25, 2.0]
    by_hand, optimizer = started(name, steps=0)
    for index, factor in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = LR * factor
        learn(by_hand, optimizer, [index])
    for lr in (LR, torch.tensor(LR, dtype=torch.float64)):
        module, optimizer = started(name, steps=0, lr=lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rates[min(step, 3)])
        for index in range(4):
            learn(module, optimizer, [index])
            schedule.step()
        close(values(module), values(by_hand), 1e-12)


@wrapped_too
def test_one_cycle_turns_the_momentum_where_there_is_one(name):
    """OneCycleLR works; it cycles the first of `betas`, or else `momentum`; where neither is a setting it says so."""
    module, optimizer = started(name, steps=0)
    cycles = {"max_lr": LR, "total_steps": 6}
    keys = [key for key in ("betas", "momentum") if key in optimizer.defaults][:1]
    if not keys:
        with pytest.raises(ValueError, match="momentum"):
            torch.optim.lr_scheduler.OneCycleLR(optimizer, **cycles)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, cycle_momentum=bool(keys), **cycles)
    seen = []
    for index in range(5):
        learn(module, optimizer, [index])
        schedule.step()
        group = optimizer.param_groups[0]
        seen.append((group["lr"], *(group[key] for key in keys)))
    assert len(set(seen)) == 5
    if keys:
        assert seen[0][1] != seen[1][1]
    assert all(p.isfinite().all() for p in module.parameters())


@wrapped_too
def test_gradient_scaling_skips_what_overflowed(name):
    """A step with an infinite gradient is none at all, state included; the scale halves; others are the plain steps."""
    module, plain = network(torch.float32), network(torch.float32)
    optimizer, other = (make(name, m, lr=LR) for m in (module, plain))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    for index in range(4):
        optimizer.zero_grad()
        scaler.scale(loss_of(module, index)).backward()
        if index == 2:
            next(module.parameters()).grad[0, 0] = float("inf")
            before, kept = values(module), state_of(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if index == 2:
            same(values(module), before)
            same(state_of(optimizer), kept)
        else:
            learn(plain, other, [index])
    assert scaler.get_scale() == 512.0
    close(values(module), values(plain), 1e-4)


@wrapped_too
def test_hooks_run_around_a_step(name):
    """Before hooks may see and change what is given to step; after hooks see what it did; handles remove them."""
    module, optimizer = started(name, steps=1)
    order, weight = [], next(module.parameters())
    before = weight.detach().clone()
    handles = [
        optimizer.register_step_pre_hook(lambda o, a, k: order.append(torch.equal(weight, before))),
        optimizer.register_step_post_hook(lambda o, a, k: order.append(torch.equal(weight, before))),
    ]
    learn(module, optimizer, [1])
    assert order == [True, False]
    for handle in handles:
        handle.remove()
    learn(module, optimizer, [2])
    assert len(order) == 2


def compiled_and_eager(name, backend):
    """The same steps compiled and not; and how often something was compiled in the second half of them."""
    torch._dynamo.reset()
    module, eager = loose((4, 3), (4, 3), (5,)), loose((4, 3), (4, 3), (5,))
    for p, q in zip(module, eager, strict=True):
        q.data.copy_(p)
    optimizers = [make(name, m, lr=torch.tensor(LR, dtype=torch.float64), weight_decay=0.1) for m in (module, eager)]
    steps = [torch.compile(optimizers[0].step, backend=backend), optimizers[1].step]
    counts = []
    for seed in range(12):
        for m, step in zip((module, eager), steps, strict=True):
            give(m, seed)
            step()
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    return values(module), values(eager), counts


@every
def test_a_step_can_be_traced(name):
    """torch.compile's capture of `step` gives the eager numbers, and comes to an end: late steps compile nothing new."""
    found, expected, counts = compiled_and_eager(name, "eager")
    close(found, expected, 1e-12)
    assert counts[0] > 0 and counts[-1] == counts[5]


@every
@pytest.mark.slow
def test_a_step_can_be_compiled(name):
    """With torch's default compiler too, which needs one for C++ on the machine."""
    from torch._inductor import cpp_builder

    try:
        cpp_builder.get_cpp_compiler()
    except Exception as error:
        pytest.skip(f"no C++ compiler: {error}")
    found, expected, _ = compiled_and_eager(name, "inductor")
    close(found, expected, 1e-10)


@pytest.mark.parametrize("name", [name for name, row in OPTIMIZERS.items() if row.capturable])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_step_can_be_captured(name):
    """Replays of a CUDA graph of `step` are the eager steps; without `capturable` the capture is refused."""
    module, eager = (network(torch.float32).cuda() for _ in range(2))
    optimizer = make(name, module, lr=torch.tensor(LR, device="cuda"), weight_decay=0.1, capturable=True)
    other = make(name, eager, lr=LR, weight_decay=0.1)
    for m in (module, eager):
        give(m, 0)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # the first step makes the state, outside of the graph
        optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    other.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    gradients = [p.grad for p in module.parameters()]
    for seed in range(1, 9):
        give(eager, seed)
        for g, p in zip(gradients, eager.parameters(), strict=True):
            g.copy_(p.grad)
        graph.replay()
        other.step()
    close(values(module), values(eager), 1e-4)
    with pytest.raises(ValueError, match="capturable=True"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        other.step()


# ---- what is refused


@every
def test_settings_out_of_range_are_refused(name):
    """By the constructor, as a group's own, and for a group that comes later; none leaves half a group behind."""
    module, late = network(), loose((2, 2))
    rates = [-1.0, float("nan"), float("inf"), torch.tensor([0.1, 0.1]), torch.tensor(-1.0)]
    common = [*({"lr": lr} for lr in rates), {"weight_decay": -0.1}, {"weight_decay": float("nan")}]
    assert OPTIMIZERS[name].bad
    for bad in [*common, *OPTIMIZERS[name].bad]:
        with pytest.raises(ValueError, match=next(iter(bad))):
            make(name, module, **{"lr": LR, **bad})
        with pytest.raises(ValueError, match=next(iter(bad))):
            make(name, module, [{"params": list(module.parameters()), **bad}], lr=LR)
        optimizer = make(name, module, module.parameters(), lr=LR)
        before = len(optimizer.param_groups)
        with pytest.raises(ValueError, match=next(iter(bad))):
            add(name, late, optimizer, {"params": list(late.parameters()), **bad})
        assert len(optimizer.param_groups) == before


@every
def test_sparse_gradients_are_refused_before_anything_moves(name):
    """The message says what to do; parameters and state are those from before."""
    table = nn.Embedding(4, 3, sparse=True).double()
    module = nn.ModuleList([nn.Linear(3, 2).double(), table])
    optimizer = make(name, module, lr=LR)
    before = values(module)
    module[0](table(torch.tensor([1, 1, 2]))).sum().backward()
    kept = state_of(optimizer)
    with pytest.raises(ValueError, match="sparse=False"):
        optimizer.step()
    same(values(module), before)
    same(state_of(optimizer), kept)


@every
def test_complex_parameters_are_refused(name):
    """When the optimiser is made, with what to give instead."""
    module = nn.ParameterList([torch.ones(2, 2, dtype=torch.complex64)])
    with pytest.raises(ValueError, match="view_as_real"):
        make(name, module, lr=LR)


@every
def test_a_setting_that_there_is_not_is_refused(name):
    """A misspelt name is an error, not a setting that nobody reads."""
    with pytest.raises(TypeError, match="weigth_decay"):
        make(name, network(), lr=LR, weigth_decay=0.1)


@every
@pytest.mark.parametrize("flag", ["differentiable", "fused", "capturable"])
def test_what_is_not_offered_is_said(name, flag):
    """Neither the constructor nor a group takes the flag as if it did something."""
    module = network()
    if flag == "capturable" and OPTIMIZERS[name].capturable:
        assert make(name, module, lr=LR, capturable=True).defaults["capturable"]
        return
    with pytest.raises((TypeError, ValueError), match=flag):
        make(name, module, lr=LR, **{flag: True})
    with pytest.raises(ValueError, match=flag):
        make(name, module, [{"params": list(module.parameters()), flag: True}], lr=LR)


# ---- that they go down


@every
def test_a_quadratic_goes_to_its_bottom(name):
    """`|A W - B|^2` with condition number 10, the rate falling to zero: all but a thousandth of the way."""
    generator = torch.Generator().manual_seed(3)
    left, _ = torch.linalg.qr(torch.randn(6, 4, generator=generator, dtype=torch.float64))
    A = left * torch.linspace(1, 10**0.5, 4, dtype=torch.float64)
    B = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    module = loose((4, 3))
    best = (A @ torch.linalg.lstsq(A, B).solution - B).square().sum()
    end, start = descend(name, module, lambda: (A @ module[0] - B).square().sum(), OPTIMIZERS[name].lr, 150)
    assert end - best < 1e-3 * (start - best)


@every
def test_the_curved_valley_is_followed(name):
    """Rosenbrock's curve from (-1.2, 1): all but a hundredth of the way down, which lies along the valley."""
    module = loose((2,))
    module[0].data.copy_(torch.tensor([-1.2, 1.0]))

    def curve():
        x, y = module[0]
        return (1 - x) ** 2 + 100 * (y - x**2) ** 2

    end, start = descend(name, module, curve, OPTIMIZERS[name].curve_lr, 500)
    assert end < 0.01 * start


def descend(name, module, loss, lr, steps):
    """The loss at the end and at the start, the rate falling linearly to zero."""
    optimizer = make(name, module, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    start = loss().item()
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()
    return loss().item(), start
