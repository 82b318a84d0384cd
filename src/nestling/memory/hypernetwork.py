"""Knowledge by generation (arXiv 2512.24695, section 3.3): a network that writes what a memory starts from."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from nestling.memory.associative import AssociativeMemory
from nestling.memory.state import MemoryState


class Hypernetwork(nn.Module):
    """Generates the initial state of a memory from a context: `W_i(c) = W_i + sum_r (c S_i)_r U_i,r V_i,r`.

    Every weight `W_i [H, in, out]` of the memory gets a mixture of `rank` outer products of its own, mixed by the context. `W_i` itself
    stays the memory's parameter, and is what all contexts share; `V` starts at zero, so at first that is all there is. It is
    linear in the context: put a network in front for more, and a mean over tokens for a set of them.

        state = hypernetwork(memory, context)
        y, state = memory(q, k, v, eta, state=state)

    A memory with `ToInitial()` fades to `W_i`, so what was generated fades too.

    Args:
        memory: whose shapes it takes; it is not kept.
        context: width of the context.
        rank: outer products a weight and head, at most; full is `min(context, in * out)`.
        heads: as `AssociativeMemory.init_state` takes them: for a network that has no heads of its own.

    Raises:
        ValueError: a width or rank below 1, or heads that do not fit the memory; when called, a context of another width.
    """

    def __init__(
        self, memory: AssociativeMemory, context: int, rank: int = 8, heads: int | tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        if context < 1 or rank < 1:
            raise ValueError(f"context={context} and rank={rank} must be at least 1")
        self.context, self.rank, self.heads = context, rank, heads
        weights = memory.init_state(1, heads).weights
        self.mix, self.keys, self.values = (nn.ParameterList() for _ in range(3))
        for weight in weights:
            *lead, inside, out = weight.shape[1:]
            like = {"dtype": weight.dtype, "device": weight.device}
            self.mix.append(torch.randn(*lead, context, rank, **like) * context**-0.5)
            self.keys.append(torch.randn(*lead, inside, rank, **like) * inside**-0.5)
            self.values.append(torch.zeros(*lead, rank, out, **like))

    def forward(self, memory: AssociativeMemory, context: Tensor) -> MemoryState:
        """The state before the first token of B rows, for contexts `[B, d_c]`."""
        if context.dim() != 2 or context.shape[1] != self.context:
            raise ValueError(f"expected a context [B, {self.context}]; got {tuple(context.shape)}")
        born = memory.init_state(len(context), self.heads)
        parts = zip(born.weights, self.mix, self.keys, self.values, strict=True)
        weights = tuple(weight + self._difference(context, *factors) for weight, *factors in parts)
        return replace(born, weights=weights, start=weights)

    def _difference(self, context: Tensor, mix: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """`[B, *H, in, out]`."""
        share = torch.einsum("bc,...cr->b...r", context.to(mix.dtype), mix)
        return (keys * share[..., None, :]) @ values

    def extra_repr(self) -> str:
        return f"context={self.context}, rank={self.rank}"
