"""M3: Algorithm 1 as it is printed, its memories, and what goes to AdamW inside. As Muon: `tests/identities/test_momentum.py`."""

import copy
import io
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nestling.ops.newton_schulz import newton_schulz
from nestling.optim import m3
from nestling.optim.m3 import M3, matrix_groups
from tests.helpers import close, differ, randn, same

SHAPES = ((4, 6), (4, 6), (6, 4), (3, 9), (5, 5))
EXACT = 13  # steps after which Newton-Schulz is the polar factor in float64


def parameters(*shapes: Sequence[int]) -> list[Tensor]:
    """Random float64 leaves."""
    return [randn(*shape, grad=True) for shape in shapes or SHAPES]


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Leaves of the same values."""
    return [t.detach().clone().requires_grad_() for t in tensors]


def run(
    optimizer: torch.optim.Optimizer, leaves: Sequence[Tensor], gradients: Sequence[Sequence[Tensor]]
) -> list[Tensor]:
    """The leaves after one step for each row of gradients."""
    for row in gradients:
        for leaf, gradient in zip(leaves, row, strict=True):
            leaf.grad = gradient.clone()
        optimizer.step()
    return [leaf.detach() for leaf in leaves]


def random_gradients(leaves: Sequence[Tensor], steps: int) -> list[list[Tensor]]:
    """`steps` rows of them."""
    return [[randn(*leaf.shape) for leaf in leaves] for _ in range(steps)]


def polar(x: Tensor) -> Tensor:
    """`U V^T`, zero where there is nothing."""
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    return (u * (s > 0)) @ vh


def algorithm_1(
    w: Tensor, g: list[Tensor], lr: float, alpha: float, beta1: float, beta2: float, beta3: float, f: int, eps: float
) -> Tensor:
    """The paper's loop, accumulators and all (its sum prints f + 1 gradients; f are meant)."""
    m1 = m2 = v = torch.zeros_like(w)
    for k in range(len(g) // f):
        m2 = m2 + beta3 * sum(g[max(k - 1, 0) * f : k * f], torch.zeros_like(w))
        o2 = polar(m2)
        for t in range(k * f, (k + 1) * f):
            m1 = m1 + beta1 * g[t]
            v = v + beta2 * g[t] ** 2
            w = w - lr * (polar(m1) + alpha * o2) / (v.sqrt() + eps)
    return w


@pytest.mark.parametrize("period", [1, 3, 5])
def test_it_is_algorithm_1(period):
    """With decays of 1; the paper's beta1 and beta3 cancel in NS, its beta2 is a factor on the learning rate."""
    leaf, beta2 = randn(4, 6, grad=True), 0.25
    gradients = random_gradients([leaf], 15)
    g = [row[0] for row in gradients]
    expected = algorithm_1(leaf.detach(), g, lr=0.1, alpha=0.7, beta1=0.3, beta2=beta2, beta3=0.01, f=period, eps=1e-3)
    group = {"params": [leaf], "eps": 1e-3 / math.sqrt(beta2)}
    decays = {"momentum": 1.0, "slow_momentum": 1.0, "second_moment": 1.0, "nesterov": False}
    optimizer = M3(
        [group], 0.1 / math.sqrt(beta2), periods=[period], weights=[0.7], adjust_lr="original", steps=EXACT, **decays
    )
    close(run(optimizer, [leaf], gradients), [expected], 1e-10)


def averages(
    w: Tensor, g: list[Tensor], lr: float, periods: Sequence[int], weights: Sequence[float], v_beta: float
) -> Tensor:
    """Exponential means on several timescales, Nesterov's look-ahead on the first, Adam's second moment."""
    fast = v = torch.zeros_like(w)
    slow, kept = [torch.zeros_like(w) for _ in periods], [torch.zeros_like(w) for _ in periods]
    for t in range(len(g)):
        for i, f in enumerate(periods):
            if t > 0 and t % f == 0:
                slow[i] = 0.6 * slow[i] + 0.4 * torch.stack(g[t - f : t]).mean(0)
                kept[i] = polar(slow[i])
        fast = 0.9 * fast + 0.1 * g[t]
        v = v_beta * v + (1 - v_beta) * g[t] ** 2
        direction = polar(0.9 * fast + 0.1 * g[t]) + sum(a * o for a, o in zip(weights, kept, strict=True))
        w = w - lr * 0.2 * max(w.shape) ** 0.5 * direction / ((v / (1 - v_beta ** (t + 1))).sqrt() + 1e-8)
    return w


def test_exponential_means_on_three_timescales():
    """The common form is a transcription's too, whatever the shapes beside it and wherever the run stops."""
    leaves, periods, weights = parameters(), (2, 5), (0.5, 0.25)
    gradients = random_gradients(leaves, 13)
    expected = [
        averages(leaf.detach(), [row[i] for row in gradients], 0.01, periods, weights, 0.8)
        for i, leaf in enumerate(leaves)
    ]
    optimizer = M3(leaves, 0.01, 0.9, True, periods, weights, slow_momentum=0.6, second_moment=0.8, steps=EXACT)
    close(run(optimizer, leaves, gradients), expected, 1e-10)


def test_the_slow_direction_is_computed_once_a_period(monkeypatch):
    """One Newton-Schulz a step for all matrices of one shape, and one more where a period begins."""
    batches = []

    def counted(x: Tensor, **iteration: Any) -> Tensor:
        batches.append(x.shape[0])
        return newton_schulz(x, **iteration)

    leaves = parameters((4, 6), (4, 6), (4, 6))
    optimizer = M3(leaves, periods=(4,), weights=(0.5,))
    monkeypatch.setattr(m3, "newton_schulz", counted)
    run(optimizer, leaves, random_gradients(leaves, 8))
    assert batches == [3, 3, 3, 3, 3, 3, 3, 3, 3, 3]  # 8 steps, and the slow memories of steps 1 and 5


@pytest.mark.parametrize("limit", [1, 50, 2**26])
def test_a_parameter_moves_as_if_it_were_alone(limit, monkeypatch):
    """Neither the matrices that share its batch nor the size of batches change its path."""
    monkeypatch.setattr(m3, "BATCH", limit)
    settings = {"lr": 0.01, "periods": (2,), "weights": (0.5,), "second_moment": 0.9}
    leaves = parameters()
    single, gradients = copies(leaves), random_gradients(leaves, 5)
    found = run(M3(leaves, **settings), leaves, gradients)
    for i, leaf in enumerate(single):
        close(found[i], run(M3([leaf], **settings), [leaf], [[row[i]] for row in gradients])[0], 1e-12)


def test_a_step_without_a_gradient_is_no_step():
    """Periods count a parameter's own gradients: one that sits out some steps goes the way of one that did not wait."""
    leaves = parameters((4, 6), (4, 6))
    alone, gradients = copies(leaves[1:]), random_gradients(leaves, 7)
    optimizer = M3(leaves, 0.01, periods=(2,), weights=(0.5,))
    for t, row in enumerate(gradients):
        leaves[0].grad, leaves[1].grad = row[0], row[1] if t % 3 else None
        optimizer.step()
    seen = [[row[1]] for t, row in enumerate(gradients) if t % 3]
    close(leaves[1].detach(), run(M3(alone, 0.01, periods=(2,), weights=(0.5,)), alone, seen)[0], 1e-12)


@given(st.integers(-20, 20))
def test_the_scale_of_the_loss(exponent):
    """Without a second moment it changes nothing; with one, steps are inverse to it, as Algorithm 1 has it."""
    leaf, factor = randn(4, 6, grad=True), 2.0**exponent
    gradients = random_gradients([leaf], 6)
    start, scaled = leaf.detach().clone(), [[factor * row[0]] for row in gradients]
    for second_moment, ratio in ((None, 1.0), (0.9, 1 / factor), (1.0, 1 / factor)):
        moves = []
        for rows in (gradients, scaled):
            (copy_,) = copies([leaf])
            group = {"params": [copy_], "eps": 0.0}
            moves.append(
                run(M3([group], 1e-3, periods=(2,), weights=(0.5,), second_moment=second_moment), [copy_], rows)[0]
                - start
            )
        close(moves[1] / ratio, moves[0], 1e-8)


def test_a_slow_memory_steps_where_the_fast_one_has_forgotten():
    """Gradients along one direction, then along an orthogonal one: only with a slow memory are there steps along both."""
    old, new = torch.zeros(4, 6).double(), torch.zeros(4, 6).double()
    old[0, 0], new[1, 1] = 1.0, 1.0
    gradients = [[old]] * 16 + [[new]] * 60
    last = {}
    for name, weights in (("fast", ()), ("slow", (0.5,))):
        leaf = torch.zeros(4, 6, dtype=torch.float64, requires_grad=True)
        optimizer = M3(
            [leaf], 1.0, 0.5, periods=(16,) * len(weights), weights=weights, adjust_lr="original", steps=EXACT
        )
        before = run(optimizer, [leaf], gradients[:-1])[0].clone()
        last[name] = before - run(optimizer, [leaf], gradients[-1:])[0]
    assert last["fast"][0, 0].abs() < 1e-9 and math.isclose(last["fast"][1, 1], 1.0, rel_tol=1e-9)
    close(last["slow"], last["fast"] + 0.5 * (old + new), 1e-9)


def test_what_a_graph_computes_is_the_same():
    """With `capturable` nothing branches on the step, and the path is that of the branching code."""
    leaves = parameters()
    others, gradients = copies(leaves), random_gradients(leaves, 9)
    settings = {"periods": (2, 3), "weights": (0.5, 0.2), "second_moment": 0.9}
    adamw = [{"params": parameters((7,)), "adamw": True} for _ in range(2)]
    adamw[1]["params"] = copies(adamw[0]["params"])
    found = []
    for some, group, capturable in ((leaves, adamw[0], False), (others, adamw[1], True)):
        rows = [[*row, torch.full((7,), t + 1.0).double()] for t, row in enumerate(gradients)]
        optimizer = M3([{"params": some}, group], 0.01, capturable=capturable, **settings)
        found.append(run(optimizer, [*some, *group["params"]], rows))
    close(found[1], found[0], 1e-6)  # a step is counted in float32 where it is a tensor


@pytest.mark.parametrize("at", [1, 5, 8])
def test_a_saved_optimizer_resumes_in_the_middle_of_a_period(at):
    """Through `torch.save` and a load of tensors alone, the run goes on bit for bit, slow directions included."""
    leaves = parameters((4, 6), (6, 4), (5,))
    gradients = random_gradients(leaves, 12)

    def build(some: list[Tensor]) -> M3:
        groups = [{"params": some[:2]}, {"params": some[2:], "adamw": True, "lr": 0.1}]
        return M3(groups, 0.01, periods=(4, 3), weights=(0.5, 0.2), second_moment=0.9)

    optimizer = build(leaves)
    run(optimizer, leaves, gradients[:at])
    file, others = io.BytesIO(), copies(leaves)
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = build(others)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    same(run(resumed, others, gradients[at:]), run(optimizer, leaves, gradients[at:]))


def test_other_parameters_go_to_adamw():
    """torch's AdamW, with the group's own settings, beside matrices."""
    leaves = parameters((4, 6), (5,), (7, 3), (2, 3, 4))
    others, gradients = copies(leaves[1:]), random_gradients(leaves, 10)
    settings = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    optimizer = M3([{"params": leaves[:1]}, {"params": leaves[1:], "adamw": True, **settings}])
    found = run(optimizer, leaves, gradients)[1:]
    close(found, run(torch.optim.AdamW(others, **settings), others, [row[1:] for row in gradients]), 1e-12)


class Model(nn.Module):
    """One of everything; the head is tied or not."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.conv = nn.Conv1d(4, 4, 3)
        self.inner = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 4, bias=False))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.lm_head = nn.Linear(4, 11, bias=False)
        if tied:
            self.lm_head.weight = self.embedding.weight


@pytest.mark.parametrize(("tied", "heads"), [(False, ["lm_head"]), (True, [])])
def test_a_model_is_sorted(tied, heads):
    """Hidden matrices to M3; embeddings, heads, norms, biases and convolutions to AdamW; what is frozen to neither."""
    model = Model(tied)
    names = {id(p): name for name, p in model.named_parameters()}
    matrices, others = matrix_groups(model, heads, lr=0.1)
    assert [names[id(p)] for p in matrices["params"]] == ["inner.0.weight", "inner.2.weight"]
    expected = {"embedding.weight", "conv.weight", "conv.bias", "inner.0.bias", "inner.1.weight", "inner.1.bias"}
    assert {names[id(p)] for p in others["params"]} == expected | (
        {"lm_head.weight"} - ({"lm_head.weight"} if tied else set())
    )
    assert others["adamw"] is True and others["lr"] == 0.1 and set(matrices) == {"params"}


def test_a_sorted_model_learns():
    """All parameters move, and the loss falls."""
    model = nn.Sequential(
        nn.Embedding(11, 8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8), nn.LayerNorm(8), nn.Linear(8, 11)
    )
    start = copy.deepcopy(model)
    tokens = torch.arange(11)
    optimizer = M3(matrix_groups(model, ["5"]), lr=0.02, periods=(4,))
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(tokens), tokens.roll(1))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    for new, old in zip(model.parameters(), start.parameters(), strict=True):
        differ(new, old)


MATRIX = (2, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 must be"),
        ({"momentum": 1.1}, r"momentum=1.1 must be in \[0, 1\]; 1 never forgets"),
        ({"slow_momentum": -0.1}, "slow_momentum=-0.1"),
        ({"second_moment": 0.0}, "second_moment=0.0 must be None"),
        ({"periods": (0,)}, r"periods=\(0,\) must be different whole numbers of steps, each at least 1"),
        ({"periods": (2.5,)}, r"periods=\(2.5,\)"),
        ({"periods": (2, 2), "weights": (1, 1)}, r"periods=\(2, 2\)"),
        ({"periods": (2, 4)}, "one weight for each period"),
        ({"weights": (-0.5,)}, "the weight of period 32=-0.5"),
        ({"adjust_lr": "sqrt"}, "'sqrt' must be one of original, match_rms_adamw"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"coefficients": (1.0, 2.0)}, r"must be \(a, b, c\)"),
    ],
)
def test_settings_out_of_range_raise(settings, message):
    """For all groups and for one group alike; each says what is allowed."""
    with pytest.raises(ValueError, match=message):
        M3(parameters(MATRIX), **settings)
    with pytest.raises(ValueError, match=message):
        M3([{"params": parameters(MATRIX), **settings}])


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_what_is_no_matrix_raises(shape):
    """Given alone or later, it says where such parameters belong; a refused group leaves the optimiser as it was."""
    other = torch.zeros(shape, requires_grad=True)
    with pytest.raises(ValueError, match=r"'adamw': True, or let matrix_groups\(model\)"):
        M3([*parameters(MATRIX), other])
    optimizer = M3(parameters(MATRIX))
    with pytest.raises(ValueError, match="is no matrix"):
        optimizer.add_param_group({"params": other})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": other, "adamw": True})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: M3([{"params": parameters((3,)), "adamw": True, "betas": (0.9, 1.0)}]),
            "beta2=1.0 must be at least 0",
        ),
        (lambda: matrix_groups(Model(False), ["head"]), r"heads=\['head'\] are not modules of the model"),
        (lambda: matrix_groups(nn.LayerNorm(3)), "no hidden matrices to train; use torch.optim.AdamW"),
    ],
)
def test_what_cannot_be_sorted_raises(call: Callable[[], Any], message):
    """A decay of 1 in AdamW, a head that does not exist, a model of vectors."""
    with pytest.raises(ValueError, match=message):
        call()


SHARDED = """
import sys, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from nestling.optim.m3 import M3

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(0)
whole = [torch.randn(*shape, dtype=torch.float64) for shape in ((4, 6), (4, 6), (5, 3), (7,))]
rows = [[torch.randn_like(x) for x in whole] for _ in range(5)]

def run(leaves, cut):
    groups = [{"params": leaves[:3]}, {"params": leaves[3:], "adamw": True}]
    optimizer = M3(groups, 0.1, periods=(2,), weights=(0.5,), second_moment=0.9, weight_decay=0.1)
    for row in rows:
        for leaf, gradient in zip(leaves, row):
            leaf.grad = cut(gradient)
        optimizer.step()
    return optimizer

def shard(x):
    return distribute_tensor(x, mesh, [Shard(0)])

plain = [x.clone().requires_grad_() for x in whole]
run(plain, torch.clone)
cut = [shard(x).requires_grad_() for x in whole]
with CommDebugMode() as communication:
    optimizer = run(cut, shard)
counts = {str(k): v for k, v in communication.get_comm_counts().items()}
scatters = 5 * 4  # of the test's own gradients
gathers = sum(v for k, v in counts.items() if "all_gather" in k)
assert gathers == 3 * (5 + 3), counts  # each matrix: 5 steps, and periods begin at steps 1, 3 and 5
assert sum(counts.values()) - gathers <= scatters, counts
for x, y in zip(cut, plain):
    assert torch.equal(x.full_tensor(), y), (x.full_tensor() - y).abs().max()
    assert all(isinstance(v, DTensor) and v.placements == x.placements for k, v in optimizer.state[x].items() if k != "step")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_sharded_parameters_take_one_gather_a_matrix(tmp_path):
    """Two processes, parameters cut in two: the path of one process, momenta stay cut, nothing else is sent."""
    arguments = [sys.executable, "-c", SHARDED]
    running = [
        subprocess.Popen([*arguments, str(rank), str(tmp_path / "store")], stderr=subprocess.PIPE) for rank in (0, 1)
    ]
    errors = [process.communicate(timeout=300)[1].decode() for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(errors)
