"""Rules of linear memories alone, which are more than a step along a gradient: an interface, and its token loop.

`x [.., L, d]` are the inputs of the memory's one matrix `M [.., d, dv]`: keys, or what a feature map makes of them.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nestling.memory.network import Network
from nestling.memory.retention import ToZero
from nestling.memory.state import MemoryState, Moved
from nestling.memory.target import Given
from nestling.ops.state import tree_map

if TYPE_CHECKING:
    from nestling.memory.associative import AssociativeMemory

Carried = tuple[Tensor, ...]


class MatrixRule(abc.ABC):
    """A rule that moves one matrix as a whole."""

    momentum: bool = False
    channels: bool = False  # whether rates and retentions may be of each input, `[.., L, d]`
    objective: type  # whose optimum, or descent, it is

    def initial(self, weight: Tensor) -> Carried:
        """What it carries before the first token, beside the weight `[B, H, d, dv]`."""
        return ()

    @abc.abstractmethod
    def token(
        self, weight: Tensor, carried: Carried, x: Tensor, v: Tensor, eta: Tensor, alpha: Tensor
    ) -> tuple[Tensor, Carried]:
        """The rule itself: one token, `x [.., d]`, `v [.., dv]`, `eta` and `alpha` `[.., 1]` or `[.., d]`."""

    @abc.abstractmethod
    def piece(
        self,
        q: Tensor | None,
        x: Tensor,
        v: Tensor,
        eta: Tensor,
        alpha: Tensor,
        weight: Tensor,
        carried: Carried,
        read: str,
    ) -> tuple[Tensor | None, Tensor, Carried]:
        """Many tokens at once, `[.., L, d]` each and `eta, alpha [.., L]` or `[.., L, d]`, neutral at masked ones.

        read: "inclusive" or "exclusive". Returns what `q` reads, the weight and what is carried after them.
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
    assert isinstance(network, Network) and isinstance(rule, MatrixRule) and theta is None
    if memory.detach_writes:
        k, v, eta, alpha = tree_map(Tensor.detach, (k, v, eta, alpha))
    alpha = torch.ones_like(k[..., 0]) if alpha is None else alpha
    x, look = network.inputs(k), None if q is None or memory.read == "chunk" else network.inputs(q)
    move = rule.piece if fast else _loop(rule, mask)
    read = "inclusive" if memory.read == "inclusive" else "exclusive"
    y, weight, carried = move(look, x, v, eta, alpha, weight, state.carried, read)
    if q is not None and memory.read == "chunk":
        y = network.read(q, state.start)
    return y, Moved((weight,), None, carried)


def _loop(rule: MatrixRule, mask: Tensor | None) -> Any:
    """`rule.piece`, made of `rule.token`."""

    def piece(q, x, v, eta, alpha, weight, carried, read):  # as MatrixRule.piece
        outputs = []
        eta, alpha = (gate if gate.dim() == x.dim() else gate[..., None] for gate in (eta, alpha))
        for t in range(x.shape[-2]):
            before = weight
            after = rule.token(weight, carried, x[..., t, :], v[..., t, :], eta[..., t, :], alpha[..., t, :])
            if mask is not None:
                real = mask[:, t]
                after = tree_map(
                    lambda new, old, real=real: torch.where(real.view(-1, *[1] * (new.dim() - 1)), new, old),
                    after,
                    (weight, carried),
                )
            weight, carried = after
            if q is not None:
                seen = weight if read == "inclusive" else before
                outputs.append((q[..., t, None, :] @ seen).squeeze(-2))
        return (torch.stack(outputs, -2) if outputs else None), weight, carried

    return piece
