"""The non-parametric memory: softmax attention, which keeps what it has seen and compresses nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestling.memory.network import at_least_one
from nestling.memory.part import Described, Part, attending
from nestling.ops import State
from nestling.ops.ragged import check_lengths


@dataclass(frozen=True)
class AttentionState(State):
    """The tokens that can still be seen.

    k, v:      `[B, T, H, d]`.
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


class SoftmaxAttention(nn.Module, Described):
    """Nadaraya-Watson regression over the pairs seen, the token's own included: `y, state = memory(q, k, v, state=state)`.

        y_t = sum_s w_ts v_s,  w_ts = softmax_s(q_t . k_s / sqrt(dk))       = argmin_v sum_s exp(q_t . k_s / sqrt(dk)) |v - v_s|^2

    It has no parameters, learns at no rate and forgets nothing, but what leaves the window: its frequency is infinite
    (arXiv 2512.24695, section 3).

    Args:
        dim_key, dim_value: widths. heads: a number, or a shape.
        window: how many tokens a token sees, itself included; None sees all. With a window the state is bounded.
    """

    nothing: Tensor

    def __init__(self, dim_key: int, dim_value: int, heads: int | Sequence[int] = 1, window: int | None = None) -> None:
        super().__init__()
        at_least_one(dim_key=dim_key, dim_value=dim_value)
        if window is not None and window < 1:
            raise ValueError(f"window={window} must be at least 1, or None to see everything")
        self.dim_key, self.dim_value, self.window = dim_key, dim_value, window
        self.heads = heads if isinstance(heads, int) else torch.Size(heads).numel()
        self.register_buffer("nothing", torch.zeros(0), persistent=False)  # knows the device and dtype

    def parts(self) -> tuple[Part, ...]:
        """The pairs that can be seen."""
        if self.window is None:
            return (attending(),)
        widths = (self.heads * d for d in (self.dim_key, self.dim_value))
        return (attending(self.window, tuple(self.nothing.new_empty(self.window, w, device="meta") for w in widths)),)

    def init_state(self, batch_size: int) -> AttentionState:
        """No token read yet."""
        k, v = (self.nothing.new_zeros(batch_size, 0, self.heads, d) for d in (self.dim_key, self.dim_value))
        when = torch.zeros(batch_size, 0, dtype=torch.int64, device=self.nothing.device)
        return AttentionState(k, v, when, torch.zeros(batch_size, dtype=torch.int64))

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        eta: None = None,
        alpha: None = None,
        state: AttentionState | None = None,
        theta: None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, AttentionState]:
        """Attend to what the state holds and to the tokens before, `q, k [B, H, L, dk]`, `v [B, H, L, dv]`.

        lengths: `[B]` int64 on the CPU, the real tokens of each row (None: all). Returns `y [B, H, L, dv]` and the state.

        Raises:
            ValueError: a rate, retention or momentum, which it does not have; tokens that do not fit.
        """
        for name, gate in (("eta", eta), ("alpha", alpha), ("theta", theta)):
            if gate is not None:
                raise ValueError(f"softmax attention has no {name}: it keeps every pair as it is; leave it out")
        self._check(q, k, v)
        batch, length = k.shape[0], k.shape[-2]
        check_lengths(lengths, batch, length)
        state = state or self.init_state(batch)
        columns = torch.arange(length)
        now = (state.position[:, None] + columns).to(k.device)
        real = now if lengths is None else torch.where((columns < lengths[:, None]).to(k.device), now, -1)

        k, v = k.transpose(1, 2), v.transpose(1, 2)
        fresh = state.when.shape[1] == 0
        keys = k if fresh else torch.cat([state.k.to(k.dtype), k], dim=1)
        values = v if fresh else torch.cat([state.v.to(v.dtype), v], dim=1)
        when = real if fresh else torch.cat([state.when, real], dim=1)
        simple = fresh and lengths is None and (self.window is None or length <= self.window)
        y = F.scaled_dot_product_attention(
            q, keys.transpose(1, 2), values.transpose(1, 2),
            attn_mask=None if simple else self._visible(now, when), is_causal=simple,
        )  # fmt: skip
        position = state.position + (length if lengths is None else lengths)
        return y, self._trim(AttentionState(keys, values, when, position))

    def step(
        self, q: Tensor, k: Tensor, v: Tensor, state: AttentionState | None = None
    ) -> tuple[Tensor, AttentionState]:
        """One token: as `forward` without the dimension L."""
        y, after = self(*(x.unsqueeze(-2) for x in (q, k, v)), state=state)
        return y.squeeze(-2), after

    def extra_repr(self) -> str:
        return f"{self.dim_key}, {self.dim_value}, heads={self.heads}, window={self.window}"

    def _check(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        lead = k.shape[:-1] if k.dim() == 4 else None
        if lead is None or not q.shape[:-1] == v.shape[:-1] == lead or lead[1] != self.heads or not lead[2]:
            found = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
            raise ValueError(f"expected q, k, v [B, {self.heads}, L, d] of one B and L >= 1; got {found}")
        for name, x, width in (("q", q, self.dim_key), ("k", k, self.dim_key), ("v", v, self.dim_value)):
            if x.shape[-1] != width:
                raise ValueError(f"{name} is {x.shape[-1]} wide, {tuple(x.shape)}; SoftmaxAttention takes {width}")

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
