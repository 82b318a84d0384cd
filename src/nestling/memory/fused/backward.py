"""The gradient of the forward pass, written out. `at_x` is the gradient at x."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nestling.memory.fused.flat import below, dots, flat, shared, summed, upper
from nestling.memory.fused.forward import Outputs, Parts, Pass, Reader, ask, local
from nestling.memory.fused.given import Given
from nestling.memory.fused.memo import Memo
from nestling.memory.fused.scan import AtScan, scan_backward
from nestling.ops.silu import bend, slope_of
from nestling.ops.unit import SMALLEST, scaled_backward


class Totals(NamedTuple):
    """Gradients that several parts add to, in place: `[G, .., ..]`. before: at the logarithm, `[G, n, 1]`. held_up, held_down are up
    and down where the block begins a chunk."""

    k: Tensor
    a: Tensor
    up: Tensor
    down: Tensor
    held_up: Tensor
    held_down: Tensor
    write_up: Tensor
    write_down: Tensor
    before: Tensor


def backward(
    given: Given, radius: float, outputs: Outputs, memo: Memo, at_y: Tensor | None, at_after: tuple[Tensor, Tensor]
) -> list[Tensor | None]:
    """The gradients at `given`, in its order."""
    parts = Parts.of(given, memo)
    met = local(given, parts, radius, memo)
    total = _ending(parts, met, at_after)
    at_q = None
    if given.q is not None and at_y is not None and outputs[0] is not None:
        at_q = _reading(given.q, parts, met, total, memo, at_y, outputs[0])
    by_up, by_down, at_both = _writing(parts, met, total, radius)
    few, (keys, every) = parts.few, parts.leads
    at_before = shared(total.before.add_(by_down.before), every, keys).add_(by_up.before)
    later = at_before.flip(-2).cumsum(-2).flip(-2) - at_before  # what decays a start decays at every token before
    ended = [flat(at, every) * flat(w, every) for at, w in zip(at_after, outputs[1:], strict=True)]
    at_end = ended[0].sum((-2, -1), True) + ended[1].sum((-2, -1), True)
    at_log = later + shared(at_end, every, keys) + by_up.log + shared(by_down.log, every, keys)
    at_k = summed(torch.bmm(by_up.x, met.up.x), keys, given.k.shape)
    fresh = given.held_up is None
    at_keys, at_values = at_both.unflatten(0, every).chunk(2, dim=-2)
    return [
        at_q,
        at_keys.sum_to_size(given.k.shape) + at_k,
        at_values.sum_to_size(given.v.shape),
        _of_gate(by_up.eta + shared(by_down.eta, every, keys), keys, given.eta),
        _of_gate(at_log / few.alpha, keys, given.alpha),
        total.up.view(given.up.shape),
        total.down.view(given.down.shape),
        None if fresh else total.held_up.view(given.up.shape),
        None if fresh else total.held_down.view(given.down.shape),
    ]


def _of_gate(at: Tensor, keys: Sequence[int], gate: Tensor) -> Tensor:
    return summed(at, keys, (*gate.shape, 1)).squeeze(-1)


def _ending(parts: Parts, met: Pass, at_after: tuple[Tensor, Tensor]) -> Totals:
    """Through the weights after the block, `end (W + x^T write)`."""
    end, fresh = parts.many.end, parts.up is parts.held_up
    at_up, at_down = (flat(at, parts.leads[1]) * end for at in at_after)
    return Totals(
        k=torch.bmm(met.up.write, at_up.mT),
        a=torch.bmm(met.down.write, at_down.mT),
        up=at_up,
        down=at_down,
        held_up=at_up if fresh else torch.zeros_like(at_up),
        held_down=at_down if fresh else torch.zeros_like(at_down),
        write_up=torch.bmm(parts.k, at_up),
        write_down=torch.bmm(upper(met.a), at_down),
        before=torch.zeros_like(parts.many.before),
    )


def _reading(q: Tensor, parts: Parts, met: Pass, total: Totals, memo: Memo, at_y: Tensor, y: Tensor) -> Tensor:
    """Through `y = q + before (a W_down + strictly_lower(a a_k^T) write)` and the hidden units `a` of q; the gradient at q."""
    count, every = q.shape[1], parts.leads[1]
    reader, like = Reader.of(count, parts, met, memo), q.shape
    q, at_y, y = (x.flatten(0, -3) for x in (q, at_y, y))
    z, gate, a, by_key, by_unit = ask(q, reader, memo)
    mask = below(q.shape[-2], q)
    at_found = reader.before * at_y
    at_scores = torch.bmm(at_found, reader.write_down.mT).mul_(mask)
    at_z = torch.bmm(at_found, reader.down.mT).baddbmm_(at_scores, reader.a).mul_(slope_of(gate, a))
    at_asked = reader.before * at_z
    at_gram = torch.bmm(at_asked, reader.write_up.mT).mul_(mask)
    parts_of = {
        "k": torch.bmm(at_gram.mT, q),
        "a": torch.bmm(at_scores.mT, a),
        "up": torch.bmm(q.mT, at_asked),
        "down": torch.bmm(a.mT, at_found),
        "write_up": torch.bmm(by_key.mT, at_asked),
        "write_down": torch.bmm(by_unit.mT, at_found),
        "before": dots(at_y, y - q) + dots(at_z, z),
    }
    for name, part in parts_of.items():
        of = getattr(total, name).unflatten(0, every)[:, -count:]
        of += part.view(of.shape)
    return torch.baddbmm(at_y, at_asked, reader.up.mT).baddbmm_(at_gram, reader.k).view(like)


def _writing(parts: Parts, met: Pass, total: Totals, radius: float) -> tuple[AtScan, AtScan, Tensor]:
    """Through both scans, the local pass and the target; the gradients of the scans, and at keys over values."""
    both, up, down, held_up, held_down, _, many, leads = parts
    k, a, gate, slopes = parts.k, upper(met.a), upper(met.gate), slope_of(met.gate, met.a)
    slope = upper(slopes)
    by_up = scan_backward(met.up, total.write_up, met.carried * slope, met.found[0], leads)
    by_down = scan_backward(met.down, total.write_down, met.surprise, met.found[1], (leads[1], leads[1]))
    at_a = total.a.baddbmm_(by_down.x, a)

    # surprise W_down^T silu'(z), and the error within its bound
    at_carried = by_up.mixture * slope
    at_surprise = torch.baddbmm(by_down.mixture, at_carried, held_down)
    total.held_down.baddbmm_(at_carried.mT, met.surprise)
    at_error = scaled_backward(met.error, met.of_error, at_surprise, radius, radius)

    # what the running weights hold: at a chunk's start, the output and the hidden units before the nonlinearity
    at_output, bent = at_error, bend(gate, slope).mul_(met.carried)
    if up is held_up:
        at_output = torch.addcmul(at_error, by_down.mixture, many.before)
        bent.add_(many.before)
    else:
        at_found_up, at_found_down = by_up.mixture * many.before, by_down.mixture * many.before
        total.k.baddbmm_(at_found_up, up.mT)
        total.up.baddbmm_(k.mT, at_found_up)
        at_a.baddbmm_(at_found_down, down.mT)
        total.down.baddbmm_(a.mT, at_found_down)

    # k + silu(k W_up) W_down, over the target, unit(v + silu(v W_up) W_down)
    at_proposed = scaled_backward(met.proposed, met.of_target, -at_error, SMALLEST, 1.0)
    at_said = torch.cat([at_output, at_proposed], 1)
    total.held_down.baddbmm_(met.a.mT, at_said)
    at_z = torch.bmm(at_said, held_down.mT)
    upper(at_z).add_(at_a)
    at_z.mul_(slopes)
    upper(at_z).addcmul_(by_up.mixture, bent)
    total.held_up.baddbmm_(both.mT, at_z)
    torch.add(total.k, at_error, out=upper(at_said))  # and the target's own, below
    return by_up, by_down, at_said.baddbmm_(at_z, held_up.mT)
