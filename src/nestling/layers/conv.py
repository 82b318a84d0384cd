"""The short causal convolution in front of a memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nestling.memory.part import PROJECTIONS, Context, Described, Part
from nestling.ops.ragged import check_lengths


class CausalConv(nn.Module, Described):
    """Depthwise causal convolution over time, several filters for each channel.

    `x [B, L, D] -> y [B, filters, L, D]`; `tail [B, width - 1, D]`: the tokens before. Written as shifted sums: at this
    width that beats a convolution kernel.
    """

    weight: Tensor

    def __init__(self, dim: int, filters: int = 1, width: int = 4) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width={width} must be at least 1: the tokens that the convolution sees")
        self.shape = (width, filters, dim)
        self.weight = nn.Parameter(self.initial_values()["weight"])

    def initial_values(self) -> dict[str, Tensor]:
        """Fresh parameters: every filter looks at other tokens of the past."""
        return {"weight": torch.randn(self.shape) * self.shape[0] ** -0.5}

    def parts(self) -> tuple[Part, ...]:
        """The tokens that it keeps, as they are; none where it mixes none."""
        width, knowledge = self.shape[0], (("direct non-parametric", PROJECTIONS),)
        tail = (self.weight.new_empty(1, width - 1, self.shape[-1], device="meta"),)
        part = Part("short convolution", "none", f"keeps the last {width} tokens", 0, Context(effective=width))
        return (replace(part, knowledge=knowledge, state=tail),) if width > 1 else ()

    def init_tail(self, batch: int) -> Tensor:
        """The tail before the first token: zeros."""
        width, _, dim = self.shape
        return self.weight.new_zeros(batch, width - 1, dim)

    def forward(
        self, x: Tensor, tail: Tensor, lengths: Tensor | None = None, filters: slice = slice(None)
    ) -> tuple[Tensor, Tensor]:
        """`y [B, filters, L, D]` of these filters and the new tail: the last real tokens of each row."""
        batch, length, _ = x.shape
        check_lengths(lengths, batch, length)
        width = self.shape[0]
        padded = torch.cat([tail.to(x.dtype), x], dim=1)
        y = _ShiftedSums.apply(padded, self.weight[:, filters])
        if lengths is None:
            return y, padded[:, length:]
        last = (lengths[:, None] + torch.arange(width - 1)).to(x.device)
        return y, padded.gather(1, last[..., None].expand(-1, -1, x.shape[-1]))


class _ShiftedSums(torch.autograd.Function):
    """`y[b, f, t] = sum_i weight[i, f] padded[b, t + i]`, `[B, filters, L, D]`, a product and a sum in each pass over memory."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(padded, weight)
        first, *others = _shifted(padded, weight.shape[0])
        y = weight[0, :, None] * first[:, None]
        for i, x in enumerate(others, 1):
            y.addcmul_(weight[i, :, None], x[:, None])
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (at_y,), (padded, weight) = gradients, ctx.saved_tensors
        at_padded, at_weight = torch.zeros_like(padded, dtype=at_y.dtype), []
        at_filters, filters = at_y.unbind(1), weight.unbind(1)
        for i, x in enumerate(_shifted(padded, weight.shape[0])):
            at_x = at_padded[:, i : i + x.shape[1]]
            for at_filter, of_filter in zip(at_filters, filters, strict=True):
                at_x.addcmul_(at_filter, of_filter[i])
            at_weight.append((at_y * x[:, None]).sum(2).sum(0))  # two sums: one over both is ten times slower
        return at_padded, torch.stack(at_weight)


def _shifted(padded: Tensor, width: int) -> list[Tensor]:
    length = padded.shape[1] - width + 1
    return [padded[:, i : i + length] for i in range(width)]
