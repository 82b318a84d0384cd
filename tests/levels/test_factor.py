"""Low-rank differences: a level with a rank is a level on `B`, of which `D = B A` with a fixed `A`; and what a user costs."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nestling.continual import Learner
from nestling.levels import Level, LevelOptimizer, StepOf, asked, effective, gather, initial, step
from nestling.levels.factor import factor
from nestling.memory import DeltaGradientDescent, RetainSeen
from nestling.models import HopeCache, convert
from nestling.settings import two_levels
from nestling.train import byte_tokenizer
from tests.helpers import close, named, randn, same
from tests.tiny import PERIOD, model, read, text

B, IN, OUT, P, NAME = 2, 12, 5, 4, "w"
LEVELS = {
    "plain": [Level(P, lr=0.3, rank=3)],
    "two ranks": [Level(P, lr=0.3, rank=3, clip=0.5), Level(2 * P, lr=0.4, rank=7, reset=0.9)],
    "retaining": [Level(P, lr=0.3, rank=3), Level(2 * P, lr=0.4, rank=7, rule=RetainSeen(0.1, 0.7))],
    "retaining both": [
        Level(P, lr=0.3, rank=3, rule=RetainSeen(0.2)),
        Level(2 * P, lr=0.4, rank=7, rule=RetainSeen(0.1)),
    ],
    "beside a full one": [Level(P, lr=0.1), Level(2 * P, lr=0.4, rank=7, rule=RetainSeen(0.1))],
    "erasing": [
        Level(P, lr=0.3, rank=3, rule=DeltaGradientDescent()),
        Level(2 * P, lr=0.4, rank=7, rule=DeltaGradientDescent(), reset=0.9),
    ],
    "erasing and retaining": [
        Level(P, lr=0.3, rank=7, rule=DeltaGradientDescent()),
        Level(2 * P, lr=0.4, rank=3, rule=RetainSeen(0.1, 0.7)),
    ],
    "optimised": [Level(P, lr=0.1, rank=4, rule=StepOf("M3", periods=(2,)))],
}


class Regression:
    """`y = x W^T`, loss `1/2 |W x - y|^2`, a stream of segments."""

    def __init__(self, segments=6):
        self.start = randn(OUT, IN)
        self.x, self.y = randn(segments, B, P, IN), randn(segments, B, P, OUT)

    def run(self, levels, widths):
        """The weight after each segment, where level l moves `B_l` of `W_0 + sum_l B_l A_l`, each as a full weight of its own.

        `A_l` is the factor, or the identity. Nothing of `factor.py` is used but `A` itself.
        """
        names = [f"{i}" for i in range(len(levels))]
        maps = [torch.eye(IN, dtype=torch.float64) if w is None else factor(NAME, w, self.start) for w in widths]
        shapes = {n: torch.zeros(OUT, len(a), dtype=torch.float64) for n, a in zip(names, maps, strict=True)}
        full = [replace(level, rank=None) for level in levels]
        states = [initial([level], [[n]], shapes, B) for level, n in zip(full, names, strict=True)]
        found = []
        for x, y in zip(self.x, self.y, strict=True):
            weight = self.start + sum(s[0].weights[n].value @ a for s, n, a in zip(states, names, maps, strict=True))
            slope = (x @ weight.mT - y).mT @ x
            for i, (level, n, a) in enumerate(zip(full, names, maps, strict=True)):
                z, count = x @ a.mT, torch.full((B,), P)
                states[i] = step([level], gather(states[i], {n: slope @ a.mT}, {n: z.mT @ z}, count, count))
            found.append(
                self.start + sum(s[0].weights[n].value @ a for s, n, a in zip(states, names, maps, strict=True))
            )
        return found


@pytest.mark.parametrize("name", LEVELS)
def test_a_rank_is_a_weight_of_that_width_behind_fixed_maps(name):
    """Every rule moves `B` as it moves a full weight whose input is `A x`."""
    levels, problem = LEVELS[name], Regression()
    weights, moves = {NAME: problem.start}, [[NAME]] * len(levels)
    state, expected = initial(levels, moves, weights, B), problem.run(levels, [level.rank for level in levels])
    factors = asked(levels, moves, weights)
    for x, y, after in zip(problem.x, problem.y, expected, strict=True):
        weight = effective(state, weights)[NAME]
        slope = (x @ weight.mT - y).mT @ x
        z = x if factors.get(NAME) is None else x @ factors[NAME].mT
        count = torch.full((B,), P)
        state = step(levels, gather(state, {NAME: slope}, {NAME: z.mT @ z}, count, count))
        close(effective(state, weights)[NAME], after)
    for level, found in zip(levels, state, strict=True):
        width = level.rank or IN
        d = found.weights[NAME]
        assert d.value.shape == (B, OUT, width) and (d.seen is None or d.seen.shape == (B, width, width))


def test_a_step_is_the_full_one_projected():
    """`D = -lr G A^T A`: of plain descent from zero, the full step seen through the factor."""
    problem, count = Regression(), torch.full((B,), P)
    weights, slope = {NAME: problem.start}, randn(B, OUT, IN)
    moved = {}
    for rank in (None, 5):
        state = initial([Level(P, lr=0.3, rank=rank)], [[NAME]], weights, B)
        state = step([Level(P, lr=0.3, rank=rank)], gather(state, {NAME: slope}, {}, count, count))
        moved[rank] = effective(state, weights)[NAME] - problem.start
    a = factor(NAME, 5, problem.start)
    close(moved[5], moved[None] @ a.mT @ a)


def test_the_factor_is_known_from_the_name():
    """Signs of one size, rows of norm 1, of a larger rank the same and more rows, and another matrix for another name."""
    weight = torch.zeros(3, 1000, dtype=torch.float64)
    a = factor("model.layers.0.mlp.up_proj.weight", 64, weight)
    same(factor("model.layers.0.mlp.up_proj.weight", 8, weight), a[:8])
    close(a.square(), torch.full_like(a, 1e-3))
    off = a @ a.mT - torch.eye(64)
    assert off.abs().max() < 0.2 and a.mean().abs() < 1e-3
    other = factor("model.layers.1.mlp.up_proj.weight", 64, weight)
    assert (a @ other.mT).abs().max() < 0.2
    assert (factor("w", 2, torch.zeros(1, 5)) > 0).int().tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]  # for ever


def test_the_factor_survives_an_inference_mode():
    """First asked for without autograd, it can be part of a graph later."""
    with torch.inference_mode():
        a = factor("asked for in inference mode", 2, torch.zeros(1, 6))
    assert not a.is_inference()


def test_what_was_learnt_merges(tmp_path):
    """The converted model's differences folded in: a plain model that says the same."""
    net, ids = model("qwen2", window=30), text(1, 4 * PERIOD + 1)
    _, cache = read(net, ids)
    assert all(d.value.shape[-1] in (3, 5) and d.value.any() for level in cache.memory for d in level.weights.values())
    plain = net.merge(cache.memory)
    logits = read(net, ids, HopeCache("off", cache.memory))[0]
    torch.testing.assert_close(plain(ids).logits, logits, rtol=1e-5, atol=1e-5)  # qwen2's norms are in float32
    assert not torch.allclose(net.merge()(ids).logits, logits, rtol=1e-3)


