"""The step of an optimiser as the rule of a level, against the optimiser itself and against loops written out by hand."""

import dataclasses
import inspect
import json

import pytest
import torch
from torch import nn

from nestling import optim
from nestling.levels import Level, LevelOptimizer, StepOf, effective, end_context, gather, initial, step
from nestling.levels.step_of import OPTIMIZERS
from nestling.memory import DotProduct, RetainSeen
from nestling.ops import newton_schulz
from nestling.optim.deep_momentum import Polynomial
from nestling.optim.generalised_momentum import Rows
from nestling.optim.inputs import Watching
from nestling.optim.preconditioned_momentum import Diagonal, Kronecker
from tests.helpers import close, differ, named, randn, row, same

B, OUT, IN, PERIOD = 3, 4, 5, 6
SHAPES = {"a": (OUT, IN), "b": (OUT, IN), "c": (IN, 2)}  # two of one shape, which an optimiser may take together
RULES = {
    "AdEMAMix": StepOf("AdEMAMix", betas=(0.5, 0.9, 0.99), alpha_warmup=4),
    "DeepMomentum": StepOf("DeepMomentum", hidden=3),
    "DeepMomentum, linear": StepOf("DeepMomentum", hidden=0, objective=DotProduct(), features=Polynomial()),
    "DeltaMomentum": StepOf("DeltaMomentum", delta=0.5),
    "DeltaMomentum, vector": StepOf("DeltaMomentum", form="vector", preconditioner=Diagonal()),
    "GeneralisedMomentum": StepOf("GeneralisedMomentum"),
    "GeneralisedMomentum, rows": StepOf("GeneralisedMomentum", memory=Rows(), retention=RetainSeen(0.1, 0.9)),
    "M3": StepOf("M3", momentum=0.9, periods=(2, 3), weights=(0.5, 0.25), second_moment=0.9),
    "PreconditionedMomentum": StepOf("PreconditionedMomentum", preconditioner=Kronecker(period=3)),
}
every = pytest.mark.parametrize("name", RULES)


def stream(segments=7, seed=0):
    """Gradients `[B, out, in]` of every weight, summed over the tokens of a segment."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda shape: torch.randn(B, *shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return [{name: draw(shape) for name, shape in SHAPES.items()} for _ in range(segments)]


def start(level):
    """The state of a level that moves all weights."""
    return initial([level], [list(SHAPES)], {name: torch.zeros(shape).double() for name, shape in SHAPES.items()}, B)


def learn(level, state, slopes, tokens=PERIOD):
    """A segment of some tokens."""
    count = torch.full((B,), tokens)
    return step([level], gather(state, slopes, {}, count, count))


def run(level, slopes, state=None):
    state = state or start(level)
    for its in slopes:
        state = learn(level, state, its)
    return state


def test_momentum_is_the_loop_written_out_by_hand():
    """DeltaMomentum without its delta: `m <- alpha m + g`, `D <- D - lr m`, `g` the mean over the period's two segments."""
    level, slopes = Level(2 * PERIOD, lr=0.1, rule=StepOf("DeltaMomentum", momentum=0.7, delta=0.0)), stream(8)
    (found,) = run(level, slopes)
    for name in SHAPES:
        for b in range(B):
            moved = momentum = torch.zeros(SHAPES[name], dtype=torch.float64)
            for i in range(0, 8, 2):
                mean = (slopes[i][name][b] + slopes[i + 1][name][b]) / (2 * PERIOD)
                momentum = 0.7 * momentum + mean
                moved = moved - 0.1 * momentum
            close(found.weights[name].value[b], moved, 1e-12)
    assert found.updates.tolist() == [4] * B and not found.refused.any()


@every
def test_each_row_moves_as_the_optimiser_moves_it(name):
    """A row of a level is the optimiser's own `step()` on that row's mean gradients alone, state for state."""
    rule, slopes = RULES[name], stream()
    (found,) = run(Level(PERIOD, lr=0.1, rule=rule), slopes)
    for b in range(B):
        weights = {n: nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for n, shape in SHAPES.items()}
        optimizer = OPTIMIZERS[rule.optimizer](weights.values(), lr=0.1, **dict(rule.settings))
        for its in slopes:
            for n, weight in weights.items():
                weight.grad = its[n][b] / PERIOD
            optimizer.step()
        for n, weight in weights.items():
            close(found.weights[n].value[b], weight.detach(), 1e-10)
            close({k: v[b] for k, v in found.weights[n].memory.items()}, dict(optimizer.state[weight]), 1e-10)


@every
def test_a_step_leaves_the_state_before_it(name):
    """A state that was kept (a fork of a conversation) is the same bits after others went on from it."""
    level, slopes = Level(PERIOD, lr=0.1, rule=RULES[name]), stream()
    before = run(level, slopes[:3])
    kept = {n: t.clone() for n, t in named(before).items()}
    one, other = run(level, slopes[3:], before), run(level, stream(4, seed=1), before)
    same(named(before), kept)
    same(one, run(level, slopes))
    differ(one[0].weights["a"].value, other[0].weights["a"].value)


