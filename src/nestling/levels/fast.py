"""The context regime: every row of a batch carries its own weights, as differences that levels move.

A weight is `W_0 + sum_l D_l`, `W_0 [out, in]` from the model, `D_l [B, out, in]` from the state; in a sequential
continuum one level moves a weight, in a superposed one all of them do. All functions here are pure: state in, state out.
What moves them is in `update.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nestling.levels.factor import asked, blocks, expanded
from nestling.levels.level import Level
from nestling.levels.step_of import Memory, StepOf
from nestling.memory import DeltaGradientDescent, RetainPredictions, RetainSeen
from nestling.memory.moments import shape
from nestling.ops import State
from nestling.ops.state import tree_map, where_rows, zeros


@dataclass(frozen=True)
class Difference(State):
    """One level's share of one weight. What levels have gathered alike is one tensor in all of them (`nestling.ops.state.once`).

    value: `D [B, out, in]`; of a level with a rank r `B [B, out, r]`, see `factor.py`, and r stands for `in` in what follows.
    gradient: `[B, out, in]`, the sum over the tokens since the last update.
    seen: `[B, in, in]`, or its blocks `[B, k, w, w]`, the sum of `x x^T` over the weight's inputs, or None where the rule does
        not retain.
    memory: `[B, ..]` by name, what an optimiser as the rule remembers, or the inverses of `RetainPredictions`; else empty.
    moment: `[B, in, in]`, the sum of `x x^T` over the tokens of `gradient`, or None where the rule does not erase.
    felt: `[B, out, out]`, or its blocks, the sum of `g g^T` over the gradients at the weight's outputs, or None where the rule
        does not ask.
    """

    value: Tensor
    gradient: Tensor
    seen: Tensor | None
    memory: Memory
    moment: Tensor | None = None
    felt: Tensor | None = None

    def emptied(self, rows: Tensor | None = None) -> Difference:
        """Nothing gathered for the next update, in `rows [B]` or in all."""

        def empty(x: Tensor) -> Tensor:
            return _zeros_like(x) if rows is None else where_rows(~rows, x)

        return replace(self, gradient=empty(self.gradient), moment=tree_map(empty, self.moment))


@dataclass(frozen=True)
class LevelState(State):
    """One level: its share of every weight it moves, and its clock.

    weights: by weight name. gathered: `[B]` float64, tokens since the last update. lessons: `[B]` float64, how many losses the
    gathered gradient is the sum of. count: `[B]` float64, tokens in `seen`.
    updates, refused: `[B]` int64, steps taken, and steps that were not finite and not taken.
    surprise: `[B]`, norm of the last update's mean gradient over all its weights, before it was clipped.
    norm: `[B]`, size of the last update over all its weights.
    frozen: `[B]` bool, True where the level stands still: it gathers nothing, does not move, and its clock stops.
    """

    weights: dict[str, Difference]
    gathered: Tensor
    lessons: Tensor
    count: Tensor
    updates: Tensor
    refused: Tensor
    surprise: Tensor
    norm: Tensor
    frozen: Tensor


FastWeights = tuple[LevelState, ...]


def initial(levels: list[Level], moves: list[list[str]], weights: Mapping[str, Tensor], batch: int) -> FastWeights:
    """Every level at zero difference. `moves[l]`: the names of the weights that level l moves.

    Raises:
        ValueError: a level's rank does not fit a weight, or the other levels; or a rule's block not theirs.
    """
    asked(levels, moves, weights)
    blocks(levels, moves)
    return tuple(_initial(level, names, weights, batch) for level, names in zip(levels, moves, strict=True))


def _initial(level: Level, names: list[str], weights: Mapping[str, Tensor], batch: int) -> LevelState:
    def none(*sizes: int) -> Tensor:
        like = weights[names[0]]
        return zeros((batch, *sizes), torch.promote_types(like.dtype, torch.float32), like.device)

    differences = {}
    for name in names:
        rows, columns = weights[name].shape[0], level.rank or weights[name].shape[1]
        retains = isinstance(level.rule, RetainSeen | RetainPredictions)
        seen = none(*shape(columns, level.block)) if retains else None
        moment = none(columns, columns) if isinstance(level.rule, DeltaGradientDescent) else None
        felt = none(*shape(rows, level.block)) if level.feels else None
        value = none(rows, columns)
        differences[name] = Difference(value, value, seen, _new_memory(level, value), moment, felt)
    clock, steps, size = none().double(), none().long(), none()
    return LevelState(differences, clock, clock, clock, steps, steps, size, size, none().bool())


def _new_memory(level: Level, value: Tensor) -> Memory:
    """What the rule remembers before the first gradient of a difference `[B, out, in]`."""
    if isinstance(level.rule, RetainPredictions):
        return level.rule.initial(value)
    return level.rule.initial(value[0], rows=len(value)) if isinstance(level.rule, StepOf) else {}


def effective(fast: FastWeights, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`W_0 + sum_l D_l [B, out, in]` of every one of `weights` that a level moves, in the dtype of `W_0`."""
    total: dict[str, Tensor] = {}
    for level in fast:
        for name, difference in level.weights.items():
            if name not in weights:
                continue
            value = expanded(name, difference.value, weights[name])
            total[name] = total[name] + value if name in total else value
    return {name: weights[name] + value.to(weights[name].dtype) for name, value in total.items()}


def at_rest(level: Level, state: LevelState) -> LevelState:
    """The level back at its initial state, with nothing gathered. Its counters, and what it has seen, stay."""
    weights = {
        name: replace(d.emptied(), value=_zeros_like(d.value), memory=_new_memory(level, d.value))
        for name, d in state.weights.items()
    }
    return replace(state, weights=weights, gathered=_zeros_like(state.gathered), lessons=_zeros_like(state.lessons))


def _zeros_like(x: Tensor) -> Tensor:
    return zeros(tuple(x.shape), x.dtype, x.device)


def end_context(levels: list[Level], fast: FastWeights) -> FastWeights:
    """A context has ended: the levels that reset then go back to their initial state, frozen ones excepted."""
    pairs = zip(levels, fast, strict=True)
    return tuple(
        at_rest(level, state).where(~state.frozen, state) if level.reset == "context" else state
        for level, state in pairs
    )
