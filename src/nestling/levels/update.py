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
    seen: `[B, in, in]` by name, the sum of `x x^T`; or of `A x`, as far as the largest rank needs; or its blocks.
    tokens, lessons: `[B]`, how many inputs were seen, by which periods are counted, and how many losses were summed.
    felt: `[B, out, out]`, or its blocks, by name, the sum of `g g^T` over the gradients of the losses at the weights' outputs.
    """
    sizes = [moment.diagonal(dim1=-2, dim2=-1).flatten(1).sum(1) for moment in (*seen.values(), *felt.values())]
    # traces bound what they are of; what is not finite, or so large that a sum of it would not be, would stay for ever
    finite = torch.stack(sizes).sum(0) < LARGEST if sizes else torch.ones_like(tokens, dtype=torch.bool)
    sound = bool(finite.all())

    def add(name: str, d: Difference) -> Difference:
        if gradients is not None:
            slope = projected(name, gradients[name].to(d.gradient.dtype), d.value.shape[-1])
            d = replace(d, gradient=plus(d.gradient, slope))
            if d.moment is not None:
                d = replace(d, moment=plus(d.moment, _of(name, seen, d.moment)))
        if d.seen is None:
            return d
        d = replace(d, seen=more(d.seen, _of(name, seen, d.seen)))
        return d if d.felt is None else replace(d, felt=more(d.felt, _of(name, felt, d.felt)))

    # levels, and weights, that have gathered the same until now keep one sum of it
    plus = once(lambda total, new: total + new.to(total.dtype))
    more = plus if sound else once(lambda total, new: total + where_rows(finite, new).to(total.dtype))

    def gathered(level: LevelState) -> LevelState:
        if bool(level.frozen.all()):
            return level
        more = replace(
            level,
            weights={name: add(name, d) for name, d in level.weights.items()},
            gathered=level.gathered if gradients is None else level.gathered + tokens.to(level.gathered),
            lessons=level.lessons if gradients is None else level.lessons + lessons.to(level.lessons),
            count=level.count + torch.where(finite, tokens, 0).to(level.count),
        )
        return more.where(~level.frozen, level) if bool(level.frozen.any()) else more

    return tuple(gathered(level) for level in fast)


def _of(name: str, seen: Mapping[str, Tensor], kept: Tensor) -> Tensor:
    """Of the moments of a weight what a level keeps: all, or those of the first rows of `A`."""
    if name not in seen:
        raise ValueError(
            f"{name} took no part in reading, and a level's rule asks for its inputs; do not assign it to a level"
        )
    moment = seen[name]
    rank = kept.shape[-1]
    return moment if moment.shape == kept.shape else moment[:, :rank, :rank]


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
    sums = {name: d.gradient for name, d in state.weights.items()}
    values = {name: d.value for name, d in state.weights.items()}
    scale, surprise = _scale(level, state, square := _square(sums.values()))
    moves, memories, scale = _directions(level, state, taught, sums, scale)
    moved, change = _moved(level, values, moves, scale, square if moves is sums else None)
    norm = change.detach().sqrt()
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


def _scale(level: Level, state: LevelState, square: Tensor) -> tuple[Tensor, Tensor]:
    """By what the gathered gradients, whose `square [B]` is of their norm, are scaled to their mean, and that to the level's
    clip where it is larger, `[B]`; and the norm of the mean, `[B]`.
    """
    lessons = state.lessons.clamp_min(1.0).to(square.dtype)
    scale = 1 / lessons
    if level.clip is not None:
        size = square.clamp_min(torch.finfo(torch.float32).tiny).sqrt() / lessons  # of zero a root has no gradient
        scale = torch.where(size.isfinite(), level.clip / size.clamp_min(level.clip), torch.nan) * scale
    return scale, square.detach().sqrt() / lessons


def _directions(
    level: Level, state: LevelState, due: Tensor, sums: dict[str, Tensor], scale: Tensor
) -> tuple[dict[str, Tensor], dict[str, Memory], Tensor]:
    """What the rule makes of the gathered gradients of the rows `due [B]`, what it remembers then, and what is left of `scale`.

    A rule that is linear in the gradient is given the sums, and its step is scaled as it is taken.
    """
    values = {name: d.value for name, d in state.weights.items()}
    memories = {name: d.memory for name, d in state.weights.items()}
    one = torch.ones_like(scale)
    if isinstance(level.rule, StepOf):
        means = {name: scale[:, None, None] * total for name, total in sums.items()}
        sound = due & _square(means.values()).isfinite()  # no optimiser sees others: a decomposition would raise
        slopes = {name: where_rows(sound, mean) for name, mean in means.items()}
        moves, memories = level.rule.directions(values, slopes, memories)
        return {name: where_rows(sound, move, torch.nan) for name, move in moves.items()}, memories, one
    if isinstance(level.rule, DeltaGradientDescent):
        means = {name: scale[:, None, None] * total for name, total in sums.items()}
        per_token = (1 / state.gathered.clamp_min(1.0)).to(scale.dtype)[:, None, None]
        moments = {name: per_token * d.moment for name, d in state.weights.items() if d.moment is not None}
        moves = {n: level.rule.direction(means[n], values[n], c, level.lr) for n, c in moments.items()}
        return moves, memories, one
    if isinstance(level.rule, RetainPredictions):
        retained = {n: (d.seen, d.felt) for n, d in state.weights.items() if d.seen is not None and d.felt is not None}
        renewed = partial(level.rule.renewed, count=state.count, inverse=once(damped_inverse))
        memories = {n: renewed(memories[n], *moments) for n, moments in retained.items()}
        return {n: level.rule.direction(sums[n], memory) for n, memory in memories.items()}, memories, scale
    if isinstance(level.rule, RetainSeen):
        seen = {name: d.seen for name, d in state.weights.items() if d.seen is not None}
        sums = {name: level.rule.direction(sums[name], x, state.count.to(x.dtype)) for name, x in seen.items()}
    return sums, memories, scale


def _moved(
    level: Level, values: dict[str, Tensor], moves: dict[str, Tensor], scale: Tensor, square: Tensor | None
) -> tuple[dict[str, Tensor], Tensor]:
    """The weights after a step `scale * moves`, decayed where the level does; and the square of the norm of their change.

    square: `[B]`, of the norm of `moves`, where it is known.
    """
    keep, scales = level.reset if isinstance(level.reset, float) else 1.0, scale[:, None, None]
    if keep == 1.0:
        # the fewest passes over the weights, which in small models are what a step costs
        moved = {name: torch.addcmul(value, scales, moves[name], value=-level.lr) for name, value in values.items()}
        square = _square(moves.values()) if square is None else square
        return moved, (level.lr * scale).square() * square
    moved = {n: torch.addcmul(keep * value, scales, moves[n], value=-level.lr) for n, value in values.items()}
    return moved, _square(moved[name] - value for name, value in values.items())


def _finite(tensors: Iterable[Tensor], rows: Tensor) -> Tensor:
    """Of `rows [B]`, those of which every tensor `[B, ..]` is finite, and not so large that a sum of it would not be."""
    sums = [t[:, None].flatten(1).sum(1) for t in tensors]  # of what is not finite a sum is none either
    return torch.stack([rows, *(total.isfinite().to(rows.device) for total in sums)]).all(0)


def _square(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of the squares of each row over all the matrices `[B, out, in]`, `[B]`."""
    rows = [t.flatten(1) for t in tensors]
    return torch.stack([(row[:, None] @ row[..., None])[:, 0, 0] for row in rows]).sum(0)
