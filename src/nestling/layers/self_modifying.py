"""Self-modifying Titans (arXiv 2512.24695, section 8, Eq. 83-93): memories that make their own keys, values, learning
rates, decays and targets, and rewrite themselves while they read.

B batch, L length, H heads, d head width, C chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestling.layers.conv import CausalConv
from nestling.layers.linear import Linear
from nestling.memory import MLP, AssociativeMemory, DeltaGradientDescent, Huber, MemoryState, SelfGenerated, unit
from nestling.memory.associative import Objective
from nestling.memory.rule import Rule
from nestling.ops import State
from nestling.ops.ragged import Piece, check_lengths, join, pieces, split
from nestling.ops.state import tree_map

KEY, VALUE, RATE, DECAY = range(4)  # the memories of `projections`
RETENTION_FLOOR = 0.5  # of what a token may leave of a memory


@dataclass(frozen=True)
class SelfModifyingState(State):
    """tail: `[B, 3, D]` of the convolution. projections: the memories k, v, eta, alpha, weights `[B, 4, H, ..]`.
    memory: the memory that answers, weights `[B, H, ..]`."""

    tail: Tensor
    projections: MemoryState
    memory: MemoryState


class SelfModifyingTitans(nn.Module):
    """`y, state = layer(x, state)`, `x, y [B, L, D]`.

    For a token `x_t`, after a short causal convolution, every memory being a residual MLP per head:

        q_t = x_t W_q            k_t, v_t, eta_t, alpha_t = M_k(x_t), M_v(x_t), M_eta(x_t), M_alpha(x_t)
        y_t = M_memory(q_t)      every memory M writes  k_t -> M(v_t)  with rate eta_t and retention alpha_t

    `q`, what the memories answer and the targets have unit norm per head, surprises at most norm 2: so no weight can
    grow beyond a bound that the rates and retentions set (docs/stability.md). `eta` and `alpha` come out of their
    memories as vectors; a learnt direction per head reduces each to one number. The four projections are read
    at the state their chunk started from, as the chunk-wise form of the paper (section 8.2) has it; the memory that
    answers is read at every token, writes inside the chunk included, or at the chunk's start (`read`).

    Args:
        dim: width D. heads: H, a divisor of D.
        hidden: hidden width of each memory, per head; None is the head width.
        chunk_size: tokens between the states at which `memory` takes its gradients.
        projection_chunk_size: the same for the four projections, a multiple of `chunk_size`; None is `chunk_size`.
        objective, rule: of every memory's writing; see `nestling.memory`.
        read: "token" or "chunk".
        detach_writes: no outer gradient through the writes (cheap; less is learnt).
        backend: "auto", or "reference" for the token-loop oracle.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int | None = None,
        chunk_size: int = 64,
        projection_chunk_size: int | None = None,
        objective: Objective | None = None,
        rule: Rule | None = None,
        read: str = "token",
        detach_writes: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim={dim} is not a multiple of heads={heads}")
        self.period = projection_chunk_size or chunk_size
        if self.period % chunk_size:
            raise ValueError(f"projection_chunk_size={self.period} must be a multiple of chunk_size={chunk_size}")
        width = dim // heads
        hidden = hidden or width
        self.heads = heads
        self.conv = CausalConv(dim, filters=5)
        self.query, self.out = Linear(dim, dim), Linear(dim, dim)
        rule = rule or DeltaGradientDescent()
        shared = {"objective": objective or Huber(), "rule": rule, "target": SelfGenerated(), "backend": backend}
        shared |= {"detach_writes": detach_writes, "retention_floor": RETENTION_FLOOR}
        self.projections = AssociativeMemory(
            MLP(width, hidden, heads=(4, heads)), chunk_size=self.period, read="chunk", **shared
        )
        self.memory = AssociativeMemory(MLP(width, hidden, heads=heads), chunk_size=chunk_size, read=read, **shared)
        self.gates = Gates(heads, width)
        self.momentum = nn.Linear(dim, heads) if rule.momentum else None
        self.norm = nn.RMSNorm(width, eps=1e-6)

    def init_state(self, batch: int) -> SelfModifyingState:
        """The meta-learned state before the first token."""
        return SelfModifyingState(
            self.conv.init_tail(batch), self.projections.init_state(batch), self.memory.init_state(batch)
        )

    def forward(
        self, x: Tensor, state: SelfModifyingState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, SelfModifyingState]:
        """Read and rewrite. `lengths [B]` int64 on the CPU: the real tokens of each row, None for all."""
        if x.dim() != 3 or x.shape[-1] != self.query.in_features:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected [B, L, {self.query.in_features}]")
        batch, length, _ = x.shape
        check_lengths(lengths, batch, length)
        state = state or self.init_state(batch)
        theta = None if self.momentum is None else torch.sigmoid(self.momentum(x)).mT  # [B, H, L]
        x, tail = self.conv(x, state.tail, lengths)
        x = F.silu(x)  # [B, 5, L, D]: what the query and the four projections look at
        q = unit(self._split(self.query(x[:, 4])))
        x, outputs = unit(self._split(x[:, :4])), []  # [B, 4, H, L, d]
        cut = pieces(state.memory.position, lengths, length, self.period)
        tokens = zip(cut, split(q, cut, 2), split(x, cut, 3), split(theta, cut, 2), strict=True)
        for piece, q, x, theta in tokens:
            y, state = self._piece(q, x, theta, state, piece)
            outputs.append(y)
        y = self.norm(join(outputs, cut, length, dim=2).to(self.out.weight.dtype))
        y = self.out(y.transpose(1, 2).flatten(2))
        return y, SelfModifyingState(tail, state.projections, state.memory)

    def _piece(
        self, q: Tensor, x: Tensor, theta: Tensor | None, state: SelfModifyingState, piece: Piece
    ) -> tuple[Tensor, SelfModifyingState]:
        """Tokens within one chunk of the projections: `q [B, H, n, d]`, `x [B, 4, H, n, d]`, `theta [B, H, n]`."""
        lengths = None if piece.mask(x.device) is None else piece.count
        network, start = self.projections.network, state.projections.start
        assert isinstance(network, MLP)
        with torch.autocast(x.device.type, enabled=False):
            read = network.read(x.to(start[0].dtype), start)  # [B, 4, H, n, d]
            k, v, rate, decay = unit(read).unbind(1)
            eta, alpha = self.gates(rate, decay)
        y, memory = self.memory(q, k, v, eta, alpha, state.memory, theta, lengths)
        k, v, eta, alpha, theta = tree_map(lambda t: t[:, None], (k, v, eta, alpha, theta))  # one for all projections
        _, projections = self.projections(None, k, v, eta, alpha, state.projections, theta, lengths)
        return y, SelfModifyingState(state.tail, projections, memory)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)


