"""How levels move: gather what a segment taught, and step when a period is full. Pure functions of their states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from nestling.levels.factor import projected
from nestling.levels.fast import Difference, FastWeights, LevelState, at_rest
from nestling.levels.level import Level
from nestling.levels.step_of import Memory, StepOf
from nestling.memory import DeltaGradientDescent, RetainPredictions, RetainSeen
from nestling.memory.rule import damped_inverse
from nestling.ops.state import once, where_rows

LARGEST = 1e28  # a trace of moments; ten thousand million of them are finite in float32


def gather(
    fast: FastWeights,
    gradients: Mapping[str, Tensor] | None,
    seen: Mapping[str, Tensor],
    tokens: Tensor,
    lessons: Tensor,
    felt: Mapping[str, Tensor] = MappingProxyType({}),
) -> FastWeights:
    """Add what a segment taught to every level.

    gradients: `[B, out, in]` by name, summed over the segment's losses (None: nothing is to be learnt, only seen).
    seen: `[B, in, in]` by name, the sum of `x x^T`; or of `A x`, as far as the largest rank needs.
    tokens, lessons: `[B]`, how many inputs were seen, by which periods are counted, and how many losses were summed.
    felt: `[B, out, out]` by name, the sum of `g g^T` over the gradients of the losses at the weights' outputs.
    """
    sizes = [moment.diagonal(dim1=1, dim2=2).sum(1) for moment in (*seen.values(), *felt.values())]
    # traces bound what they are of; what is not finite, or so large that a sum of it would not be, would stay for ever
    finite = torch.stack(sizes).sum(0) < LARGEST if sizes else torch.ones_like(tokens, dtype=torch.bool)
    sound = bool(finite.all())

    def add(name: str, d: Difference) -> Difference:
        rank = d.value.shape[-1]
        if gradients is not None:
            slope = projected(name, gradients[name].to(d.gradient.dtype), rank)
            d = replace(d, gradient=plus(d.gradient, slope))
            if d.moment is not None:
                d = replace(d, moment=plus(d.moment, _of(name, seen, rank)))
        if d.seen is None:
            return d
        d = replace(d, seen=more(d.seen, _of(name, seen, rank)))
        return d if d.felt is None else replace(d, felt=more(d.felt, _of(name, felt)))

    # levels, and weights, that have gathered the same until now keep one sum of it
    plus = once(lambda total, new: total + new.to(total.dtype))
    more = plus if sound else once(lambda total, new: total + where_rows(finite, new).to(total.dtype))

    def gathered(level: LevelState) -> LevelState:
        more = replace(
            level,
            weights={name: add(name, d) for name, d in level.weights.items()},
            gathered=level.gathered if gradients is None else level.gathered + tokens.to(level.gathered),
            lessons=level.lessons if gradients is None else level.lessons + lessons.to(level.lessons),
            count=level.count + torch.where(finite, tokens, 0).to(level.count),
        )
        return more.where(~level.frozen, level) if bool(level.frozen.any()) else more

    return tuple(gathered(level) for level in fast)


def _of(name: str, seen: Mapping[str, Tensor], rank: int | None = None) -> Tensor:
    if name not in seen:
        raise ValueError(
            f"{name} took no part in reading, and a level's rule asks for its inputs; do not assign it to a level"
        )
    moment = seen[name]
    return moment if rank in (None, moment.shape[-1]) else moment[:, :rank, :rank]


def step(levels: list[Level], fast: FastWeights) -> FastWeights:
    """Move, in each row, the levels whose period is full; then those go back that reset with a slower one.

    A period without a lesson ends without a step: no rule, decay or forgetting acts, and nothing is counted. A step that is
    not finite is refused and counted.
    """
    due = [(state.gathered >= level.period) & ~state.frozen for level, state in zip(levels, fast, strict=True)]
    after = [_step(*one) if bool(one[2].any()) else one[1] for one in zip(levels, fast, due, strict=True)]
    for i, ended in enumerate(due[1:]):
        if levels[i].reset == "slower" and bool(ended.any()):
            after[i] = at_rest(levels[i], after[i]).where(ended & ~after[i].frozen, after[i])
    return tuple(after)


def _step(level: Level, state: LevelState, due: Tensor) -> LevelState:
    """The end of a period in the rows `due [B]`: a step in those that had a lesson."""
    taught = due & (state.lessons > 0)
    means, surprise = _means(level, state)
    moves, memories = _directions(level, state, taught, means)
    moved, norm = _moved(level, {name: d.value for name, d in state.weights.items()}, moves)
    changed = [v for n, m in memories.items() for k, v in m.items() if v is not state.weights[n].memory.get(k)]
    taken = _finite(changed, taught & norm.isfinite())
    forget = level.forgetting
    weights, every = {}, bool(taken.all())
    for name, d in state.weights.items():
        d = d.emptied(None if every else due)
        seen, felt = (m if m is None or forget == 1.0 else forget * m for m in (d.seen, d.felt))
        after = replace(d, value=moved[name], seen=seen, felt=felt, memory=memories[name])
        weights[name] = after if every else after.where(taken, d)
    return replace(
        state,
        weights=weights,
        gathered=torch.where(due, 0.0, state.gathered),
        lessons=torch.where(due, 0.0, state.lessons),
        count=torch.where(taken, forget * state.count, state.count),
        updates=state.updates + taken,
        refused=state.refused + (taught & ~taken),
        surprise=torch.where(taken, surprise, state.surprise),
        norm=torch.where(taken, norm, state.norm),
    )


def _means(level: Level, state: LevelState) -> tuple[dict[str, Tensor], Tensor]:
    """The mean gradients, scaled down to the level's clip where their norm is larger; and that norm, `[B]`."""
    sums = {name: d.gradient for name, d in state.weights.items()}
    square = _square(sums.values())
    lessons = state.lessons.clamp_min(1.0).to(square.dtype)
    scale = 1 / lessons
    if level.clip is not None:
        size = square.clamp_min(torch.finfo(torch.float32).tiny).sqrt() / lessons  # of zero a root has no gradient
        clip = torch.where(size.isfinite(), level.clip / size.clamp_min(level.clip), torch.nan)
        scale = clip * scale
    return {name: scale[:, None, None] * total for name, total in sums.items()}, square.detach().sqrt() / lessons


