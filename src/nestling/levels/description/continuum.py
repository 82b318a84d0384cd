"""The levels of a continuum memory as components: while a text is read, and where an optimiser moves them."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nestling.levels.description.component import Size
from nestling.levels.description.optimizers import sizes
from nestling.levels.description.row import Row
from nestling.levels.fast import LevelState, initial
from nestling.levels.level import Level
from nestling.levels.optimizer import LevelOptimizer
from nestling.levels.step_of import StepOf
from nestling.memory import RetainPredictions
from nestling.memory.part import LOSS, Context, called
from nestling.ops.state import named_tensors

Period = Callable[[float], float]  # tokens between two updates, from what a level says


@dataclass(frozen=True)
class Moving:
    """Levels that move while a text is read.

    moves: for each level the names of the weights it moves. weights: `[out, in]` by name, where the levels start.
    """

    levels: list[Level]
    moves: list[list[str]]
    weights: Mapping[str, Tensor]
    objective: str = LOSS


class HasLevels(abc.ABC):
    """A module that says which of its weights have levels. Its answer is final for all modules in it."""

    @abc.abstractmethod
    def moving(self) -> Moving | None:
        """The levels that move when the module reads, or None where none does."""


def moving_in(module: nn.Module) -> Iterator[Moving]:
    """What moves in a module while it reads; the outermost modules that have an answer are asked."""
    if isinstance(module, HasLevels):
        found = module.moving()
        if found is not None and found.levels:
            yield found
        return
    for child in module.children():
        yield from moving_in(child)


def while_reading(moving: Moving, role: Callable[[Tensor], str]) -> Iterator[Row]:
    """Levels with weights of their own for each sequence. `role` names the row of the parameters that they start from."""
    meta = {name: torch.empty_like(weight, device="meta") for name, weight in moving.weights.items()}
    fast = initial(moving.levels, moving.moves, meta, batch=1)
    clock = float(moving.levels[0].period)
    for i, (level, state) in enumerate(zip(moving.levels, fast, strict=True)):
        roles = tuple(dict.fromkeys(role(moving.weights[name]) for name in state.weights))
        starts = (*roles, _name(i + 1)) if level.reset == "slower" else roles
        rows = _rows(i, level, state, float, clock, moving.objective, roles)
        first = next(rows)
        yield replace(first, knowledge=(*(("initialisation", (start, None)) for start in starts), *first.knowledge))
        yield from rows


def by_optimizer(optimizer: LevelOptimizer, tokens_per_step: int, role: Callable[[Tensor], str]) -> Iterator[Row]:
    """Levels that move a module's own weights; each weight is counted with the fastest level that moves it."""

    def period(tokens: float) -> float:
        return float(math.ceil(tokens / tokens_per_step) * tokens_per_step)  # levels are asked after whole steps

    owned: set[str] = set()
    for i, (level, state) in enumerate(zip(optimizer.levels, optimizer.state, strict=True)):
        own = [name for name in state.weights if name not in owned]
        owned |= set(own)
        roles = tuple(dict.fromkeys(role(optimizer.weights[name]) for name in state.weights))
        rows = _rows(i, level, state, period, float(tokens_per_step), LOSS, roles)
        yield replace(next(rows), parameters=Size.of(optimizer.weights[name] for name in own))
        yield from rows


def _name(number: int) -> str:
    return f"CMS level {number}"


def _rows(
    number: int,
    level: Level,
    state: LevelState,
    period: Period,
    clock: float,
    objective: str,
    roles: tuple[str, ...],
) -> Iterator[Row]:
    """A level, what its optimiser remembers, and what it has seen. `clock`: tokens between two looks at what is read."""
    every = period(level.period)
    beside = [*_memories(number, level, state, period), *_seen(number, level, state, every, clock, roles)]
    names = tuple(dict.fromkeys((row.base, None) for row in beside))
    whole = Size.of(named_tensors(state).values())
    elsewhere = sum((row.state or Size() for row in beside), Size())
    yield Row(
        base=_name(number),
        frequency=1 / every if level.lr else 0.0,
        objective=objective,
        rule=_rule(level),
        context=_context(level, every),
        state=Size(whole.numbers - elsewhere.numbers, whole.bytes - elsewhere.bytes),
        item=sum(sum(d.value.shape[1:]) for d in state.weights.values()),  # a token's gradient is of rank one
        needs=names,
        knowledge=(("backpropagation", (LOSS, None)), *(("direct parametric", name) for name in names)),
    )
    yield from beside


def _rule(level: Level) -> str:
    rest = {"lr": level.lr, "reset": level.reset, "clip": level.clip, "rank": level.rank}
    said = ", ".join(f"{key} {value}" for key, value in rest.items() if value is not None)
    return f"{called(level.rule)}, {said}"


def _context(level: Level, every: float) -> Context:
    if not level.lr:
        return Context(effective=0.0)
    if isinstance(level.reset, float):
        return Context.fading(level.reset, "tokens", every)
    if level.reset == "context":
        return Context(effective=None)
    if level.reset == "slower":
        return Context(effective=None, note="until the next slower level moves")
    return Context()


def _memories(number: int, level: Level, state: LevelState, period: Period) -> Iterator[Row]:
    """What an optimiser as the rule remembers of the level's gradients."""
    if not isinstance(level.rule, StepOf):
        return
    for d in state.weights.values():
        for part, size in sizes(d.memory, level.rule.parts()):
            yield Row(
                base=f"{part.name} of {_name(number)}",
                frequency=1 / period(level.period * part.period),
                objective=part.objective,
                rule=part.rule,
                context=part.context,
                state=size,
                item=d.value[0].numel(),
                needs=tuple((f"{need} of {_name(number)}", None) for need in part.needs),
                knowledge=(("generation", (_name(number), None)),),
            )


def _seen(
    number: int, level: Level, state: LevelState, every: float, clock: float, roles: tuple[str, ...]
) -> Iterator[Row]:
    """What a rule that retains gathers of its weights' inputs, and of the gradients at their outputs."""
    for d in state.weights.values():
        if d.seen is None:
            continue
        tensors = [d.seen, *([] if d.felt is None else [d.felt])]
        if isinstance(level.rule, RetainPredictions):
            tensors += d.memory.values()  # the inverses
        yield Row(
            base=f"what {_name(number)} has seen",
            frequency=1 / clock,
            objective="1/2 tr(dW A dW^T)" if d.felt is None else "1/2 tr(B dW A dW^T)",
            rule="A <- A + x^T x" if d.felt is None else "A <- A + x^T x, B <- B + g^T g",
            context=Context.fading(level.forgetting, "tokens", every),
            state=Size.of(tensors),
            item=d.seen.shape[-1] + (0 if d.felt is None else d.felt.shape[-1]),
            knowledge=tuple(("direct non-parametric", (role, None)) for role in roles),
        )
