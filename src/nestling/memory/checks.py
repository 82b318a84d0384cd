"""What a memory cannot mean: choices that do not go together, and tokens that do not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nestling.memory.compound import Compound, window_of
from nestling.memory.matrix_rule import MatrixRule
from nestling.memory.network import Network
from nestling.memory.retention import Retention, ToZero
from nestling.memory.rule import DeltaGradientDescent, GradientDescent
from nestling.ops.broadcast import broadcast

if TYPE_CHECKING:
    from nestling.memory.associative import AssociativeMemory
    from nestling.memory.state import MemoryState

READS = ("token", "inclusive", "chunk")
BACKENDS = ("auto", "chunk", "reference")


def check_settings(network: nn.Module, chunk_size: Any, read: str, backend: str) -> None:
    """Raise ValueError unless each setting of a memory is one that exists."""
    for name, given, allowed in (("read", read, READS), ("backend", backend, BACKENDS)):
        if given not in allowed:
            raise ValueError(f"{name}={given!r} is unknown; choose {', '.join(map(repr, allowed))}")
    sizes = (chunk_size,) if isinstance(chunk_size, int) else tuple(chunk_size) if _iterable(chunk_size) else ()
    if not sizes or not all(type(size) is int and size >= 1 for size in sizes):
        raise ValueError(f"chunk_size={chunk_size} must be at least 1, a whole number of tokens or one for each memory")
    if any(size % min(sizes) for size in sizes):
        raise ValueError(f"chunk_size={chunk_size}: each must be a multiple of the smallest, {min(sizes)}")
    if len(sizes) > 1 and not (isinstance(network, Network) and network.heads[:1] == (len(sizes),)):
        raise ValueError(f"chunk_size={chunk_size} needs a network whose heads are {len(sizes)} memories x heads")


def _iterable(value: Any) -> bool:
    return isinstance(value, list | tuple)


def check_choices(memory: AssociativeMemory) -> None:
    """Raise ValueError unless the choices are what they should be, and have a meaning together."""
    network, rule, retention = memory.network, memory.rule, memory.retention
    if not isinstance(retention, Retention):
        raise ValueError(f"retention={retention!r} must be an object of nestling.memory, as ToZero()")
    if not callable(memory.target):
        raise ValueError(f"target={memory.target!r} must be Given(), SelfGenerated() or a function like them")
    if isinstance(rule, MatrixRule):
        if rule.momentum and memory.backend == "chunk":
            raise ValueError(f"{rule} has no chunk form; use backend='auto' for the token loop, or momentum=False")
        return rule.check(memory)
    if isinstance(rule, type) or not callable(getattr(rule, "factors", None)):
        raise ValueError(
            f"{rule} writes no tokens; choose GradientDescent(), DeltaGradientDescent() or another of memories"
        )
    if isinstance(network, Network):
        return _check_closed(memory)
    if not isinstance(rule, GradientDescent) or retention != ToZero():
        raise ValueError(
            f"{rule} with {retention} needs a network of nestling.memory, which shows the input of each weight; with "
            f"{type(network).__name__} use GradientDescent() and ToZero()"
        )


def _check_closed(memory: AssociativeMemory) -> None:
    network, rule, retention = memory.network, memory.rule, memory.retention
    if window_of(rule) > 1 and isinstance(network, Network) and network.dim_key is None:
        raise ValueError(f"{rule} carries tokens: Features(.., dim_key=..) must say how wide they are")
    if retention.maps and isinstance(rule, DeltaGradientDescent):
        raise ValueError(
            f"{rule} erases what a weight holds, and {retention} stores another thing; use GradientDescent()"
        )
    if memory.backend == "chunk" and loop_alone(memory):
        raise ValueError(
            f"{rule} with {retention} has no chunk form; use backend='auto' for the token loop, or ToZero()"
        )


def loop_alone(memory: AssociativeMemory) -> bool:
    """Whether only the token loop knows how: what fades to other weights, while writes are gathered or mixed."""
    rule, retention = memory.rule, memory.retention
    if isinstance(rule, MatrixRule):
        return rule.momentum
    rests = retention != ToZero() and not retention.maps
    return rests and (isinstance(rule, Compound) or rule.momentum)


def check_tokens(memory: AssociativeMemory, tokens: Mapping[str, Tensor | None], state: MemoryState | None) -> None:
    """Raise ValueError unless the tensors of a call, by the names of `forward`, fit each other, the network and the state."""
    for name, x in tokens.items():
        if x is not None and not (isinstance(x, Tensor) and x.is_floating_point()):
            raise ValueError(f"{name} must be a tensor of floats, not {_what(x)}")
    k, v = tokens["k"], tokens["v"]
    assert k is not None and v is not None
    gates = [name for name in ("eta", "alpha", "theta") if tokens[name] is not None]
    shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in tokens.items() if x is not None)
    expected = f"expected q, k, v [B, H, L, d] and eta, alpha, theta [B, H, L] of one B, H and L >= 1; got {shapes}"
    of_channels = {name: _of(tokens, name).dim() == k.dim() for name in gates}
    lengths = [x.shape[-2] for x in (tokens["q"], k, v) if x is not None and x.dim() >= 4]
    lengths += [_of(tokens, name).shape[-1 - wide] for name, wide in of_channels.items()]
    dims = {name: (k.dim() - 1,) if name == "theta" else (k.dim() - 1, k.dim()) for name in gates}
    right = k.dim() == v.dim() >= 4 and all(_of(tokens, name).dim() in dims[name] for name in gates)
    if not right or len(set(lengths)) != 1 or not lengths[0]:
        raise ValueError(expected)
    q, leads = tokens["q"], [x.shape[:-2] for x in (k, v)]
    leads += [_of(tokens, name).shape[: k.dim() - 2] for name in gates]
    if isinstance(memory.network, Network) and memory.network.heads:
        leads.append(torch.Size((1, *memory.network.heads)))
    leads += [] if state is None else [state.weights[0].shape[: k.dim() - 2]]
    try:
        lead = broadcast(*leads)
    except RuntimeError:
        lead = None
    fits = lead is not None and (state is None or state.weights[0].shape[: len(lead)] == lead)
    if not fits or (q is not None and not _reads(q, lead or ())):
        held = "" if state is None else f", a state of [B, H] = {tuple(state.weights[0].shape[: k.dim() - 2])}"
        raise ValueError(expected + held)
    check_channels(memory, of_channels.get("eta", False), of_channels.get("alpha", False))
    _check_widths(memory, q, k, v)
    eta = _of(tokens, "eta")
    if bool((eta < 0).any()):
        raise ValueError(f"eta is {eta.min().item():g} somewhere; a learning rate must be at least 0")


def _what(x: Any) -> str:
    return f"{x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"


def _of(tokens: Mapping[str, Tensor | None], name: str) -> Tensor:
    x = tokens[name]
    assert x is not None
    return x


def _reads(q: Tensor, lead: tuple[int, ...]) -> bool:
    """Whether queries are of all memories, or of fewer along the first dimension of heads."""
    found = tuple(q.shape[:-2])
    return len(found) == len(lead) and (found[:1] + found[2:], found[1] <= lead[1]) == (lead[:1] + lead[2:], True)


def check_channels(memory: AssociativeMemory, eta: bool, alpha: bool) -> None:
    """Raise ValueError where rates, or retentions, of each channel are given to a memory that has none."""
    rule, linear = memory.rule, isinstance(memory.network, Network) and memory.network.linear
    channels = isinstance(rule, MatrixRule) and rule.channels
    if eta and not channels:
        raise ValueError(f"eta of each channel needs DeltaRule(), not {rule}; give one number a token, [B, H, L]")
    single = isinstance(rule, GradientDescent | DeltaGradientDescent) and not rule.momentum
    if alpha and not (channels or (linear and single and memory.retention == ToZero())):
        raise ValueError(
            f"alpha of each channel needs a linear network (Matrix), ToZero() and a rule without momentum, not "
            f"{type(memory.network).__name__}, {memory.retention} and {rule}; give one number a token, [B, H, L]"
        )


def _check_widths(memory: AssociativeMemory, q: Tensor | None, k: Tensor, v: Tensor) -> None:
    network = memory.network
    if not isinstance(network, Network):
        return
    given = {"k": (k, network.dim_key), "v": (v, network.dim_value)} | (
        {} if q is None else {"q": (q, network.dim_key)}
    )
    for name, (x, width) in given.items():
        if width is not None and x.shape[-1] != width:
            raise ValueError(f"{name} is {x.shape[-1]} wide, {tuple(x.shape)}; {type(network).__name__} takes {width}")
