"""The forward pass: the local pass at the chunk's start, the scans of both weights, and the reading.

G matrices side by side, n tokens of a block. `a` are hidden units, `z` what they are before the nonlinearity.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nestling.memory.fused.flat import below, flat, last, lower, upper
from nestling.memory.fused.given import Given
from nestling.memory.fused.memo import Memo
from nestling.memory.fused.scan import Gates, Leads, Scan, scan
from nestling.ops.silu import slope_of
from nestling.ops.unit import SMALLEST, scale_to

Outputs = tuple[Tensor | None, Tensor, Tensor]


class Parts(NamedTuple):
    """What is given, as products want it: keys over values `[G, 2 n, d]`, running weights, and weights at which surprises are
    taken, `[G, .., ..]`.

    few, many: the gates, once where memories share them and their keys, and for every memory. leads: of both.
    """

    both: Tensor
    up: Tensor
    down: Tensor
    held_up: Tensor
    held_down: Tensor
    few: Gates
    many: Gates
    leads: Leads

    @classmethod
    def of(cls, given: Given, memo: Memo) -> Parts:
        """Without a copy of what every memory has for itself."""
        leads = keys, every = given.keys, given.all
        both = torch.cat([x.expand(*every, *x.shape[-2:]) for x in (given.k, given.v)], -2).flatten(0, -3)
        up, down = flat(given.up, every), flat(given.down, every)
        held = up, down
        if given.held_up is not None and given.held_down is not None:
            held = flat(given.held_up, every), flat(given.held_down, every)
        few = memo.few(Gates, lambda: Gates.of(given.eta, given.alpha, keys))
        return cls(both, up, down, *held, few, memo.few(Gates, lambda: few.spread(*leads)), leads)

    @property
    def k(self) -> Tensor:
        return upper(self.both)


class Pass(NamedTuple):
    """The local pass at the chunk's start, and the scans of both weights; `[G, n, d]`, and of keys over values `[G, 2 n, d]`."""

    gate: Tensor  # sigmoid of what hidden units are before the nonlinearity, keys over values
    a: Tensor  # keys over values
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
    parts = Parts.of(given, memo)
    met, end = local(given, parts, radius, memo), parts.many.end
    up = (parts.up * end).baddbmm_(parts.k.mT, met.up.write * end)
    down = (parts.down * end).baddbmm_(upper(met.a).mT, met.down.write * end)
    y = None if given.q is None else read(given.q, parts, met, memo)
    return y, up.view(given.up.shape), down.view(given.down.shape)


def local(given: Given, parts: Parts, radius: float, memo: Memo) -> Pass:
    """What all memories do with the block, but for what is read."""
    both, up, down, held_up, held_down, few, many, leads = parts
    z = memo(lambda: torch.bmm(both, held_up))
    gate = memo.cheap(lambda: torch.sigmoid(z))
    a = z * gate
    said = memo.cheap(lambda: torch.bmm(a, held_down))
    k, output, proposed = parts.k, upper(said), lower(both) + lower(said)
    of_target = memo(lambda: scale_to(proposed, SMALLEST, 1.0))
    error = (k + output).addcmul_(proposed, of_target, value=-1)
    of_error = memo(lambda: scale_to(error, radius, radius))
    surprise = error * of_error
    carried = memo.cheap(lambda: torch.bmm(surprise, held_down.mT))
    found = upper(z), output
    if up is not held_up:
        found = memo(lambda: torch.bmm(k, up)), memo(lambda: torch.bmm(upper(a), down))

    def mixture_up() -> Tensor:
        return slope_of(upper(gate), upper(a)).mul_(carried).addcmul_(found[0], many.before)

    def mixture_down() -> Tensor:
        return torch.addcmul(surprise, found[1], many.before)

    of_up = scan(flat(given.k, given.keys), few, leads, mixture_up, memo)
    of_down = scan(upper(a), many, (given.all, given.all), mixture_down, memo)
    return Pass(gate, a, proposed, of_target, error, of_error, surprise, carried, found, of_up, of_down)


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
    def of(cls, count: int, parts: Parts, met: Pass, memo: Memo) -> Reader:
        """Of the last `count` memories."""
        each = parts.k, upper(met.a), parts.up, parts.down, parts.many.before, met.up.write, met.down.write
        return memo.few(cls, lambda: cls(*(last(x, parts.leads[1], count) for x in each)), cheap=True)


class Asked(NamedTuple):
    """What queries find in the first weights, and how they and their hidden units meet those of keys, strictly lower `[R, n, n]`."""

    z: Tensor  # hidden units before the nonlinearity, `q_t W_up,{t-1}`
    gate: Tensor  # sigmoid(z)
    a: Tensor
    by_key: Tensor
    by_unit: Tensor


def read(q: Tensor, parts: Parts, met: Pass, memo: Memo) -> Tensor:
    """Before each token, `q + before (a W_down + strictly_lower(a a_k^T) write)`, `a` of the query and `a_k` of the keys."""
    reader, queries = Reader.of(q.shape[1], parts, met, memo), q.flatten(0, -3)
    met_by = ask(queries, reader, memo)
    found = torch.bmm(met_by.a, reader.down).baddbmm_(met_by.by_unit, reader.write_down)
    return torch.addcmul(queries, found, reader.before).view(q.shape)


def ask(q: Tensor, reader: Reader, memo: Memo) -> Asked:
    """What is found before the second weights are read."""
    mask = below(q.shape[-2], q)
    by_key = memo.cheap(lambda: torch.bmm(q, reader.k.mT).mul_(mask))
    z = memo(lambda: torch.bmm(q, reader.up).baddbmm_(by_key, reader.write_up).mul_(reader.before))
    gate = memo.cheap(lambda: torch.sigmoid(z))
    a = z * gate
    return Asked(z, gate, a, by_key, memo.cheap(lambda: torch.bmm(a, reader.a.mT).mul_(mask)))
