"""The forward pass: the local pass at the chunk's start, the scans of both weights, and the reading.

G matrices side by side, n tokens of a block. `a` are hidden units, `z` what they are before the nonlinearity.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nestling.memory.fused.flat import below, flat, last
from nestling.memory.fused.given import Given
from nestling.memory.fused.memo import Memo
from nestling.memory.fused.scan import Gates, Leads, Scan, scan
from nestling.ops.silu import through_silu
from nestling.ops.unit import SMALLEST, scale_to

Outputs = tuple[Tensor | None, Tensor, Tensor]


class Parts(NamedTuple):
    """What is given, as products want it: keys, values, running weights, and weights at which surprises are taken, `[G, .., ..]`.

    few, many: the gates, once where memories share them and their keys, and for every memory. leads: of both.
    """

    k: Tensor
    v: Tensor
    up: Tensor
    down: Tensor
    held_up: Tensor
    held_down: Tensor
    few: Gates
    many: Gates
    leads: Leads

    @classmethod
    def of(cls, given: Given) -> Parts:
        """Without a copy of what every memory has for itself."""
        leads = keys, every = given.keys, given.all
        k, v, up, down = (flat(x, every) for x in (given.k, given.v, given.up, given.down))
        held = up, down
        if given.held_up is not None and given.held_down is not None:
            held = flat(given.held_up, every), flat(given.held_down, every)
        few = Gates.of(given.eta, given.alpha, keys)
        return cls(k, v, up, down, *held, few, few.spread(*leads), leads)


class Pass(NamedTuple):
    """The local pass at the chunk's start, and the scans of both weights; `[G, n, d]` each."""

    z: Tensor
    a: Tensor
    z_target: Tensor
    proposed: Tensor  # the target before it has norm one
    of_target: Tensor  # and what brings it there, `[G, n, 1]`
    error: Tensor  # output - target
    of_error: Tensor  # what brings it within its bound, `[G, n, 1]`
    surprise: Tensor  # the error within its bound
    carried: Tensor  # surprise W_down^T
    found: tuple[Tensor, Tensor]  # what the running weights hold for k, and for its hidden units
    up: Scan
    down: Scan


def forward(given: Given, radius: float, memo: Memo) -> Outputs:
    """What is read, `[.., n, d]` or None, and the weights after the block."""
    parts = Parts.of(given)
    met, end = local(given, parts, radius, memo), parts.many.end
    up = torch.baddbmm(parts.up, parts.k.mT, met.up.write).mul_(end)
    down = torch.baddbmm(parts.down, met.a.mT, met.down.write).mul_(end)
    y = None if given.q is None else read(given.q, parts, met, memo)
    return y, up.view(given.up.shape), down.view(given.down.shape)


def local(given: Given, parts: Parts, radius: float, memo: Memo) -> Pass:
    """What all memories do with the block, but for what is read."""
    k, v, up, down, held_up, held_down, few, many, leads = parts
    z_target = memo.cheap(lambda: torch.bmm(v, held_up))
    proposed = memo.cheap(lambda: torch.baddbmm(v, F.silu(z_target), held_down))
    z = memo(lambda: torch.bmm(k, held_up))
    a = F.silu(z)
    output = memo(lambda: torch.bmm(a, held_down))
    of_target = memo(lambda: scale_to(proposed, SMALLEST, 1.0))
    error = (k + output).addcmul_(proposed, of_target, value=-1)
    of_error = memo(lambda: scale_to(error, radius, radius))
    surprise = error * of_error
    carried = memo.cheap(lambda: torch.bmm(surprise, held_down.mT))
    found = (z, output) if up is held_up else (memo(lambda: torch.bmm(k, up)), memo(lambda: torch.bmm(a, down)))

    def mixture_up() -> Tensor:
        return through_silu(carried, z).addcmul_(found[0], many.before)

    def mixture_down() -> Tensor:
        return torch.addcmul(surprise, found[1], many.before)

    of_up = scan(flat(given.k, given.keys), few, leads, mixture_up, memo)
    of_down = scan(a, many, (given.all, given.all), mixture_down, memo)
    return Pass(z, a, z_target, proposed, of_target, error, of_error, surprise, carried, found, of_up, of_down)


class Reader(NamedTuple):
    """What the memories that are read have of each, `[R, .., ..]`."""

    k: Tensor
    a: Tensor
    up: Tensor
    down: Tensor
    before: Tensor
    write_up: Tensor
    write_down: Tensor

    @classmethod
    def of(cls, count: int, parts: Parts, met: Pass) -> Reader:
        """Of the last `count` memories."""
        each = parts.k, met.a, parts.up, parts.down, parts.many.before, met.up.write, met.down.write
        return cls(*(last(x, parts.leads[1], count) for x in each))


def read(q: Tensor, parts: Parts, met: Pass, memo: Memo) -> Tensor:
    """Before each token, `q + before (a W_down + strictly_lower(a a_k^T) write)`, `a` of the query and `a_k` of the keys."""
    reader, queries = Reader.of(q.shape[1], parts, met), q.flatten(0, -3)
    a = F.silu(asked(queries, reader, memo))
    scores = torch.bmm(a, reader.a.mT).mul_(below(q.shape[-2], q))
    found = torch.bmm(a, reader.down).baddbmm_(scores, reader.write_down)
    return torch.addcmul(queries, found, reader.before).view(q.shape)


def asked(q: Tensor, reader: Reader, memo: Memo) -> Tensor:
    """The query's hidden units before the nonlinearity, `q_t W_up,{t-1}`."""

    def make() -> Tensor:
        scores = torch.bmm(q, reader.k.mT).mul_(below(q.shape[-2], q))
        return torch.bmm(q, reader.up).baddbmm_(scores, reader.write_up).mul_(reader.before)

    return memo(make)