class Gates(nn.Module):
    """Reduce what the memories of eta and alpha say to one learning rate and one retention per head and token.

    eta = softplus(w . M_eta(x) + b) > 0 and alpha = 1 - 1/2 sigmoid(w . M_alpha(x) + b) in (1/2, 1), for unit outputs
    of the memories: what a direction `w` can make of them is bounded. Heads start with memories of different length: a
    retention strictly between `1 - 1/16` and `1 - 1/1024` a token.
    """

    direction: Tensor
    bias: Tensor

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        for name, value in self.initial_values().items():
            self.register_parameter(name, nn.Parameter(value))

    def initial_values(self) -> dict[str, Tensor]:
        """Fresh parameters: a rate of 0.2, and horizons spread over the heads."""
        decay = torch.logspace(math.log10(1 / 16), math.log10(1 / 1024), self.heads + 2)[1:-1]
        rate = torch.full((self.heads,), 0.2).expm1().log()  # the inverse of softplus
        return {
            "direction": torch.randn(2, self.heads, self.width),
            "bias": torch.stack([rate, (decay / (1 - RETENTION_FLOOR)).logit()]),
        }

    def forward(self, rate: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
        """`eta, alpha [B, H, n]` from the memories' outputs `[B, H, n, d]`."""
        direction, bias = self.direction.to(rate.dtype), self.bias.to(rate.dtype)
        eta = (rate @ direction[0, :, :, None]).squeeze(-1) + bias[0, :, None]
        alpha = (decay @ direction[1, :, :, None]).squeeze(-1) + bias[1, :, None]
        return F.softplus(eta), 1 - (1 - RETENTION_FLOOR) * torch.sigmoid(alpha)
