"""Causal self-attention with rotary positions: the non-parametric memory (Nadaraya-Watson over all past tokens)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestling.layers.linear import Linear
from nestling.memory.part import Described, Part, attending
from nestling.ops import State
from nestling.ops.ragged import check_lengths


@dataclass(frozen=True)
class AttentionState(State):
    """The tokens that can still be seen.

    k, v:      `[B, T, H, d]`, keys already rotated.
    when:      `[B, T]` int64, the position of each entry in its row, -1 where there is none.
    position:  `[B]` int64 on the CPU, tokens read.
    """

    k: Tensor
    v: Tensor
    when: Tensor
    position: Tensor

    def where(self, rows: Tensor, other: Self) -> Self:
        width = max(self.when.shape[1], other.when.shape[1])
        return super(AttentionState, self._padded(width)).where(rows, other._padded(width))

    def _padded(self, width: int) -> Self:
        extra = width - self.when.shape[1]
        if extra == 0:
            return self
        k, v = (F.pad(x, (0, 0, 0, 0, 0, extra)) for x in (self.k, self.v))
        return replace(self, k=k, v=v, when=F.pad(self.when, (0, extra), value=-1))


class Attention(nn.Module, Described):
    """Multi-head attention, `y, state = layer(x, state)`, `x [B, L, D]`.

    window: how many tokens a token sees, itself included; None sees all. With a window the state is bounded.
    """

    def __init__(self, dim: int, heads: int, window: int | None = None, rope_theta: float = 10_000.0) -> None:
        super().__init__()
        if dim % heads or (dim // heads) % 2:
            raise ValueError(f"dim={dim} over heads={heads} must give an even whole head width")
        if window is not None and window < 1:
            raise ValueError(f"window={window} must be at least 1, or None to see everything")
        self.heads, self.window, self.rope_theta = heads, window, rope_theta
        self.query, self.key, self.value, self.out = (Linear(dim, dim) for _ in range(4))

    def parts(self) -> tuple[Part, ...]:
        """Attention itself, which keeps what it sees as it is; the rest are projections."""
        if self.window is None:
            return (attending(),)
        keys, values = (self.query.weight.new_empty(self.window, self.query.out_features, device="meta") for _ in "kv")
        return (attending(self.window, (keys, values)),)

    def init_state(self, batch: int) -> AttentionState:
        """No token read yet."""
        weight = self.query.weight
        empty = weight.new_zeros(batch, 0, self.heads, weight.shape[-1] // self.heads)
        when = torch.zeros(batch, 0, dtype=torch.int64, device=weight.device)
        return AttentionState(empty, empty, when, torch.zeros(batch, dtype=torch.int64))

    def forward(
        self, x: Tensor, state: AttentionState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, AttentionState]:
        """Attend to what the state holds and to the tokens before; `lengths [B]` as everywhere."""
        batch, length, _ = x.shape
        check_lengths(lengths, batch, length)
        state = state or self.init_state(batch)
        q, k, v = (project(x).unflatten(-1, (self.heads, -1)) for project in (self.query, self.key, self.value))
        columns = torch.arange(length)
        now = (state.position[:, None] + columns).to(x.device)
        q, k = rotate(q, now, self.rope_theta), rotate(k, now, self.rope_theta)
        real = now if lengths is None else torch.where((columns < lengths[:, None]).to(x.device), now, -1)

        fresh = state.when.shape[1] == 0
        keys = k if fresh else torch.cat([state.k.to(k.dtype), k], dim=1)
        values = v if fresh else torch.cat([state.v.to(v.dtype), v], dim=1)
        when = real if fresh else torch.cat([state.when, real], dim=1)
        simple = fresh and lengths is None and (self.window is None or length <= self.window)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2),
            attn_mask=None if simple else self._visible(now, when), is_causal=simple,
        )  # fmt: skip
        position = state.position + (length if lengths is None else lengths)
        return self.out(y.transpose(1, 2).flatten(2)), self._trim(AttentionState(keys, values, when, position))

    def _visible(self, now: Tensor, when: Tensor) -> Tensor:
        """`[B, 1, L, T]`: which entries each token may see. Padding sees entry 0, so that its softmax is defined."""
        age = now[:, :, None] - when[:, None, :]
        seen = (age >= 0) & (when >= 0)[:, None, :]
        if self.window is not None:
            seen = seen & (age < self.window)
        blind = ~seen.any(-1, keepdim=True)
        return (seen | (blind & (torch.arange(when.shape[1], device=when.device) == 0)))[:, None]

    def _trim(self, state: AttentionState) -> AttentionState:
        """Drop the columns that no row will see again. Rows keep their own gaps; a column goes when all are done."""
        if self.window is None or state.when.shape[1] < self.window:
            return state
        oldest = (state.position - self.window + 1).to(state.when.device)
        live = (state.when >= oldest[:, None]).any(0)
        keep = live if not bool(live.all()) else None
        if keep is None:
            return state
        return AttentionState(state.k[:, keep], state.v[:, keep], state.when[:, keep], state.position)


def rotate(x: Tensor, position: Tensor, theta: float) -> Tensor:
    """Rotary position embedding (Su et al., arXiv 2104.09864) of `x [B, L, H, d]` at `position [B, L]`."""
    half = x.shape[-1] // 2
    exact = torch.promote_types(x.dtype, torch.float32)
    frequency = theta ** (-torch.arange(half, device=x.device, dtype=exact) / half)
    angle = (position[..., None].to(exact) * frequency)[:, :, None, :]
    cos, sin = angle.cos(), angle.sin()
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
