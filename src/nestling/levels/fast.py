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
from nestling.memory import RetainSeen
from nestling.ops import State


@dataclass(frozen=True)
class Difference(State):
    """One level's share of one weight.

    value: `D [B, out, in]`. gradient: `[B, out, in]`, the sum over the tokens since the last update.
    seen: `[B, in, in]`, the sum of `x x^T` over the weight's inputs, or None where the rule does not ask for it.
    """

    value: Tensor
    gradient: Tensor
    seen: Tensor | None


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
        differences[name] = Difference(zeros(rows, columns), zeros(rows, columns), seen)
    clock, steps = zeros().double(), zeros().long()
    return LevelState(differences, clock, clock, steps, steps, zeros())


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
    tokens = state.gathered.clamp_min(1.0)
    means = {name: d.gradient / tokens.to(d.gradient.dtype)[:, None, None] for name, d in state.weights.items()}
    if level.clip is not None:
        size = _norm(means.values())
        factor = torch.where(size.isfinite(), level.clip / size.clamp_min(level.clip), torch.nan)[:, None, None]
        means = {name: factor * mean for name, mean in means.items()}
    moved = {name: _move(level, d, means[name], state.count) for name, d in state.weights.items()}
    norm = _norm(moved[name] - d.value for name, d in state.weights.items())
    taken = due & norm.isfinite()
    rows = taken[:, None, None]
    forget = level.rule.forgetting if isinstance(level.rule, RetainSeen) else 1.0
    weights = {
        name: Difference(
            torch.where(rows, moved[name], d.value),
            torch.where(due[:, None, None], 0.0, d.gradient),
            d.seen if d.seen is None or forget == 1.0 else torch.where(rows, forget * d.seen, d.seen),
        )
        for name, d in state.weights.items()
    }
    return LevelState(
        weights,
        gathered=torch.where(due, 0.0, state.gathered),
        count=torch.where(taken, forget * state.count, state.count),
        updates=state.updates + taken,
        refused=state.refused + (due & ~taken),
        norm=torch.where(taken, norm, state.norm),
    )


def _move(level: Level, d: Difference, mean: Tensor, count: Tensor) -> Tensor:
    """The difference after one step on the mean gradient."""
    if d.seen is not None and isinstance(level.rule, RetainSeen):
        mean = level.rule.direction(mean, d.seen, count.to(d.seen.dtype))
    keep = level.reset if isinstance(level.reset, float) else 1.0
    return keep * d.value - level.lr * mean


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    """Norm of each row over all the matrices `[B, out, in]`, `[B]`."""
    return torch.stack([t.square().sum((1, 2)) for t in tensors]).sum(0).sqrt()


def end_context(levels: list[Level], fast: FastWeights) -> FastWeights:
    """A context has ended: the levels that reset go back to their initial state, what they gathered included."""
    out = []
    for level, state in zip(levels, fast, strict=True):
        if level.reset == "context":
            names = state.weights.items()
            clear = {
                n: replace(d, value=torch.zeros_like(d.value), gradient=torch.zeros_like(d.gradient)) for n, d in names
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