def _moved(
    level: Level, values: dict[str, Tensor], moves: dict[str, Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """The weights after a step, decayed where the level does; and the norm of their change, `[B]`."""
    keep = level.reset if isinstance(level.reset, float) else 1.0
    if keep == 1.0:  # two passes over the weights less, which in small models are what a step costs
        moved = {name: torch.sub(value, moves[name], alpha=level.lr) for name, value in values.items()}
        return moved, level.lr * _square(moves.values()).detach().sqrt()
    moved = {name: torch.sub(keep * value, moves[name], alpha=level.lr) for name, value in values.items()}
    with torch.no_grad():
        return moved, _square(moved[name] - value for name, value in values.items()).sqrt()


def _directions(
    level: Level, state: LevelState, due: Tensor, means: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Memory]]:
    """What the rule makes of the mean gradients of the rows `due [B]`, and what it remembers then."""
    values = {name: d.value for name, d in state.weights.items()}
    memories = {name: d.memory for name, d in state.weights.items()}
    if isinstance(level.rule, StepOf):
        sound = due & _square(means.values()).isfinite()  # no optimiser sees others: a decomposition would raise
        slopes = {name: where_rows(sound, mean) for name, mean in means.items()}
        moves, memories = level.rule.directions(values, slopes, memories)
        return {name: where_rows(sound, move, torch.nan) for name, move in moves.items()}, memories
    if isinstance(level.rule, DeltaGradientDescent):
        per_token = (1 / state.gathered.clamp_min(1.0))[:, None, None]
        sums = {name: d.moment for name, d in state.weights.items() if d.moment is not None}
        moments = {name: total * per_token.to(total.dtype) for name, total in sums.items()}
        return {n: level.rule.direction(means[n], values[n], c, level.lr) for n, c in moments.items()}, memories
    if isinstance(level.rule, RetainPredictions):
        retained = {n: (d.seen, d.felt) for n, d in state.weights.items() if d.seen is not None and d.felt is not None}
        renewed = partial(level.rule.renewed, count=state.count, inverse=once(damped_inverse))
        memories = {n: renewed(memories[n], *moments) for n, moments in retained.items()}
        return {n: level.rule.direction(means[n], memory) for n, memory in memories.items()}, memories
    if isinstance(level.rule, RetainSeen):
        seen = {name: d.seen for name, d in state.weights.items() if d.seen is not None}
        means = {name: level.rule.direction(means[name], x, state.count.to(x.dtype)) for name, x in seen.items()}
    return means, memories


def _finite(tensors: Iterable[Tensor], rows: Tensor) -> Tensor:
    """Of `rows [B]`, those of which every tensor `[B, ..]` is finite."""
    tops = [torch.linalg.vector_norm(t[:, None].flatten(1), torch.inf, 1) for t in tensors if t.numel()]  # nan is above all
    return torch.stack([rows, *(top.isfinite().to(rows.device) for top in tops)]).all(0)


def _square(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of the squares of each row over all the matrices `[B, out, in]`, `[B]`."""
    return torch.stack([torch.einsum("boi,boi->b", t, t) for t in tensors]).sum(0)
