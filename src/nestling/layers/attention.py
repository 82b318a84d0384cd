"""Causal self-attention with rotary positions: the non-parametric memory (Nadaraya-Watson over all past tokens) as a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nestling.layers.linear import Linear
from nestling.memory.attention import AttentionState, SoftmaxAttention
from nestling.memory.part import Described, Part


class Attention(nn.Module, Described):
    """Multi-head attention, `y, state = layer(x, state)`, `x [B, L, D]`.

    window: how many tokens a token sees, itself included; None sees all. With a window the state is bounded.
    """

    def __init__(self, dim: int, heads: int, window: int | None = None, rope_theta: float = 10_000.0) -> None:
        super().__init__()
        if dim % heads or (dim // heads) % 2:
            raise ValueError(f"dim={dim} over heads={heads} must give an even whole head width")
        self.heads, self.rope_theta = heads, rope_theta
        self.query, self.key, self.value, self.out = (Linear(dim, dim) for _ in range(4))
        self.memory = SoftmaxAttention(dim // heads, dim // heads, heads, window)

    @property
    def window(self) -> int | None:
        """How many tokens a token sees."""
        return self.memory.window

    def parts(self) -> tuple[Part, ...]:
        """Attention itself, which keeps what it sees as it is; the rest are projections."""
        return self.memory.parts()

    def init_state(self, batch: int) -> AttentionState:
        """No token read yet; its keys will be rotated."""
        return self.memory.init_state(batch)

    def forward(
        self, x: Tensor, state: AttentionState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, AttentionState]:
        """Attend to what the state holds and to the tokens before; `lengths [B]` as everywhere."""
        state = state or self.init_state(x.shape[0])
        q, k, v = (project(x).unflatten(-1, (self.heads, -1)) for project in (self.query, self.key, self.value))
        now = (state.position[:, None] + torch.arange(x.shape[1])).to(x.device)
        q, k = rotate(q, now, self.rope_theta), rotate(k, now, self.rope_theta)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        y, after = self.memory(q, k, v, state=state, lengths=lengths)
        return self.out(y.transpose(1, 2).flatten(2)), after


def rotate(x: Tensor, position: Tensor, theta: float) -> Tensor:
    """Rotary position embedding (Su et al., arXiv 2104.09864) of `x [B, L, H, d]` at `position [B, L]`."""
    half = x.shape[-1] // 2
    # angles in float64: after ten million tokens those of float32 are wrong by half a radian
    frequency = theta ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angle = (position[..., None] * frequency)[:, :, None, :]
    exact = torch.promote_types(x.dtype, torch.float32)
    cos, sin = angle.cos().to(exact), angle.sin().to(exact)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
