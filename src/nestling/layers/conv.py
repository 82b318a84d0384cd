"""The short causal convolution in front of a memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nestling.ops.ragged import check_lengths


class CausalConv(nn.Module):
    """Depthwise causal convolution over time, width 4 by default, that starts as the identity.

    `x [B, L, D]`, `tail [B, width - 1, D]`: the tokens before. Written as shifted sums: at this width that beats a
    convolution kernel.
    """

    def __init__(self, dim: int, width: int = 4) -> None:
        super().__init__()
        self.width, self.dim = width, dim
        self.weight = nn.Parameter(self.initial_values()["weight"])

    def initial_values(self) -> dict[str, Tensor]:
        """Fresh parameters: the identity."""
        last = torch.arange(self.width) == self.width - 1
        return {"weight": last[:, None].float().repeat(1, self.dim)}

    def init_tail(self, batch: int) -> Tensor:
        """The tail before the first token: zeros."""
        return self.weight.new_zeros(batch, self.width - 1, self.dim)

    def forward(self, x: Tensor, tail: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`y [B, L, D]` and the new tail: the last real tokens of each row."""
        batch, length, _ = x.shape
        check_lengths(lengths, batch, length)
        padded = torch.cat([tail.to(x.dtype), x], dim=1)
        y = sum(self.weight[i] * padded[:, i : i + length] for i in range(self.width))
        if lengths is None:
            return y, padded[:, length:]
        last = (lengths[:, None] + torch.arange(self.width - 1)).to(x.device)
        return y, padded.gather(1, last[..., None].expand(-1, -1, x.shape[-1]))
