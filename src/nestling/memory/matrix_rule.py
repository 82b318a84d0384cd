"""Rules of linear memories alone, which are more than a step along a gradient: an interface, and its token loop.

`x [.., L, d]` are the inputs of the memory's one matrix `M [.., d, dv]`: keys, or what a feature map makes of them.
"""

from __future__ import annotations

import abc
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from nestling.memory.network import Network
from nestling.memory.retention import ToZero
from nestling.memory.state import MemoryState, Moved
from nestling.memory.target import Given
from nestling.ops.state import tree_map, where_rows

if TYPE_CHECKING:
    from nestling.memory.associative import AssociativeMemory

Carried = tuple[Tensor, ...]


class Pairs(NamedTuple):
    """What is learnt: inputs `x [.., d]`, values `v [.., dv]`, rates and retentions, `[.., 1]` or one of each channel, `[.., d]`."""

    x: Tensor
    v: Tensor
    eta: Tensor
    alpha: Tensor


class Update(NamedTuple):
    """A token's update: what is kept of the weight, what is written, and what is carried on."""

    kept: Tensor
    write: Tensor
    carried: Carried = ()


class MatrixRule(abc.ABC):
    """A rule that moves one matrix as a whole: `M <- kept + write`, or with momentum `kept + S`, a running mean of the writes.

    A write depends on the weight before it, so with momentum there is no form but the token loop.
    """

    momentum: bool = False
    channels: bool = False  # whether rates and retentions may be of each input, `[.., L, d]`
    objective: type  # whose optimum, or descent, it is

    def initial(self, weight: Tensor) -> Carried:
        """What it carries before the first token, beside the weight `[B, H, d, dv]`."""
        return ()

    @abc.abstractmethod
    def token(self, weight: Tensor, carried: Carried, pair: Pairs) -> Update:
        """The rule itself, for one token."""

    @abc.abstractmethod
    def piece(
        self, q: Tensor | None, pairs: Pairs, weight: Tensor, carried: Carried, read: str
    ) -> tuple[Tensor | None, Tensor, Carried]:
        """Many tokens at once, `[.., L, d]` and so on, neutral at masked ones.

        read: "inclusive" or "exclusive". Returns what `q [.., L, d]` reads, the weight and what is carried after them.
        """

    def check(self, memory: AssociativeMemory) -> None:
        """Raise ValueError unless the other choices of the memory are ones that the rule has a meaning for."""
        wrong = {
            "network": not (isinstance(memory.network, Network) and memory.network.linear),
            "objective": not isinstance(memory.objective, self.objective),
            "retention": memory.retention != ToZero(),
            "target": memory.target != Given(),
        }
        for name, found in wrong.items():
            if found:
                given = type(getattr(memory, name)).__name__
                allowed = f"a linear network (Matrix), {self.objective.__name__}(), ToZero() and Given()"
                raise ValueError(f"{self} does not take {name}={given}; it needs {allowed}")


def whole(memory: AssociativeMemory, q: Tensor | None, *given: Any, **state: Any) -> tuple[Tensor | None, Moved]:
    """A piece of a chunk by the rule's `piece`. Arguments as `token_loop`'s."""
    return _run(memory, q, *given, **state, fast=True)


def one_by_one(memory: AssociativeMemory, q: Tensor | None, *given: Any, **state: Any) -> tuple[Tensor | None, Moved]:
    """A piece of a chunk by the rule's `token`: the oracle. Arguments as `token_loop`'s."""
    return _run(memory, q, *given, **state, fast=False)


def _run(
    memory: AssociativeMemory,
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    alpha: Tensor | None,
    theta: Tensor | None,
    state: MemoryState,
    mask: Tensor | None,
    fast: bool,
) -> tuple[Tensor | None, Moved]:
    network, rule, (weight,) = memory.network, memory.rule, state.weights
    assert isinstance(network, Network) and isinstance(rule, MatrixRule)
    alpha = torch.ones_like(k[..., 0]) if alpha is None else alpha
    x, look = network.inputs(k), None if q is None or memory.read == "chunk" else network.inputs(q)
    if memory.detach_writes:  # the inputs, not the keys: a feature map may be learnt
        x, v, eta, alpha, theta = tree_map(Tensor.detach, (x, v, eta, alpha, theta))
    read = "inclusive" if memory.read == "inclusive" else "exclusive"
    pairs = Pairs(x, v, *(gate if gate.dim() == x.dim() else gate[..., None] for gate in (eta, alpha)))
    if fast:
        y, weight, carried = rule.piece(look, pairs, weight, state.carried, read)
        moved = Moved((weight,), None, carried)
    else:
        y, moved = _loop(rule, look, pairs, theta, state, mask, read)
    if q is not None and memory.read == "chunk":
        y = network.read(q, state.start)
    return y, moved


def _loop(
    rule: MatrixRule,
    q: Tensor | None,
    pairs: Pairs,
    theta: Tensor | None,
    state: MemoryState,
    mask: Tensor | None,
    read: str,
) -> tuple[Tensor | None, Moved]:
    """Token after token."""
    moved, outputs = Moved(state.weights, state.momentum, state.carried), []
    for t in range(pairs.x.shape[-2]):
        before = moved
        pair = Pairs(*(each[..., t, :] for each in pairs))
        kept, write, carried = rule.token(moved.weights[0], moved.carried, pair)
        if moved.momentum is not None:
            assert theta is not None
            share = theta[..., t, None, None]
            write = share * moved.momentum[0] + (1 - share) * write
        after = Moved((kept + write,), None if moved.momentum is None else (write,), carried)
        moved = (
            after if mask is None else Moved(*(_real(mask[:, t], *each) for each in zip(after, before, strict=True)))
        )
        if q is not None:
            seen = moved if read == "inclusive" else before
            outputs.append((q[..., t, None, :] @ seen.weights[0]).squeeze(-2))
    return (torch.stack(outputs, -2) if outputs else None), moved


def _real(rows: Tensor, after: Any, before: Any) -> Any:
    """What has moved, in the rows whose token is real."""
    return tree_map(partial(where_rows, rows), after, before)
