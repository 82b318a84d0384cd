"""Rows that are strangers: each row of a batch has its own position, length and phase of a chunk.

Rows are left-aligned: the first `lengths[b]` tokens of row b are real, the rest is padding. A call is cut into pieces
such that in a piece no row crosses one of its own boundaries, which are at its absolute positions 0, C, 2C, ...
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import overload

import torch
from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """A stretch of every row: `count[b]` tokens of row b from its token `start[b]` on. Counters live on the CPU.

    uniform: every row has the same stretch, so that it is a slice.
    """

    start: Tensor
    count: Tensor
    uniform: bool

    @cached_property
    def width(self) -> int:
        """Columns of the piece: the longest row's count; one of padding where no row has anything."""
        return max(1, int(self.count.max()))

    def mask(self, device: torch.device) -> Tensor | None:
        """`[B, width]`, True where a token is real; None when all are."""
        if self.uniform or bool((self.count == self.width).all()):
            return None
        return real_tokens(self.count, self.width, device)

    def take(self, x: Tensor, dim: int = 1) -> Tensor:
        """The piece of `x`, whose tokens are along `dim`. Padding repeats a token of the same row."""
        if self.uniform:
            return x.narrow(dim, int(self.start[0]), self.width)
        index = self._columns(x.shape[dim], x.device).view(-1, *[1] * (dim - 1), self.width, *[1] * (x.dim() - dim - 1))
        shape = list(x.shape)
        shape[dim] = self.width
        return x.gather(dim, index.expand(shape))

    def _columns(self, length: int, device: torch.device) -> Tensor:
        return (self.start[:, None] + torch.arange(self.width)).clamp_max(length - 1).to(device)


def pieces(position: Tensor, lengths: Tensor | None, length: int, period: int) -> list[Piece]:
    """Cut `length` columns, of which row b has `lengths[b]` real ones (None: all), at every row's own boundaries.

    position: `[B]` int64 on the CPU, how many tokens each row has read before.
    """
    # numbers and not tensors: a call of torch takes as long as a hundred of these sums
    phases = [p % period for p in position.tolist()]
    full = [length] * len(phases) if lengths is None else lengths.tolist()
    ends = [phase + count for phase, count in zip(phases, full, strict=True)]
    uniform = len(set(phases)) == 1 and set(full) == {length}
    if not uniform and max(ends) <= period:
        return [Piece(torch.zeros_like(position), torch.tensor(full), False)]
    cut = []
    for boundary in range(period, max(ends) + period, period):
        begun = [min(max(boundary - period - phase, 0), count) for phase, count in zip(phases, full, strict=True)]
        ended = [min(boundary - phase, count) for phase, count in zip(phases, full, strict=True)]
        cut.append(Piece(start := torch.tensor(begun), torch.tensor(ended) - start, uniform))
    return cut


@overload
def split(x: Tensor, cut: list[Piece], dim: int = 1) -> list[Tensor]: ...
@overload
def split(x: None, cut: list[Piece], dim: int = 1) -> list[None]: ...
def split(x: Tensor | None, cut: list[Piece], dim: int = 1) -> list[Tensor] | list[None]:
    """Every piece of `x` (None for each if x is None). One split, whose backward pass is one concatenation."""
    if x is None:
        return [None] * len(cut)
    if cut[0].uniform and len(cut) == 1:
        return [x]
    if cut[0].uniform:
        return list(x.split([piece.width for piece in cut], dim))
    return [piece.take(x, dim) for piece in cut]


def join(parts: list[Tensor], cut: list[Piece], length: int, dim: int = 1) -> Tensor:
    """Put the pieces' outputs back in their places; padding reads zero."""
    if cut[0].uniform:
        return torch.cat(parts, dim) if len(parts) > 1 else parts[0]
    shape = list(parts[0].shape)
    shape[dim] = length + 1  # one more column takes what the padding wrote
    whole = parts[0].new_zeros(shape)
    for part, piece in zip(parts, cut, strict=True):
        columns = torch.where(
            torch.arange(piece.width) < piece.count[:, None], piece.start[:, None] + torch.arange(piece.width), length
        ).to(part.device)
        index = columns.view(-1, *[1] * (dim - 1), piece.width, *[1] * (part.dim() - dim - 1)).expand_as(part)
        whole = whole.scatter(dim, index, part)
    return whole.narrow(dim, 0, length)


def real_tokens(lengths: Tensor, length: int, device: torch.device | str = "cpu") -> Tensor:
    """`[B, length]` bool, True at the first `lengths[b]` tokens of row b."""
    return (torch.arange(length) < lengths[:, None]).to(device)


def check_lengths(lengths: Tensor | None, batch: int, length: int) -> None:
    """Raise unless `lengths` is `[B]` int64 on the CPU, between 0 and `length`."""
    if lengths is None:
        return
    if lengths.dtype != torch.int64 or lengths.shape != (batch,) or lengths.device.type != "cpu":
        found = f"{tuple(lengths.shape)} {lengths.dtype} on {lengths.device}"
        raise ValueError(f"lengths is {found}; expected [B] = {(batch,)} int64 on the CPU: the real tokens of each row")
    if bool((lengths < 0).any()) or bool((lengths > length).any()):
        raise ValueError(f"lengths must be between 0 and {length}, the tokens given; got {lengths.tolist()}")
