"""The context regime: every row of a batch carries its own weights, as differences that levels move.

A weight is `W_0 + sum_l D_l`, `W_0 [out, in]` from the model, `D_l [B, out, in]` from the state; in a sequential
continuum one level moves a weight, in a superposed one all of them do. All functions here are pure: state in, state out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nestling.levels.level import Level
from nestling.levels.step_of import Memory, StepOf
from nestling.memory import RetainSeen
from nestling.ops import State
from nestling.ops.state import where_rows


@dataclass(frozen=True)
class Difference(State):
    """One level's share of one weight.

    value: `D [B, out, in]`. gradient: `[B, out, in]`, the sum over the tokens since the last update.
    seen: `[B, in, in]`, the sum of `x x^T` over the weight's inputs, or None where the rule does not ask for it.
    memory: `[B, ..]` by name, what an optimiser as the rule remembers; empty for other rules.
    """

    value: Tensor
    gradient: Tensor
    seen: Tensor | None
    memory: Memory


@dataclass(frozen=True)
class LevelState(State):
    """One level: its share of every weight it moves, and its clock.

    weights: by weight name. gathered: `[B]` float64, tokens since the last update. count: `[B]` float64, tokens in `seen`.
    updates, refused: `[B]` int64, steps taken, and steps that were not finite and not taken.
    norm: `[B]`, size of the last update over all its weights.
    """

    weights: dict[str, Difference]
    gathered: Tensor
    count: Tensor
    updates: Tensor
    refused: Tensor
    norm: Tensor


FastWeights = tuple[LevelState, ...]


def initial(levels: list[Level], moves: list[list[str]], weights: Mapping[str, Tensor], batch: int) -> FastWeights:
    """Every level at zero difference. `moves[l]`: the names of the weights that level l moves."""
    return tuple(_initial(level, names, weights, batch) for level, names in zip(levels, moves, strict=True))


def _initial(level: Level, names: list[str], weights: Mapping[str, Tensor], batch: int) -> LevelState:
    def zeros(*shape: int) -> Tensor:
        like = weights[names[0]]
        return torch.zeros(batch, *shape, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)

    differences = {}
    for name in names:
        rows, columns = weights[name].shape
        seen = zeros(columns, columns) if isinstance(level.rule, RetainSeen) else None
        value = zeros(rows, columns)
        differences[name] = Difference(value, torch.zeros_like(value), seen, _new_memory(level, value))
    clock, steps = zeros().double(), zeros().long()
    return LevelState(differences, clock, clock, steps, steps, zeros())


def _new_memory(level: Level, value: Tensor) -> Memory:
    """What the rule remembers before the first gradient of a difference `[B, out, in]`."""
    return level.rule.initial(value[0], rows=len(value)) if isinstance(level.rule, StepOf) else {}


def effective(fast: FastWeights, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`W_0 + sum_l D_l [B, out, in]` of every one of `weights` that a level moves, in the dtype of `W_0`."""
    total: dict[str, Tensor] = {}
    for level in fast:
        for name, difference in level.weights.items():
            if name not in weights:
                continue
            total[name] = total[name] + difference.value if name in total else difference.value
    return {name: weights[name] + value.to(weights[name].dtype) for name, value in total.items()}


def gather(
    fast: FastWeights,
    gradients: Mapping[str, Tensor] | None,
    seen: Mapping[str, Tensor],
    tokens: Tensor,
    inputs: Tensor,
) -> FastWeights:
    """Add what a segment taught to every level.

    gradients: `[B, out, in]` by name, summed over the segment's losses (None: nothing is to be learnt, only seen).
    seen: `[B, in, in]` by name, the sum of `x x^T`. tokens, inputs: `[B]`, how many losses and inputs these are of.
    """

    sizes = [moment.flatten(1).sum(1) for moment in seen.values()]
    finite = torch.stack(sizes).sum(0).isfinite() if sizes else torch.ones_like(inputs, dtype=torch.bool)

    def add(name: str, d: Difference) -> Difference:
        gradient = d.gradient if gradients is None else d.gradient + gradients[name].to(d.gradient.dtype)
        if d.seen is None:
            return replace(d, gradient=gradient)
        new = torch.where(finite[:, None, None], seen[name], 0.0)  # what is not finite would be remembered for ever
        return replace(d, gradient=gradient, seen=d.seen + new.to(d.seen.dtype))

    return tuple(
        replace(
            level,
            weights={name: add(name, d) for name, d in level.weights.items()},
            gathered=level.gathered if gradients is None else level.gathered + tokens.to(level.gathered),
            count=level.count + torch.where(finite, inputs, 0).to(level.count),
        )
        for level in fast
    )


