"""Low-rank differences: `D = B A`, where `A` is fixed and known from the weight's name, and a level moves only `B`.

`A [r, in]` has the entries `+-1/sqrt(in)`, the signs being the bits of SHAKE-256 of the weight's name. So it is stored
nowhere, it is the same on every machine and after every restart, and all users share it: one user costs `B`. To a level
`B [out, r]` is a weight like any other, whose input is `A x` and whose gradient is `G A^T`: every rule works as it does on a
full weight, and retention over what was seen (`RetainSeen`) protects the directions of `A x`, in a matrix `[r, r]`. `B` starts at
zero, so `D` does. The price: an update is the full one, projected on `r` directions of the input.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from nestling.levels.level import Level


def factor(name: str, rank: int, weight: Tensor) -> Tensor:
    """`A [rank, in]` of a weight `[.., out, in]`, in float32 or better; of a smaller rank it is the first rows of this one."""
    return _signs(name, rank, weight.shape[-1], torch.promote_types(weight.dtype, torch.float32), weight.device)


@lru_cache(maxsize=4096)
def _signs(name: str, rank: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    size = -(-width // 8)  # bytes a row, so that a row does not depend on how many there are
    with torch.inference_mode(False):
        raw = torch.frombuffer(bytearray(hashlib.shake_256(name.encode()).digest(rank * size)), dtype=torch.uint8)
        bits = (raw.view(rank, size, 1) >> torch.arange(8, dtype=torch.uint8)) & 1
        signs = 1 - 2 * bits.flatten(1)[:, :width].to(dtype)
        return (signs * width**-0.5).to(device)


def expanded(name: str, value: Tensor, weight: Tensor) -> Tensor:
    """`D [B, out, in]` from what a level moves: itself, or `B [B, out, r]`."""
    return value if value.shape[-1] == weight.shape[-1] else value @ factor(name, value.shape[-1], weight)


def projected(name: str, gradient: Tensor, rank: int) -> Tensor:
    """The gradient at what a level moves, `[B, out, r]`, from that at the weight, `[B, out, in]`."""
    if rank == gradient.shape[-1]:
        return gradient
    return gradient @ factor(name, rank, gradient).to(gradient.dtype).mT


def asked(levels: list[Level], moves: list[list[str]], weights: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """By name the weights whose inputs some level's rule asks for, with the `A` of the inputs `A x` it wants, or None for `x`.

    Raises:
        ValueError: a rank that is no less than a weight's width; or one weight's inputs asked for with a rank and without.
    """
    ranks: dict[str, list[int]] = {}
    for level, names in zip(levels, moves, strict=True):
        for name in names:
            width = weights[name].shape[-1]
            if level.rank is not None and level.rank >= width:
                raise ValueError(
                    f"rank={level.rank} saves nothing on {name}, whose width is {width}; give a smaller one"
                )
            if level.sees:
                ranks.setdefault(name, []).append(level.rank or width)
    return {name: _largest(name, found, weights[name]) for name, found in sorted(ranks.items())}


def blocks(levels: list[Level], moves: list[list[str]]) -> dict[str, int | None]:
    """By name the weights whose inputs some level's rule asks for, with the width of the blocks in which their moments are kept.

    Raises:
        ValueError: the rules of two levels want one weight's in blocks of two widths.
    """
    found: dict[str, int | None] = {}
    for level, names in zip(levels, moves, strict=True):
        for name in names if level.sees else ():
            if found.setdefault(name, level.block) != level.block:
                raise ValueError(
                    f"the rules of two levels gather the moments of {name} with block={found[name]} and block={level.block}; give "
                    "both the same, which RetainPredictions alone can have"
                )
    return found


def _largest(name: str, ranks: list[int], weight: Tensor) -> Tensor | None:
    width = weight.shape[-1]
    if width not in ranks:
        return factor(name, max(ranks), weight)
    if min(ranks) < width:
        raise ValueError(
            f"the rules of two levels ask for the inputs of {name}, one with rank={min(ranks)} and one without; give both a rank, "
            "or neither"
        )
    return None
