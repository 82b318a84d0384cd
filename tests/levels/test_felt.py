"""What rules are shown of a model's maps: every input and every output's gradient, whatever the model does with them."""

import pytest
import torch
from torch import nn
from transformers import OlmoConfig, OlmoForCausalLM

from nestling.levels import Level, LevelOptimizer, gather, initial, moment, outputs, second_moments
from nestling.memory import RetainPredictions, RetainSeen
from nestling.models import HopeCache, convert
from nestling.models.reading import calibrate
from tests.helpers import close, randn
from tests.tiny import model, read, text

IN, OUT = 4, 3
RULES = [RetainSeen(), RetainPredictions()]


def test_what_follows_may_change_an_output_in_place():
    """OLMo clamps its queries where they stand; the gradient is that at the map's own output."""
    torch.manual_seed(0)
    size = dict(vocab_size=24, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    olmo = OlmoForCausalLM(OlmoConfig(**size, clip_qkv=0.05, initializer_range=0.3)).double().eval()
    query, ids, added = olmo.get_submodule("model.layers.1.self_attn.q_proj"), text(1, 20), []
    with outputs({"q": query}) as said:
        loss = olmo(ids, labels=ids).loss
    found = torch.autograd.grad(loss, said[0][1])[0]

    def plus(_, __, output):
        added.append(torch.zeros_like(output, requires_grad=True))
        return output + added[0]

    handle = query.register_forward_hook(plus)
    close(found, torch.autograd.grad(olmo(ids, labels=ids).loss, added[0])[0], 1e-5)  # it attends in float32
    handle.remove()
    olmo.requires_grad_(False)  # as adapters leave it
    frozen = convert(olmo, [Level(8, lr=0.1, rule=RetainPredictions())], assign="blocks")
    assert calibrate(frozen, ids, None)[0].count.tolist() == [20.0]


def test_a_map_that_is_used_twice_is_seen_and_felt_twice():
    shared = nn.Linear(IN, IN, bias=False).double()
    x = randn(2, 5, IN)
    with second_moments({"w": shared}, None) as seen, outputs({"w": shared}) as said:
        between = shared(x).tanh()
        loss = shared(between).square().sum()
    close(seen["w"], x.mT @ x + (between.mT @ between).detach())
    slopes = torch.autograd.grad(loss, [output for _, output in said])
    expected = torch.autograd.grad(loss_of_two(shared.weight, x), ADDED)
    close(sum(moment(g) for g in slopes), sum(moment(g) for g in expected))


ADDED: list[torch.Tensor] = []


def loss_of_two(weight, x):
    """The same with a zero added to each output, by hand."""
    ADDED[:] = [torch.zeros(2, 5, IN, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    return (((x @ weight.mT + ADDED[0]).tanh()) @ weight.mT + ADDED[1]).square().sum()


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_inputs_of_one_row_need_no_batch(rule):
    """`[N, in]` is `[1, N, in]`: as an encoder's head, or a plain network, is fed."""
    x, states = randn(6, IN), []
    for shape in ((6, IN), (1, 6, IN)):
        torch.manual_seed(0)
        module = nn.ModuleDict({"w": nn.Linear(IN, OUT, bias=False)}).double()
        optimizer = LevelOptimizer(module, [Level(6, lr=0.1, rule=rule)], [["w.weight"]])
        with optimizer.watch():
            loss = module["w"](x.view(shape)).square().mean()
        loss.backward()
        optimizer.step(6)
        states.append((optimizer.state, module["w"].weight.detach()))
    close(*states)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_checkpointing_hides_nothing(rule):
    """What is watched leaves no trace in the graph, so that a part of the model can be computed again."""
    torch.manual_seed(0)
    module = nn.ModuleDict({"w": nn.Linear(IN, OUT, bias=False)}).double()
    optimizer, x = (
        LevelOptimizer(module, [Level(6, lr=0.1, rule=rule)], [["w.weight"]]),
        randn(1, 6, IN).requires_grad_(),
    )
    with optimizer.watch():
        loss = (
            torch.utils.checkpoint.checkpoint(lambda x: module["w"](x).tanh(), x, use_reentrant=False).square().mean()
        )
    loss.backward()
    optimizer.step(6)
    assert optimizer.state[0].updates.tolist() == [1] and x.grad.any()


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_map_that_takes_no_part_raises(rule):
    start = {"w": randn(OUT, IN)}
    state = initial([Level(5, lr=0.1, rule=rule)], [["w"]], start, 1)
    count = torch.tensor([5.0])
    with pytest.raises(ValueError, match="w took no part in reading"):
        gather(state, {"w": randn(1, OUT, IN)}, {}, count, count)


def test_what_would_overflow_is_not_remembered():
    """Gradients so large that two such segments would sum to infinity: neither they nor their inputs are counted."""
    start = {"w": torch.zeros(OUT, IN)}
    state = initial([Level(5, lr=0.1, rule=RetainPredictions())], [["w"]], start, 2)
    count, seen = torch.tensor([5.0, 5.0]), torch.eye(IN).repeat(2, 1, 1)
    felt = torch.stack([torch.eye(OUT), 2e38 * torch.eye(OUT)])
    for _ in range(2):
        state = gather(state, {"w": torch.zeros(2, OUT, IN)}, {"w": seen}, count, count, {"w": felt})
    assert state[0].count.tolist() == [10.0, 0.0]
    assert state[0].weights["w"].felt[0].equal(2 * torch.eye(OUT)) and not state[0].weights["w"].felt[1].any()


def test_calibration_where_no_gradients_are_kept():
    """In inference mode, too, and the same."""
    net, ids = model("hope-predictions"), text(2, 20)
    expected = calibrate(net, ids, None)
    with torch.inference_mode():
        found = calibrate(net, ids.clone(), None)
    close(found, expected)
    read(net, ids, HopeCache("context", found))
