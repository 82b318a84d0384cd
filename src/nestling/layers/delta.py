"""Linear memories as layers: linear attention, DeltaNet and Gated DeltaNet, one layer with three kinds of gates.

B batch, L length, H heads, d head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestling.layers.conv import CausalConv
from nestling.layers.linear import Linear
from nestling.memory.part import PROJECTIONS, Context, Described, Part
from nestling.ops import ScanState, State, scan
from nestling.ops.ragged import check_lengths, real_tokens
from nestling.ops.unit import unit


class Strengths(NamedTuple):
    """What the scan needs of a token, each `[B, H, L]` or None: retention (None: 1), erasure (None: 0), write (None: 1)."""

    alpha: Tensor | None
    eps: Tensor | None
    write: Tensor | None


class Gates(Protocol):
    """How strongly a layer's memory retains, erases and writes at each token `x [B, L, D]`."""

    def __call__(self, x: Tensor) -> Strengths: ...

    def memory(self) -> Part:
        """The memory that they make, but for its size."""
        ...


class Hebbian(nn.Module):
    """Linear attention: nothing fades, nothing is erased (Katharopoulos et al. 2020, arXiv 2006.16236)."""

    def forward(self, x: Tensor) -> Strengths:
        return Strengths(None, None, None)

    def memory(self) -> Part:
        return Part("linear memory", "-<k M, v>", "M <- M + k^T v")


class Delta(nn.Module):
    """The delta rule: what the key held is replaced, in part (Schlag et al. 2021, arXiv 2102.11174).

    reach: the step is in (0, reach). With 1 the eigenvalues of a token's transition are in (0, 1); with 2 they are in
    (-1, 1), which parity needs (Grazzi et al. 2024, arXiv 2411.12537).
    """

    def __init__(self, dim: int, heads: int, reach: float = 1.0) -> None:
        super().__init__()
        if not 0 < reach <= 2:
            raise ValueError(f"reach={reach} must be in (0, 2]: with a larger step the memory overshoots and grows")
        self.step, self.reach = Linear(dim, heads), reach

    def forward(self, x: Tensor) -> Strengths:
        beta = self.reach * torch.sigmoid(self.step(x).mT)
        return Strengths(None, beta, beta)

    def memory(self) -> Part:
        return Part("linear memory", "1/2 |k M - v|^2", "M <- M - b k^T (k M - v)")


class GatedDelta(Delta):
    """The delta rule on a memory that fades (Yang et al. 2024, arXiv 2412.06464)."""

    horizon: Tensor

    def __init__(self, dim: int, heads: int, reach: float = 1.0) -> None:
        super().__init__(dim, heads, reach)
        self.fade, self.heads = Linear(dim, heads), heads
        self.horizon = nn.Parameter(self.initial_values()["horizon"])

    def initial_values(self) -> dict[str, Tensor]:
        """Fresh parameters: heads that forget within 16 to 1024 tokens."""
        decay = torch.logspace(math.log10(1 / 16), math.log10(1 / 1024), self.heads + 2)[1:-1]
        return {"horizon": decay.expm1().log()}  # the inverse of softplus

    def forward(self, x: Tensor) -> Strengths:
        beta = self.reach * torch.sigmoid(self.step(x).mT)
        alpha = torch.exp(-F.softplus(self.fade(x).mT + self.horizon[:, None]))
        return Strengths(alpha, alpha * beta, beta)

    def memory(self) -> Part:
        context = Context(effective=1024, note="heads from 16 tokens on, as they begin")
        return Part("linear memory", "1/2 |k M - v|^2", "M <- a M - b k^T (k a M - v)", context=context)


@dataclass(frozen=True)
class LinearMemoryState(State):
    """tail: `[B, conv_width - 1, D]` of the convolution. memory: `[B, H, d, d]`."""

    tail: Tensor
    memory: ScanState


class LinearMemory(nn.Module, Described):
    """`y, state = layer(x, state)`, `x, y [B, L, D]`: one matrix a head, written and read token by token.

        q, k, v = silu(conv(x)) W_q, .. W_k, .. W_v           q, k of norm 1
        M_t = alpha_t M_{t-1} - eps_t k_t^T (k_t M_{t-1}) + w_t k_t^T v_t          y_t = norm(q_t M_t) W_o

    dim: width D. heads: H, a divisor of D. gates: `Hebbian`, `Delta` or `GatedDelta`.
    conv_width: tokens that the convolution sees, the current one included; 1 mixes none.
    """

    def __init__(self, dim: int, heads: int, gates: Gates, conv_width: int = 4) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim={dim} is not a multiple of heads={heads}")
        self.heads, self.gates = heads, gates
        self.conv = CausalConv(dim, filters=3, width=conv_width)
        self.query, self.key, self.value, self.out = (Linear(dim, dim) for _ in range(4))
        self.norm = nn.RMSNorm(dim // heads, eps=1e-6)

    def parts(self) -> tuple[Part, ...]:
        """The memory, which starts empty, and the convolution."""
        state, knowledge = self.init_state(1).memory.memory, (("direct parametric", PROJECTIONS),)
        memory = replace(self.gates.memory(), knowledge=knowledge, state=(state,), item=2 * self.query.in_features)
        return (memory, *self.conv.parts())

    def init_state(self, batch: int) -> LinearMemoryState:
        """An empty memory."""
        weight, width = self.query.weight, self.query.in_features // self.heads
        exact = torch.promote_types(weight.dtype, torch.float32)
        empty = weight.new_zeros(batch, self.heads, width, width, dtype=exact)
        return LinearMemoryState(self.conv.init_tail(batch), ScanState(empty))

    def forward(
        self, x: Tensor, state: LinearMemoryState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, LinearMemoryState]:
        """Write and read. `lengths [B]` int64 on the CPU: the real tokens of each row, None for all."""
        if x.dim() != 3 or x.shape[-1] != self.query.in_features:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected [B, L, {self.query.in_features}]")
        batch, length, _ = x.shape
        check_lengths(lengths, batch, length)
        state = state or self.init_state(batch)
        alpha, eps, write = self.gates(x)
        mixed, tail = self.conv(x, state.tail, lengths)
        projections = (self.query, self.key, self.value)
        q, k, v = (self._split(p(m)) for p, m in zip(projections, F.silu(mixed).unbind(1), strict=True))
        v = v if write is None else write[..., None] * v
        mask = None if lengths is None else real_tokens(lengths, length, x.device)
        y, memory = scan(unit(q), unit(k), v, alpha, eps, mask=mask, state=state.memory, read="inclusive")
        assert y is not None  # it was read
        y = self.norm(y.to(x.dtype))
        return self.out(y.transpose(1, 2).flatten(2)), LinearMemoryState(tail, memory)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