@every
def test_rows_have_their_own_clocks_and_memories(name):
    """Rows whose periods end at different times move as each does alone."""
    level, slopes = Level(PERIOD, lr=0.1, rule=RULES[name]), stream(6)
    tokens = [torch.tensor(t) for t in ([6, 2, 0], [6, 4, 3], [6, 0, 3], [0, 6, 6], [6, 6, 6], [2, 6, 0])]
    state = start(level)
    for its, count in zip(slopes, tokens, strict=True):
        state = step([level], gather(state, its, {}, count, count))
    for b in range(B):
        alone = tuple(one.select(torch.tensor([b])) for one in start(level))
        for its, count in zip(slopes, tokens, strict=True):
            its = {n: slope[b : b + 1] for n, slope in its.items()}
            alone = step([level], gather(alone, its, {}, count[b : b + 1], count[b : b + 1]))
        close(named(alone), row(state, b))
    assert state[0].updates.tolist() == [4, 4, 3]


@every
def test_the_end_of_a_context_begins_the_memory_anew(name):
    """A level with reset="context" goes on as if it had just been made; one without keeps what it remembers."""
    level, slopes = Level(PERIOD, lr=0.1, rule=RULES[name], reset="context"), stream()
    state = run(level, slopes)
    fresh, ended = start(level), end_context([level], state)
    same(ended[0].weights, fresh[0].weights)
    differ(state[0].weights["a"].value, fresh[0].weights["a"].value)
    same(run(level, slopes, ended)[0].weights, state[0].weights)
    keeping = dataclasses.replace(level, reset=None)
    same(end_context([keeping], state), state)


@every
def test_a_refused_step_is_remembered_by_no_row(name):
    """What is not finite changes neither the weights nor the memory of its row, and no bit of another row's."""
    level, slopes = Level(PERIOD, lr=0.1, rule=RULES[name]), stream()
    before, clean = run(level, slopes[:4]), run(level, slopes[:5])
    slopes[4]["b"][1, 0, 0] = torch.nan
    found = run(level, slopes[:5])
    assert found[0].refused.tolist() == [0, 1, 0]
    for b, expected in enumerate((clean, before, clean)):
        same(row(found[0].weights, b), row(expected[0].weights, b))
    assert all(t.isfinite().all() for t in named(run(level, slopes)).values())


def test_a_memory_that_overflows_is_refused():
    """Squares that add up to more than the dtype holds would make every later step zero: a step like that is not taken."""
    rule = StepOf("GeneralisedMomentum", retention=RetainSeen(damping=1e-8, forgetting=1.0))
    level, one = Level(1, lr=0.1, rule=rule), torch.ones(1)
    state = initial([level], [["w"]], {"w": torch.zeros(1, 1)}, 1)
    counts = []
    for _ in range(3):
        state = step([level], gather(state, {"w": torch.full((1, 1, 1), 1.5e19)}, {}, one, one))
        counts.append((int(state[0].updates), int(state[0].refused)))
    assert counts == [(1, 0), (1, 1), (1, 2)] and all(t.isfinite().all() for t in named(state).values())


def test_the_clip_is_the_levels_and_comes_first():
    """The optimiser sees the mean gradient as clipped over all weights of the level."""
    rule, slopes = RULES["DeltaMomentum"], stream()
    clipped = []
    for its in slopes:
        norm = torch.stack([slope.square().sum((1, 2)) for slope in its.values()]).sum(0).sqrt() / PERIOD
        clipped.append({n: slope * (0.3 / norm).clamp_max(1.0)[:, None, None] for n, slope in its.items()})
    differ(clipped[0], slopes[0])
    close(
        run(Level(PERIOD, lr=0.1, rule=rule, clip=0.3), slopes)[0].weights,
        run(Level(PERIOD, lr=0.1, rule=rule), clipped)[0].weights,
    )


def test_a_decay_is_of_the_difference():
    """With a number as reset, `D <- decay D - lr m`: decoupled from what the optimiser remembers."""
    level, slopes = Level(PERIOD, lr=0.1, rule=StepOf("DeltaMomentum", momentum=0.7, delta=0.0), reset=0.9), stream()
    moved = momentum = torch.zeros(B, OUT, IN, dtype=torch.float64)
    for its in slopes:
        momentum = 0.7 * momentum + its["a"] / PERIOD
        moved = 0.9 * moved - 0.1 * momentum
    close(run(level, slopes)[0].weights["a"].value, moved, 1e-12)


