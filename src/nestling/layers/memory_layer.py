"""A memory of the zoo as a layer: linear attention, DeltaNet, TTT, Titans and the rest, one layer for all.

B batch, L length, H heads, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestling.layers.conv import CausalConv
from nestling.layers.drive import Drive
from nestling.layers.linear import Linear
from nestling.memory import AssociativeMemory, AttentionState, MemoryState
from nestling.memory.part import PROJECTIONS, Described, Part
from nestling.memory.zoo import Classic
from nestling.ops import State
from nestling.ops.ragged import check_lengths
from nestling.ops.unit import unit


@dataclass(frozen=True)
class MemoryLayerState(State):
    """tail: `[B, conv_width - 1, D]` of the convolution. memory: the memory's own."""

    tail: Tensor
    memory: MemoryState | AttentionState


class MemoryLayer(nn.Module, Described):
    """`y, state = layer(x, state)`, `x, y [B, L, D]`: one memory a head, written and read token by token.

        q, k, v = silu(conv(x)) W_q, .. W_k, .. W_v           q, k of norm 1 (not those of attention)
        y = norm(memory(q; k -> v, driven by x)) W_o

    Args:
        dim: width D. heads: H, a divisor of D. classic: which memory, `nestling.memory.zoo.ZOO["deltanet"]`.
        conv_width: tokens that the convolution sees, the current one included; 1 mixes none.
        reach: the largest rate of a token, see `Drive`. With 2 the delta rule has negative eigenvalues.
        shape: more arguments of the memory: `chunk_size`, `hidden`, `window`.
    """

    def __init__(
        self, dim: int, heads: int, classic: Classic, conv_width: int = 4, reach: float = 1.0, **shape: Any
    ) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"dim={dim} is not a multiple of heads={heads}")
        if unknown := [name for name in shape if not classic.takes(name)]:
            raise ValueError(f"{unknown[0]}={shape[unknown[0]]} means nothing to {classic.title}; leave it out")
        self.heads, self.classic = heads, classic
        self.conv = CausalConv(dim, filters=3, width=conv_width)
        self.query, self.key, self.value, self.out = (Linear(dim, dim) for _ in range(4))
        self.memory = classic.make(dim // heads, heads, **shape)
        self.drive = None
        if isinstance(self.memory, AssociativeMemory):
            self.drive = Drive(dim, heads, classic, self.memory.rule.momentum, max(self.memory.sizes), reach)
        self.loop = ClosedLoop(heads) if classic.closed_loop else None
        self.norm = nn.RMSNorm(dim // heads, eps=1e-6)

    def parts(self) -> tuple[Part, ...]:
        """The memory, which the projections write, its momentum, and the convolution."""
        memory, *momentum = self.memory.parts()
        if self.drive is not None:
            starts = memory.knowledge if memory.parameters else ()
            knowledge = (*starts, ("direct parametric", PROJECTIONS))
            memory = replace(memory, knowledge=knowledge, context=self.drive.context())
        return (memory, *momentum, *self.conv.parts())

    def init_state(self, batch: int) -> MemoryLayerState:
        """The state before the first token."""
        return MemoryLayerState(self.conv.init_tail(batch), self.memory.init_state(batch))

    def forward(
        self, x: Tensor, state: MemoryLayerState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, MemoryLayerState]:
        """Write and read. `lengths [B]` int64 on the CPU: the real tokens of each row, None for all."""
        if x.dim() != 3 or x.shape[-1] != self.out.in_features:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected [B, L, {self.out.in_features}]")
        check_lengths(lengths, *x.shape[:2])
        state = state or self.init_state(x.shape[0])
        mixed, tail = self.conv(x, state.tail, lengths)
        projections = zip((self.query, self.key, self.value), F.silu(mixed).unbind(1), strict=True)
        q, k, v = (project(part).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project, part in projections)
        eta = alpha = theta = None
        if self.drive is not None:
            q, k, v = unit(q), unit(k), unit(v) if self.classic.unit_values else v
            eta, alpha, theta = self.drive(x)
            if self.loop is not None:
                q, v, eta = self.loop(q, k, v, eta)
        y, memory = self.memory(q, k, v, eta, alpha, state.memory, theta, lengths)
        y = self.norm(y.to(x.dtype))
        return self.out(y.transpose(1, 2).flatten(2)), MemoryLayerState(tail, memory)


class ClosedLoop(nn.Module):
    """Comba's two numbers a head (arXiv 2506.02475): the share `b` of a step that erases, and `d`, by how much of the key a query is
    corrected: `eta k^T (b k M - v)` is the rate `b eta` and the value `v / b`; `q - d k` is what reads.
    """

    feedback: Tensor
    correction: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        for name, value in self.initial_values().items():
            self.register_parameter(name, nn.Parameter(value))

    def initial_values(self) -> dict[str, Tensor]:
        """Fresh parameters: half of a step erases, queries are nearly themselves."""
        return {"feedback": torch.zeros(self.heads), "correction": torch.full((self.heads,), 0.02)}

    def forward(self, q: Tensor, k: Tensor, v: Tensor, eta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, value and rate, `[B, H, L, d]` and `[B, H, L]`."""
        b = torch.sigmoid(self.feedback)[:, None]
        return q - self.correction[:, None, None] * k, v / b[..., None], b * eta
