"""How levels move: gather what a segment taught, and step when a period is full. Pure functions of their states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor

from nestling.levels.factor import projected
from nestling.levels.fast import Difference, FastWeights, LevelState, at_rest
from nestling.levels.level import Level
from nestling.levels.step_of import Memory, StepOf
from nestling.memory import DeltaGradientDescent, RetainPredictions, RetainSeen
from nestling.ops.state import where_rows

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
            d = replace(d, gradient=d.gradient + projected(name, gradients[name].to(d.gradient.dtype), rank))
            if d.moment is not None:
                d = replace(d, moment=d.moment + _of(name, seen)[:, :rank, :rank].to(d.moment.dtype))
        if d.seen is None:
            return d
        d = replace(d, seen=_more(d.seen, _of(name, seen)[:, :rank, :rank]))
        return d if d.felt is None else replace(d, felt=_more(d.felt, _of(name, felt)))

    def _more(total: Tensor, new: Tensor) -> Tensor:
        return total + (new if sound else where_rows(finite, new)).to(total.dtype)

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


def _of(name: str, seen: Mapping[str, Tensor]) -> Tensor:
    if name not in seen:
        raise ValueError(
            f"{name} took no part in reading, and a level's rule asks for its inputs; do not assign it to a level"
        )
    return seen[name]


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
    means = {name: _mean(d.gradient, state.lessons) for name, d in state.weights.items()}
    moves, memories = _directions(level, state, taught, _clipped(level, means))
    keep = level.reset if isinstance(level.reset, float) else 1.0
    moved = {name: keep * d.value - level.lr * moves[name] for name, d in state.weights.items()}
    with torch.no_grad():
        surprise = _norm(means.values())
        norm = _norm(moved[name] - d.value for name, d in state.weights.items())
    taken = _finite(memories, taught & norm.isfinite())
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


def _mean(total: Tensor, count: Tensor) -> Tensor:
    """Of a sum `[B, .., ..]` over so many tokens or lessons `[B]` since the last update."""
    return total / count.clamp_min(1.0).to(total.dtype)[:, None, None]


def _clipped(level: Level, means: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients scaled down to the level's clip where their norm is larger."""
    if level.clip is None:
        return means
    size = _norm(means.values(), least=torch.finfo(torch.float32).tiny)  # of zero a norm has no gradient
    factor = torch.where(size.isfinite(), level.clip / size.clamp_min(level.clip), torch.nan)[:, None, None]
    return {name: factor * mean for name, mean in means.items()}


def _directions(
    level: Level, state: LevelState, due: Tensor, means: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Memory]]:
    """What the rule makes of the mean gradients of the rows `due [B]`, and what it remembers then."""
    values = {name: d.value for name, d in state.weights.items()}
    memories = {name: d.memory for name, d in state.weights.items()}
    if isinstance(level.rule, StepOf):
        sound = due & _norm(means.values()).isfinite()  # no optimiser sees others: a decomposition would raise
        slopes = {name: where_rows(sound, mean) for name, mean in means.items()}
        moves, memories = level.rule.directions(values, slopes, memories)
        return {name: where_rows(sound, move, torch.nan) for name, move in moves.items()}, memories
    if isinstance(level.rule, DeltaGradientDescent):
        moments = {name: _mean(d.moment, state.gathered) for name, d in state.weights.items() if d.moment is not None}
        return {n: level.rule.direction(means[n], values[n], c, level.lr) for n, c in moments.items()}, memories
    if isinstance(level.rule, RetainPredictions):
        retained = {n: (d.seen, d.felt) for n, d in state.weights.items() if d.seen is not None and d.felt is not None}
        memories = {n: level.rule.renewed(memories[n], *moments, state.count) for n, moments in retained.items()}
        return {n: level.rule.direction(means[n], memory) for n, memory in memories.items()}, memories
    if isinstance(level.rule, RetainSeen):
        seen = {name: d.seen for name, d in state.weights.items() if d.seen is not None}
        means = {name: level.rule.direction(means[name], x, state.count.to(x.dtype)) for name, x in seen.items()}
    return means, memories


def _finite(memories: Mapping[str, Memory], rows: Tensor) -> Tensor:
    """Of `rows [B]`, those of which everything remembered is finite."""
    remembered = [value for memory in memories.values() for value in memory.values()]
    return torch.stack([rows, *(v[:, None].flatten(1).isfinite().all(1).to(rows.device) for v in remembered)]).all(0)


def _norm(tensors: Iterable[Tensor], least: float = 0.0) -> Tensor:
    """Norm of each row over all the matrices `[B, out, in]`, `[B]`; its square is at least `least`."""
    return torch.stack([t.square().sum((1, 2)) for t in tensors]).sum(0).clamp_min(least).sqrt()
