"""Pairs of keys and values for a memory to hold, and what the theory says of unrelated ones.

d is the width of keys and of values, n the number of pairs. Keys have norm 1, values a mean square norm of 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Draw = Callable[[Tensor, torch.Generator], Tensor]
UNSEEN = 256  # further keys of a map


class Pairs(NamedTuple):
    """`[n, d]` each, in float64; of `UNSEEN` keys, or none without a map, that are never stored."""

    keys: Tensor
    values: Tensor
    unseen_keys: Tensor
    unseen_values: Tensor


@dataclass(frozen=True)
class Task:
    """values: of keys `[n, d]`, with a generator for what the task itself is made of. counts: numbers of pairs, in units of d.

    shared: how much of one direction all keys have in common, beside a random one of length 1.
    map: whether values are a function of the keys, which other keys have, too.
    draws: of the task in a seed, whose errors are averaged: more of few pairs.
    """

    title: str
    values: Draw
    counts: tuple[float, ...]
    shared: float = 0.0
    map: bool = True
    draws: int = 1

    def numbers(self, dim: int) -> list[int]:
        """Of pairs."""
        return [round(count * dim) for count in self.counts]

    def pairs(self, dim: int, draw: int) -> Pairs:
        """They depend on the draw alone."""
        generator = torch.Generator().manual_seed(draw)
        stored, unseen = self.numbers(dim)[-1], UNSEEN if self.map else 0
        common = F.normalize(_normal(generator, dim), dim=-1)
        keys = F.normalize(_normal(generator, stored + unseen, dim), dim=-1)
        keys = F.normalize(keys + self.shared * common, dim=-1)
        values = self.values(keys, generator)
        values = values / values.square().sum(-1).mean().sqrt()
        return Pairs(keys[:stored], values[:stored], keys[stored:], values[stored:])


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _unrelated(keys: Tensor, generator: torch.Generator) -> Tensor:
    return F.normalize(_normal(generator, *keys.shape), dim=-1)


def _hidden(units: int, function: Callable[[Tensor], Tensor]) -> Draw:
    """A teacher with one hidden layer, of orthogonal directions in which keys have variance 1."""

    def values(keys: Tensor, generator: torch.Generator) -> Tensor:
        dim = keys.shape[-1]
        directions = torch.linalg.qr(_normal(generator, dim, units))[0] * dim**0.5
        return function(keys @ directions) @ _normal(generator, units, dim)

    return values


def _relu(z: Tensor) -> Tensor:
    """Less its mean over normal z: no constant that a map without a bias would lack."""
    return F.relu(z) - (2 * torch.pi) ** -0.5


FEW, MANY = (1 / 6, 1 / 4, 1 / 2, 3 / 4, 1, 3 / 2, 2, 4), (1 / 2, 1, 2, 4, 8, 16, 32, 64)

TASKS = {
    "unrelated": Task("unrelated pairs", _unrelated, FEW, map=False, draws=4),
    "alike": Task(
        "unrelated values of keys that are alike (mean cosine 1/2)", _unrelated, FEW, shared=1.0, map=False, draws=4
    ),
    "network": Task("a random network of 4 hidden units", _hidden(4, _relu), MANY),
    "quadratic": Task("a quadratic form of rank 2", _hidden(2, lambda z: z.square() - 1), MANY),
}


def hebbian(pairs: int, dim: int, rate: float) -> float:
    """The mean recall error of `pairs` unrelated pairs written with the dot product, exactly.

    What is read of a pair is `rate` times its value and, from each other pair, a value at right angles to it on average whose
    weight has variance `rate^2 / d`.
    """
    return (1 - rate) ** 2 + rate**2 * (pairs - 1) / dim


def delta(pairs: int, dim: int, rate: float) -> float:
    """The same of one pass of the delta rule, exactly.

    Of a pair that was written: `own = E|k M|^2` and `along = E[k M v]`; of the memory, `size = E|M|_F^2`. A write with a key k'
    of its own, `M <- M + rate k'^T (v' - k' M)`, moves all three in closed form, as `E[k'^T k'] = I / d` and the
    mean of four factors of a random unit vector is `(ab + 2 cos^2) / (d (d + 2))`.
    """
    size, own, along = 0.0, torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    for _ in range(pairs):
        own = own * (1 - 2 * rate / dim) + rate**2 * (1 + (size + 2 * own) / (dim + 2)) / dim
        along = along * (1 - rate / dim)
        own = torch.cat([own, own.new_tensor([(1 - rate) ** 2 * size / dim + rate**2])])
        along = torch.cat([along, along.new_tensor([rate])])
        size += -2 * rate * size / dim + rate**2 * (1 + size / dim)
    return float((own - 2 * along + 1).mean())


def least_squares(pairs: int, dim: int) -> float:
    """The same of the best matrix there is: all of `pairs <= dim`, and of more the share that is beyond `dim` directions."""
    return max(0.0, 1 - dim / pairs)