OTHER_PROCESS = """
import sys
from nestling.continual import Learner
from nestling.models import HopeForCausalLM
from nestling.train import byte_tokenizer
import torch
torch.set_num_threads(1)
learner = Learner(HopeForCausalLM.from_pretrained(sys.argv[1] + "/model"), byte_tokenizer())
learner.load(sys.argv[1] + "/memory")
print(learner.observe("and then there was more of it").losses.tolist())
"""


def test_a_restart_finds_the_same_factor(tmp_path):
    """It is not in the file, and another process reads on bit for bit."""
    learner = Learner(model("hope-low-rank", vocab_size=384).float(), byte_tokenizer())
    learner.observe("It was the best of times, it was the worst of times.")
    learner.model.save_pretrained(tmp_path / "model")
    learner.save(tmp_path / "memory")
    arguments = [sys.executable, "-c", OTHER_PROCESS, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, check=True, capture_output=True, text=True, env=environment, timeout=300)
    assert done.stdout.strip() == str(learner.observe("and then there was more of it").losses.tolist())


def nbytes(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_user_costs_little(dtype):
    """By count, at the shape of a Llama of width 2048: two levels of rank 8, at most 2% of the model's bytes."""
    shape = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32}
    with torch.device("meta"):
        llama = LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=4, vocab_size=32000)).to(dtype)
    size = nbytes(llama.parameters())
    for number in (1, 2):
        levels = [Level.from_dict({**level.to_dict(), "rank": 8}) for level in two_levels()[:number]]
        net = convert(llama, levels)
        state = initial(net.levels, net.moves, net.learnable_weights(), batch=1)
        assert nbytes(named(state).values()) <= 0.02 * size
        llama = net.inner


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([Level(P, lr=0.1, rank=IN)], "rank=12 saves nothing on w, whose width is 12"),
        ([Level(P, rule=RetainSeen()), Level(P, rank=3, rule=RetainSeen())], "one with rank=3 and one without"),
    ],
)
def test_a_rank_that_does_not_fit_raises(levels, message):
    """The message says which weight, and what to do."""
    with pytest.raises(ValueError, match=message):
        initial(levels, [[NAME]] * len(levels), {NAME: randn(OUT, IN)}, B)


def test_a_rank_is_of_the_context_regime():
    """An optimiser's level moves the weights themselves: nothing would be smaller."""
    with pytest.raises(ValueError, match="rank=2 needs learning='context'"):
        LevelOptimizer(torch.nn.Linear(4, 4), [Level(P, lr=0.1, rank=2)], [["weight"]])
    with pytest.raises(ValueError, match="rank=0 must be at least 1"):
        Level(P, rank=0)
    assert Level.from_dict(Level(P, rank=4).to_dict()) == Level(P, rank=4)
