"""What is measured of a stream and of a process."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from nestling.evals.demo.setup import PERIOD
from nestling.evals.resident import peak

BITS = 1 / math.log(2)


def of_stream(losses: Tensor, seconds: float) -> dict[str, Any]:
    """Bits a byte of each chunk and of the last quarter."""
    return {
        "stream": curve(losses),
        "last_quarter": bits(losses[3 * len(losses) // 4 :]),
        "tokens_per_s": len(losses) / seconds,
        "peak_memory_mb": peak_mb(),
    }


def curve(losses: Tensor) -> dict[str, list[Any]]:
    """Bits a byte of every four chunks, and the tokens read by their end."""
    parts = losses.split(PERIOD * 4)
    ends = [min((i + 1) * PERIOD * 4, len(losses)) for i in range(len(parts))]
    return {"tokens": ends, "bpb": [bits(part) for part in parts]}


def bits(losses: Tensor) -> float:
    """Mean bits of losses in nats."""
    return losses.mean().item() * BITS


def peak_mb() -> float:
    """Highest resident memory of this process so far."""
    return peak() / 2**20