@every
def test_the_parameter_regime_is_the_optimiser_at_the_levels_periods(name):
    """`LevelOptimizer`: every three backward passes one `step()` of the optimiser on the mean of their gradients."""
    rule, levels = RULES[name], 3 * PERIOD
    torch.manual_seed(0)
    module, x = (
        nn.Sequential(nn.Linear(IN, OUT, bias=False), nn.Tanh(), nn.Linear(OUT, IN, bias=False)).double(),
        randn(12, PERIOD, IN),
    )
    other = nn.Sequential(nn.Linear(IN, OUT, bias=False), nn.Tanh(), nn.Linear(OUT, IN, bias=False)).double()
    other.load_state_dict(module.state_dict())
    mine = LevelOptimizer(module, [Level(levels, lr=0.05, rule=rule)], [["0.weight", "2.weight"]])
    theirs = OPTIMIZERS[rule.optimizer](other.parameters(), lr=0.05, **dict(rule.settings))
    for i, batch in enumerate(x):
        (module(batch) - batch.flip(-1)).square().mean().backward()
        mine.step(PERIOD)
        ((other(batch) - batch.flip(-1)).square().mean() / 3).backward()
        if i % 3 == 2:
            theirs.step()
            theirs.zero_grad()
        close(dict(module.named_parameters()), dict(other.named_parameters()), 1e-10)
    assert mine.state[0].updates.tolist() == [4]


def test_low_precision_weights_have_exact_memories():
    """A level on bfloat16 weights keeps its differences, and what its optimiser remembers, in float32."""
    level = Level(PERIOD, lr=0.1, rule=RULES["M3"])
    state = initial([level], [["w"]], {"w": torch.zeros(OUT, IN, dtype=torch.bfloat16)}, B)
    state = step(
        [level], gather(state, {"w": randn(B, OUT, IN).bfloat16()}, {}, torch.tensor(PERIOD), torch.tensor(PERIOD))
    )
    assert {t.dtype for n, t in named(state).items() if "weights" in n and "step" not in n} == {torch.float32}
    assert effective(state, {"w": torch.zeros(OUT, IN, dtype=torch.bfloat16)})["w"].dtype == torch.bfloat16


@every
def test_a_rule_survives_a_file(name):
    """`from_dict` undoes `to_dict`, by way of JSON, the parts of an optimiser included."""
    level = Level(4, 0.1, RULES[name])
    again = Level.from_dict(json.loads(json.dumps(level.to_dict())))
    assert again == level and again.to_dict() == level.to_dict() and repr(again) == repr(level)
    assert eval(repr(level.rule), {**globals(), **vars(optim)}) == level.rule


def test_every_optimiser_of_gradients_can_move_a_level():
    """The table has all of `nestling.optim` that is a whole optimiser and watches no layers."""
    classes = [c for name in optim.__all__ if inspect.isclass(c := getattr(optim, name)) and issubclass(c, optim.Shell)]
    assert set(OPTIMIZERS.values()) == {c for c in classes if not inspect.isabstract(c) and not issubclass(c, Watching)}
    assert {rule.optimizer for rule in RULES.values()} == set(OPTIMIZERS)


BAD = {
    "inputs": (("DGD", {}), "DGD needs what goes into a layer.*RetainSeen"),
    "around": (("Retained", {}), "Retained needs what goes into a layer.*RetainSeen"),
    "unknown": (("Adam", {}), "'Adam'.*GeneralisedMomentum, M3"),
    "base": (("Shell", {}), "'Shell'.*M3"),
    "rate": (("M3", {"lr": 0.1}), "lr: a level has its own"),
    "out of range": (("M3", {"momentum": 1.5}), r"momentum=1\.5"),
    "part": (("PreconditionedMomentum", {"preconditioner": {"name": "Shampoo"}}), "'Shampoo'.*Kronecker"),
    "part out of range": (
        ("PreconditionedMomentum", {"preconditioner": {"name": "Kronecker", "period": 0}}),
        "period=0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_rule_raises(name):
    """The message repeats what was given and says what is allowed."""
    (optimizer, settings), message = BAD[name]
    with pytest.raises(ValueError, match=message):
        StepOf(optimizer, **settings)
    with pytest.raises(ValueError, match=message):
        Level.from_dict({"period": 4, "rule": {"name": "StepOf", "optimizer": optimizer, **settings}})


def test_bad_data_raises():
    """A setting that the optimiser does not have, no optimiser at all, and what no file can hold."""
    with pytest.raises(ValueError, match=r"StepOf of a level.*beta"):
        Level.from_dict({"period": 4, "rule": {"name": "StepOf", "optimizer": "M3", "beta": 0.9}})
    with pytest.raises(ValueError, match=r"StepOf of a level.*optimizer"):
        Level.from_dict({"period": 4, "rule": {"name": "StepOf"}})
    with pytest.raises(ValueError, match=r"newton_schulz.*cannot be written.*Kronecker"):
        Level(4, rule=StepOf("DeepMomentum", sigma=newton_schulz)).to_dict()
