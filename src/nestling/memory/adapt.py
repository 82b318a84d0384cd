"""Knowledge by initialisation (arXiv 2512.24695, section 3.3): what a memory starts from, learnt through its own writes.

MAML (Finn et al., arXiv 1703.03400) over a memory: the inner loop is the memory writing the pairs of a task, by its own rule,
and what is learnt is its initial state, the parameters of its network. Rows are tasks, so one call adapts many:

    loss = query_loss(memory, adapt(memory, keys, values, eta=0.5), query_keys, query_values).mean()
    loss.backward()
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from nestling.memory.associative import AssociativeMemory
from nestling.memory.network import Network
from nestling.memory.state import MemoryState
from nestling.ops.state import tree_map

ORDERS = ("second-order", "first-order")


def adapt(
    memory: AssociativeMemory,
    keys: Tensor,
    values: Tensor,
    eta: Tensor | float,
    alpha: Tensor | None = None,
    theta: Tensor | None = None,
    passes: int = 1,
    outer_gradient: str = "second-order",
    state: MemoryState | None = None,
) -> MemoryState:
    """What a memory knows of each task, having written the task's pairs `passes` times over.

    With a `chunk_size` of as many tokens as there are pairs, and plain descent, a pass is one gradient step on the sum of their
    losses: the inner loop of MAML as printed. Smaller chunks are several steps.

    Args:
        keys, values: `[B, H, L, d]`, the pairs of B tasks.
        eta: learning rate, `[B, H, L]` or of any shape that expands to it; a parameter may be learnt (Meta-SGD).
        alpha, theta: retention and momentum, as the memory takes them.
        outer_gradient: "second-order" is exact: through the writes, to the initial state and to keys, values and rates.
            "first-order" takes the gradient at the adapted weights for that at the initial ones, as if what was written did not
            depend on them (FOMAML): nothing else gets any. A memory with `detach_writes=True` gives the same with
            `GradientDescent` and no `alpha`; what a rule erases and a retention fades it still differentiates.
        state: where to start (None: the memory's own initial state); one from `Hypernetwork`, say.

    Raises:
        ValueError: an unknown `outer_gradient`, fewer passes than one, or exact gradients of a memory that detaches its writes.
    """
    if outer_gradient not in ORDERS:
        raise ValueError(f"outer_gradient={outer_gradient!r} is unknown; choose {' or '.join(map(repr, ORDERS))}")
    if passes < 1:
        raise ValueError(f"passes={passes} must be at least 1")
    exact = outer_gradient == "second-order"
    if exact and memory.detach_writes:
        raise ValueError(
            "outer_gradient='second-order' needs gradients through the writes, and the memory has detach_writes=True; make it "
            "without, or use 'first-order'"
        )
    if state is None:
        own = isinstance(memory.network, Network) and memory.network.heads
        state = memory.init_state(len(keys), None if own else tuple(values.shape[1:-2]))
    rate = torch.as_tensor(eta, dtype=values.dtype, device=values.device).expand(values.shape[:-1])
    after = state
    with torch.set_grad_enabled(exact and torch.is_grad_enabled()):
        for _ in range(passes):
            _, after = memory(None, keys, values, rate, alpha, after, theta)
    return after if exact else _as_constants(state, after)


def query_loss(memory: AssociativeMemory, state: MemoryState, keys: Tensor, values: Tensor) -> Tensor:
    """The memory's objective on pairs that are read and not written, `[B]`: a mean over heads and pairs `[B, H, L, d]`.

    Raises:
        ValueError: the memory's network has no closed form, and so no reading of weights that stand still.
    """
    if not isinstance(memory.network, Network):
        raise ValueError(
            f"{type(memory.network).__name__} cannot be read without writing; use a network of nestling.memory, or read "
            "`state.weights` in a loss of your own"
        )
    weights = tree_map(memory.retention.weight, state.weights)
    found = memory.network.read(keys.to(weights[0].dtype), weights)
    return memory.objective.loss(found, values.to(found.dtype)).flatten(1).mean(1)


def _as_constants(before: MemoryState, after: MemoryState) -> MemoryState:
    """The state after, to autograd the state before plus a constant."""

    def moved(old: tuple[Tensor, ...], new: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(n + (o - o.detach()) for o, n in zip(old, new, strict=True))

    weights, start = moved(before.weights, after.weights), moved(before.start, after.start)
    return replace(after, weights=weights, start=start)
