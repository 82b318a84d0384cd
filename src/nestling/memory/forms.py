"""Which choices make a memory, and how a piece of a chunk is computed for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nestling.memory.closed import closed_form
from nestling.memory.compound import Omega, Orthogonal, window_of
from nestling.memory.matrix_rule import MatrixRule, one_by_one, whole
from nestling.memory.network import Network
from nestling.memory.queries import for_all
from nestling.memory.reference import token_loop
from nestling.memory.retention import ToZero
from nestling.memory.rule import DeltaGradientDescent, GradientDescent
from nestling.memory.state import Moved
from nestling.memory.trajectory import trajectory

if TYPE_CHECKING:
    from nestling.memory.associative import AssociativeMemory

Form = Callable[..., tuple[Tensor | None, Moved]]


def check(memory: AssociativeMemory) -> None:
    """Raise ValueError unless the choices have a meaning together."""
    network, rule, retention = memory.network, memory.rule, memory.retention
    if isinstance(rule, MatrixRule):
        if rule.momentum and memory.backend == "chunk":
            raise ValueError(f"{rule} has no chunk form; use backend='auto' for the token loop, or momentum=False")
        return rule.check(memory)
    if not callable(getattr(rule, "factors", None)):
        raise ValueError(
            f"{rule} writes no tokens; choose GradientDescent(), DeltaGradientDescent() or another of memories"
        )
    if not isinstance(network, Network) and not isinstance(rule, GradientDescent):
        raise ValueError(f"{rule} needs the input of each weight; with {type(network).__name__} use GradientDescent")
    if window_of(rule) > 1 and isinstance(network, Network) and network.dim_key is None:
        raise ValueError(f"{rule} carries tokens: Features(.., dim_key=..) must say how wide they are")
    plain = isinstance(rule, GradientDescent | DeltaGradientDescent) and not rule.momentum
    if retention != ToZero() and not isinstance(network, Network):
        raise ValueError(f"{retention} needs a network with a closed form; with {type(network).__name__} use ToZero()")
    if retention.maps and isinstance(rule, DeltaGradientDescent):
        raise ValueError(
            f"{rule} erases what a weight holds, and {retention} stores another thing; use GradientDescent()"
        )
    if retention != ToZero() and not retention.maps and not plain:
        raise ValueError(
            f"{retention} needs a rule of single tokens without momentum, not {rule}; use ToZero() with this one"
        )


def check_channels(memory: AssociativeMemory, eta: bool, alpha: bool) -> None:
    """Raise ValueError where rates, or retentions, of each channel are given to a memory that has none."""
    rule, linear = memory.rule, isinstance(memory.network, Network) and memory.network.linear
    channels = isinstance(rule, MatrixRule) and rule.channels
    if eta and not channels:
        raise ValueError(f"eta of each channel needs DeltaRule(), not {rule}; give one number a token, [B, H, L]")
    plain = (
        isinstance(rule, GradientDescent | DeltaGradientDescent) and not rule.momentum and memory.retention == ToZero()
    )
    if alpha and not (channels or (linear and plain)):
        raise ValueError(
            f"alpha of each channel needs a linear network (Matrix), ToZero() and a rule without momentum, not "
            f"{type(memory.network).__name__}, {memory.retention} and {rule}; give one number a token, [B, H, L]"
        )


def check_widths(memory: AssociativeMemory, q: Tensor | None, k: Tensor, v: Tensor) -> None:
    """Raise ValueError where tokens are not as wide as the network takes them."""
    network = memory.network
    if not isinstance(network, Network):
        return
    given = {"k": (k, network.dim_key), "v": (v, network.dim_value)} | (
        {} if q is None else {"q": (q, network.dim_key)}
    )
    for name, (x, width) in given.items():
        if width is not None and x.shape[-1] != width:
            raise ValueError(f"{name} is {x.shape[-1]} wide, {tuple(x.shape)}; {type(network).__name__} takes {width}")


def form_of(memory: AssociativeMemory) -> tuple[str, Form]:
    """The fastest exact form, or the oracle where that is asked for or there is no other; with its name."""
    slow, rule = memory.backend == "reference", memory.rule
    if isinstance(rule, MatrixRule):
        slow = slow or rule.momentum
        return ("token-loop oracle", _of_all(one_by_one)) if slow else ("chunk", _of_all(whole))
    if slow:
        return "token-loop oracle", _of_all(token_loop)
    if isinstance(rule, Omega | Orthogonal) or (memory.retention.maps and memory.read != "chunk"):
        return "trajectory", trajectory
    return "fused" if memory.fused else "chunk", closed_form


def _of_all(form: Form) -> Form:
    """A form that reads all memories, of which the queries may be for the last ones alone."""

    def run(memory: AssociativeMemory, q: Tensor | None, *given: Any, **state: Any) -> tuple[Tensor | None, Moved]:
        y, moved = form(memory, for_all(q, state["state"].weights), *given, **state)
        return (y if y is None or q is None else y[:, -q.shape[1] :]), moved

    return run