def step(levels: list[Level], fast: FastWeights) -> FastWeights:
    """Move, in each row, the levels whose period is full. A step that is not finite is refused and counted."""
    return tuple(_step(level, state) for level, state in zip(levels, fast, strict=True))


def _step(level: Level, state: LevelState) -> LevelState:
    due = state.gathered >= level.period
    if not bool(due.any()):
        return state
    moves, memories = _directions(level, state, due, _means(level, state))
    keep = level.reset if isinstance(level.reset, float) else 1.0
    moved = {name: keep * d.value - level.lr * moves[name] for name, d in state.weights.items()}
    norm = _norm(moved[name] - d.value for name, d in state.weights.items())
    taken = _finite(memories, due & norm.isfinite())
    forget = level.rule.forgetting if isinstance(level.rule, RetainSeen) else 1.0
    weights = {}
    for name, d in state.weights.items():
        d = replace(d, gradient=where_rows(~due, d.gradient))
        seen = None if d.seen is None else forget * d.seen
        weights[name] = replace(d, value=moved[name], seen=seen, memory=memories[name]).where(taken, d)
    return LevelState(
        weights,
        gathered=torch.where(due, 0.0, state.gathered),
        count=torch.where(taken, forget * state.count, state.count),
        updates=state.updates + taken,
        refused=state.refused + (due & ~taken),
        norm=torch.where(taken, norm, state.norm),
    )


def _means(level: Level, state: LevelState) -> dict[str, Tensor]:
    """The mean gradient of the tokens since the last update, clipped."""
    tokens = state.gathered.clamp_min(1.0)
    means = {name: d.gradient / tokens.to(d.gradient.dtype)[:, None, None] for name, d in state.weights.items()}
    if level.clip is None:
        return means
    size = _norm(means.values())
    factor = torch.where(size.isfinite(), level.clip / size.clamp_min(level.clip), torch.nan)[:, None, None]
    return {name: factor * mean for name, mean in means.items()}


def _directions(
    level: Level, state: LevelState, due: Tensor, means: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Memory]]:
    """What the rule makes of the mean gradients of the rows that are due, and what it remembers then."""
    values = {name: d.value for name, d in state.weights.items()}
    memories = {name: d.memory for name, d in state.weights.items()}
    if isinstance(level.rule, StepOf):
        sound = due & _norm(means.values()).isfinite()  # no optimiser sees others: a decomposition would raise
        slopes = {name: where_rows(sound, mean) for name, mean in means.items()}
        moves, memories = level.rule.directions(values, slopes, memories)
        return {name: where_rows(sound, move, torch.nan) for name, move in moves.items()}, memories
    if isinstance(level.rule, RetainSeen):
        seen = {name: d.seen for name, d in state.weights.items() if d.seen is not None}
        means = {name: level.rule.direction(means[name], x, state.count.to(x.dtype)) for name, x in seen.items()}
    return means, memories


def _finite(memories: Mapping[str, Memory], rows: Tensor) -> Tensor:
    """Of `rows [B]`, those of which everything remembered is finite."""
    remembered = [value for memory in memories.values() for value in memory.values()]
    return torch.stack([rows, *(v[:, None].flatten(1).isfinite().all(1).to(rows.device) for v in remembered)]).all(0)


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    """Norm of each row over all the matrices `[B, out, in]`, `[B]`."""
    return torch.stack([t.square().sum((1, 2)) for t in tensors]).sum(0).sqrt()


def end_context(levels: list[Level], fast: FastWeights) -> FastWeights:
    """A context has ended: the levels that reset go back to their initial state, what they gathered included."""
    out = []
    for level, state in zip(levels, fast, strict=True):
        if level.reset == "context":
            names = state.weights.items()
            zeros = torch.zeros_like
            clear = {
                n: replace(d, value=zeros(d.value), gradient=zeros(d.gradient), memory=_new_memory(level, d.value))
                for n, d in names
            }
            state = replace(state, weights=clear, gathered=torch.zeros_like(state.gathered))
        out.append(state)
    return tuple(out)


@contextmanager
def second_moments(modules: Mapping[str, nn.Module], mask: Tensor | None) -> Iterator[dict[str, Tensor]]:
    """While open, every forward pass of a module leaves the `sum x x^T [B, in, in]` of its inputs under the module's name.

    mask: `[B, L]`, True where a token is real. The hooks go when the block ends.
    """
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0].detach()
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            x = x if mask is None else x * mask[..., None]
            found[name] = x.mT @ x

        return record

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
