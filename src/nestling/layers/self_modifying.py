"""Self-modifying Titans (arXiv 2512.24695, section 8, Eq. 83-93): memories that make their own keys, values, learning
rates, decays and targets, and rewrite themselves while they read.

B batch, L length, H heads, d head width, C chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestling.layers.conv import CausalConv
from nestling.layers.gates import RETENTION_FLOOR, Gates
from nestling.layers.linear import Linear
from nestling.layers.recurrent import ANSWER, TokenStep, Weights, token_by_token, token_step
from nestling.memory import MLP, AssociativeMemory, DeltaGradientDescent, Huber, MemoryState, SelfGenerated, unit
from nestling.memory.associative import Objective
from nestling.memory.retention import Retention
from nestling.memory.rule import Rule
from nestling.ops import State
from nestling.ops.ragged import Piece, check_lengths, join, pieces, split
from nestling.ops.state import tree_map


@dataclass(frozen=True)
class SelfModifyingState(State):
    """tail: `[B, conv_width - 1, D]` of the convolution. projections: the memories k, v, eta, alpha, weights `[B, 4, H, ..]`.
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
        retention: what the memories fade to; see `nestling.memory`.
        horizons: between these numbers of tokens the heads' memories fade at the start, spread over the heads.
        conv_width: tokens that the convolution sees, the current one included; 1 mixes none.
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
        retention: Retention | None = None,
        horizons: tuple[float, float] = (16, 1024),
        conv_width: int = 4,
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
        self.conv = CausalConv(dim, filters=5, width=conv_width)
        self.query, self.out = Linear(dim, dim), Linear(dim, dim)
        rule = rule or DeltaGradientDescent()
        shared = {"objective": objective or Huber(), "rule": rule, "target": SelfGenerated(), "backend": backend}
        shared |= {"detach_writes": detach_writes, "retention_floor": RETENTION_FLOOR, "retention": retention}
        self.projections = AssociativeMemory(
            MLP(width, hidden, heads=(4, heads)), chunk_size=self.period, read="chunk", **shared
        )
        self.memory = AssociativeMemory(MLP(width, hidden, heads=heads), chunk_size=chunk_size, read=read, **shared)
        self.gates = Gates(heads, width, horizons)
        self.momentum = nn.Linear(dim, heads) if rule.momentum else None
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.token_step: TokenStep | None = None
        if self.period == 1 and backend == "auto" and not (rule.momentum or detach_writes):
            self.token_step = token_step

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
        x = unit(self._split(x[:, :4]))  # [B, 4, H, L, d]
        y, state = self._recurrence(q, x, state, lengths) or self._chunks(q, x, theta, state, lengths)
        y = self.out(self.norm(y.to(self.out.weight.dtype)).transpose(1, 2).flatten(2))
        return y, SelfModifyingState(tail, state.projections, state.memory)

    def _recurrence(
        self, q: Tensor, x: Tensor, state: SelfModifyingState, lengths: Tensor | None
    ) -> tuple[Tensor, SelfModifyingState] | None:
        """As `_chunks` for chunks of one token, all memories at once; None where it does not apply: where the layer or
        the state has something apart that it takes as one, or a row has an update to refuse.
        """
        step, memory, projections = self.token_step, state.memory, state.projections
        if step is None or not (self.memory.at_start(memory) and self.projections.at_start(projections)):
            return None
        up, down = side_by_side(projections.start, memory.start, dim=1)
        exact, length = up.dtype, x.shape[-2]
        looks = torch.cat([x, q[:, None]], 1).to(exact)
        mask = None if lengths is None else (torch.arange(length) < lengths[:, None]).to(x.device)
        with torch.autocast(x.device.type, enabled=False):
            gates, ways = (
                (self.gates.direction.to(exact), self.gates.bias.to(exact)),
                (self.memory.objective, self.memory.rule),
            )
            rest = self._rest(exact)
            y, weights = token_by_token(lambda look, w: step(look, w, rest, *gates, *ways), looks, (up, down), mask)
        if not all(bool(w.detach().sum().isfinite()) for w in weights):
            return None
        count = length if lengths is None else lengths
        projections, memory = (
            MemoryState(part, part, None, old.position + count, old.refused)
            for old, part in (
                (projections, tuple(w[:, :ANSWER] for w in weights)),
                (memory, tuple(w[:, ANSWER] for w in weights)),
            )
        )
        return y, SelfModifyingState(state.tail, projections, memory)

    def _rest(self, dtype: torch.dtype) -> Weights | None:
        """What the weights of all memories fade to, as `token_step` takes it."""
        projections, memory = (m.retention.rest(m.network) for m in (self.projections, self.memory))
        if projections is None or memory is None:
            return None
        up, down = (w.to(dtype).unsqueeze(-1) for w in side_by_side(projections, memory, dim=0))
        return up, down

    def _chunks(
        self, q: Tensor, x: Tensor, theta: Tensor | None, state: SelfModifyingState, lengths: Tensor | None
    ) -> tuple[Tensor, SelfModifyingState]:
        """Piece by piece of a chunk: `q [B, H, L, d]`, `x [B, 4, H, L, d]`, `theta [B, H, L]`."""
        outputs, length = [], x.shape[-2]
        cut = pieces(state.memory.position, lengths, length, self.period)
        tokens = zip(cut, split(q, cut, 2), split(x, cut, 3), split(theta, cut, 2), strict=True)
        for piece, q, x, theta in tokens:
            y, state = self._piece(q, x, theta, state, piece)
            outputs.append(y)
        return join(outputs, cut, length, dim=2), state

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


def side_by_side(projections: tuple[Tensor, ...], memory: tuple[Tensor, ...], dim: int) -> Iterator[Tensor]:
    """Each weight of the projections' memories with that of the memory that answers as the last along `dim`."""
    return (torch.cat([p, m.unsqueeze(dim)], dim) for p, m in zip(projections, memory, strict=True))
