"""What drives a memory of the zoo: how fast each token is learnt, how much is retained, how much momentum there is.

B batch, L length, H heads, d head width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestling.layers.linear import Linear
from nestling.memory.part import Context
from nestling.memory.zoo import Classic

RANK = 16  # of the map to gates of each channel, as in gated linear attention and RWKV-7


class Strengths(NamedTuple):
    """eta: `[B, H, L]` or `[B, H, L, d]`. alpha: the same, or None (1). theta: `[B, H, L]`, or None without momentum."""

    eta: Tensor
    alpha: Tensor | None
    theta: Tensor | None


class Drive(nn.Module):
    """`Strengths` of tokens `x [B, L, D]`.

    A rate is `reach sigmoid(.)`. A retention is `exp(-softplus(. + horizon))`; at the start heads, or the channels of each, fade
    within 16 to 1024 tokens. Constants of a head are RetNet's, `1 - 2^(-5 - h)`.

    classic: whose drive it is. momentum: whether its rule has some. reach: the largest rate of a token; over the chunk size
        where `classic.rate` is "chunk".
    """

    horizon: Tensor

    def __init__(
        self, dim: int, heads: int, classic: Classic, momentum: bool = False, chunk_size: int = 1, reach: float = 1.0
    ) -> None:
        super().__init__()
        if not 0 < reach <= classic.largest:
            raise ValueError(
                f"reach={reach} must be in (0, {classic.largest:g}] for {classic.title}: with a larger step the memory "
                "overshoots and grows"
            )
        self.heads, self.classic = heads, classic
        self.reach = reach / chunk_size if classic.rate == "chunk" else reach
        self.step = None if classic.rate == "one" else _map(dim, heads, classic.rate == "channel")
        learnt, channels = classic.retention in ("token", "channel"), classic.retention == "channel"
        self.fade = _map(dim, heads, channels) if learnt else None
        self.times = dim // heads if channels else 1
        self.push = nn.Linear(dim, heads) if momentum else None
        if learnt:
            self.horizon = nn.Parameter(self.initial_values()["horizon"])

    def initial_values(self) -> dict[str, Tensor]:
        """Fresh parameters of its own: `horizon [H, 1 or d]`."""
        if self.fade is None:
            return {}
        decay = torch.logspace(math.log10(1 / 16), math.log10(1 / 1024), self.heads * self.times + 2)[1:-1]
        return {"horizon": decay.expm1().log().view(self.heads, self.times)}  # the inverse of softplus

    def context(self) -> Context:
        """How many tokens the memory that it drives compresses."""
        if self.classic.retention is None:
            return Context()
        if self.classic.retention == "head":
            return Context(effective=2.0 ** (4 + self.heads), note="heads from 32 tokens on")
        return Context(effective=1024, note="from 16 tokens on, as they begin")

    def forward(self, x: Tensor) -> Strengths:
        with torch.autocast(x.device.type, enabled=False):  # half precision has no number between 0.996 and 1
            exact = torch.promote_types(x.dtype, torch.float32)
            theta = None if self.push is None else torch.sigmoid(self._said(self.push, x, exact))
            if self.step is None:
                eta = x.new_ones(x.shape[0], self.heads, x.shape[1], dtype=exact)
            else:
                eta = self.reach * torch.sigmoid(self._said(self.step, x, exact))
            return Strengths(eta, self._retention(x, exact), theta)

    def _retention(self, x: Tensor, exact: torch.dtype) -> Tensor | None:
        if self.classic.retention == "head":
            gamma = 1 - 2.0 ** (-5 - torch.arange(self.heads, dtype=exact, device=x.device))
            return gamma[:, None].expand(x.shape[0], -1, x.shape[1])
        if self.fade is None:
            return None
        horizon = (self.horizon[:, None] if self.times > 1 else self.horizon).to(exact)
        return torch.exp(-F.softplus(self._said(self.fade, x, exact) + horizon))

    def _said(self, gate: nn.Module, x: Tensor, exact: torch.dtype) -> Tensor:
        """What a map makes of tokens, heads in front; the map itself in the dtype of its weights."""
        return self._split(gate(x.to(next(gate.parameters()).dtype)).to(exact))

    def _split(self, x: Tensor) -> Tensor:
        """`[B, L, H]` or `[B, L, H d]` with heads in front."""
        return x.mT if x.shape[-1] == self.heads else x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _map(dim: int, heads: int, channels: bool) -> nn.Module:
    return nn.Sequential(Linear(dim, min(RANK, dim)), Linear(min(RANK, dim), dim)) if channels else Linear(dim, heads)
