"""What a memory carries from token to token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from nestling.ops import State


@dataclass(frozen=True)
class MemoryState(State):
    """What a memory carries between calls.

    weights:  the running weights, each `[B, H, in, out]`; where the retention has a map, what it maps to the weights.
    start:    the weights the current chunk started from: where its surprises are taken.
    momentum: the gathered writes of each weight, or None without momentum.
    position: `[B]` int64 on the CPU, tokens read.
    refused:  `[B]` int64, pieces whose update was not finite and was not made.
    carried:  what else the rule needs: the last tokens of a window, the inverse of least squares.
    """

    weights: tuple[Tensor, ...]
    start: tuple[Tensor, ...]
    momentum: tuple[Tensor, ...] | None
    position: Tensor
    refused: Tensor
    carried: tuple[Tensor, ...] = ()


class Moved(NamedTuple):
    """The tensors of a `MemoryState` that a token moves."""

    weights: tuple[Tensor, ...]
    momentum: tuple[Tensor, ...] | None = None
    carried: tuple[Tensor, ...] = ()
