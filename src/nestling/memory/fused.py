"""The memory that self-modifying Titans are made of, as one function with a backward pass of its own.

The same numbers as the general path of `AssociativeMemory` for `MLP`, `Huber`, `SelfGenerated` and `DeltaGradientDescent()`, in a
third of its operations. Two things make the difference. Retention of at least 1/2 lets the scan run on the weights divided
by what is left of the block's start, `A_t = prod_{1..t} alpha`, which decay no more (no matrix of decays is formed):

    W_t / A_t = W_{t-1} / A_{t-1} - e_t x_t^T (x_t W_{t-1} / A_{t-1} + delta_t / A_{t-1})          e_t = beta_t / alpha_t

and the gradient is written out by hand.

`..` rows and heads, n tokens of a block, d width, h hidden width. Names: `at_x` is the gradient at x.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nestling.memory.network import MLP
from nestling.memory.objective import Huber
from nestling.memory.retention import ToZero
from nestling.memory.rule import DeltaGradientDescent
from nestling.memory.target import SelfGenerated
from nestling.ops.silu import bend, silu_and_slope
from nestling.ops.triangular import strictly_lower, unit_lower_inverse
from nestling.ops.unit import SMALLEST, bounded, scaled_backward, unit

LONGEST = 64  # tokens of a block: with retention 1/2 what is left of its start is 5e-20
LEAST = 0.5  # retention


def fits(network: Any, objective: Any, rule: Any, target: Any, retention: Any, retention_floor: float) -> bool:
    """Whether these parts make up the memory of this file."""
    paper_s = type(network) is MLP and (network.depth, network.residual, network.gated) == (2, True, False)
    parts = paper_s, type(objective) is Huber, type(target) is SelfGenerated  # a subclass may mean another
    return all(parts) and rule == DeltaGradientDescent() and retention == ToZero() and retention_floor >= LEAST


class Given(NamedTuple):
    """q, k, v: `[.., n, d]`; q is None where nothing is read, and may be of the last memories (dimension 1) alone.
    eta, alpha: `[.., n]`. up, down: the running weights `[.., d, h]` and `[.., h, d]`. held_up, held_down: those that the
    chunk started from, None where they are the running ones."""

    q: Tensor | None
    k: Tensor
    v: Tensor
    eta: Tensor
    alpha: Tensor
    up: Tensor
    down: Tensor
    held_up: Tensor | None
    held_down: Tensor | None

    def held(self) -> tuple[Tensor, Tensor]:
        """The weights at which surprises are taken."""
        if self.held_up is None or self.held_down is None:
            return self.up, self.down
        return self.held_up, self.held_down


class Scan(NamedTuple):
    """One weight's scan over its inputs `x`, with what it held for them, `found = x W_0`, and the surprise there."""

    x: Tensor
    surprise: Tensor
    found: Tensor
    damped: Tensor  # 1 / (1 + eta |x|^2), [.., n, 1]
    erasure: Tensor  # eta damped / alpha
    inverse: Tensor  # of I + strictly_lower(erasure x x^T)
    write: Tensor  # inverse (-erasure (found + surprise / before))


class Pass(NamedTuple):
    """The local pass at the chunk's start, and the scans of both weights."""

    z_target: Tensor  # hidden units of the target before the nonlinearity
    proposed: Tensor  # the target before it has norm one
    z: Tensor  # the key's hidden units before the nonlinearity
    slope: Tensor  # silu'(z)
    error: Tensor  # output - target
    carried: Tensor  # surprise W_down^T
    before: Tensor  # A_{t-1}, [.., n, 1]
    up: Scan
    down: Scan


class Memo:
    """Remembers what is dear, in the order in which it is made, so that a second run need not make it again."""

    def __init__(self, made: tuple[Tensor, ...] | None = None) -> None:
        self.made: list[Tensor] = []
        self.left = None if made is None else iter(made)

    def __call__(self, make: Callable[[], Tensor]) -> Tensor:
        if self.left is not None:
            return next(self.left)
        self.made.append(make())
        return self.made[-1]


def write_and_read(
    given: Given, radius: float, general: Callable[..., tuple[Tensor | None, Tensor, Tensor]]
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Learn `k -> unit(M(v))`, and read with q before each token: `y [.., n, d]` or None, and the new weights.

    radius: the largest norm of a surprise.
    general: the same function of the same arguments in differentiable steps, for derivatives of the gradient.
    """
    return _Fused.apply(radius, general, *given)


def _forward(given: Given, radius: float) -> tuple[tuple[Tensor | None, Tensor, Tensor], list[Tensor]]:
    """The outputs, and the products that the backward pass needs."""
    q, k, _, _, alpha, up, down, *_ = given
    memo = Memo()
    met = _pass(given, radius, memo)
    last, a = _last(alpha), met.down.x
    after = last * (up + k.mT @ met.up.write), last * (down + a.mT @ met.down.write)
    if q is None:
        return (None, *after), memo.made
    k, a, up, down, before, write_up, write_down = _readers(q, k, a, up, down, met)
    hidden = F.silu(_read(q, k, up, before, write_up, memo))
    y = q + before * (hidden @ down + strictly_lower(hidden @ a.mT) @ write_down)
    return (y, *after), memo.made


def _read(q: Tensor, k: Tensor, up: Tensor, before: Tensor, write: Tensor, memo: Memo) -> Tensor:
    """The query's hidden units before the nonlinearity, `q_t W_up,{t-1}`."""
    return memo(lambda: before * (q @ up + strictly_lower(q @ k.mT) @ write))


def _readers(q: Tensor, k: Tensor, a: Tensor, up: Tensor, down: Tensor, met: Pass) -> list[Tensor]:
    """What the memories that are read have of each."""
    return [x[:, -q.shape[1] :] for x in (k, a, up, down, met.before, met.up.write, met.down.write)]


def _pass(given: Given, radius: float, memo: Memo) -> Pass:
    _, k, v, eta, alpha, up, down, *_ = given
    (held_up, held_down), fresh = given.held(), given.held_up is None
    z_target = v @ held_up
    proposed = v + F.silu(z_target) @ held_down
    z = memo(lambda: k @ held_up)
    a, slope = silu_and_slope(z)
    output = memo(lambda: a @ held_down)
    error = k + output - unit(proposed)
    surprise = bounded(error, radius)
    carried = surprise @ held_down.mT
    log = alpha.log()
    before = (log.cumsum(-1) - log).exp()[..., None]
    rates = eta[..., None], alpha[..., None], before, memo
    of_up = _scan(k, carried * slope, z if fresh else memo(lambda: k @ up), *rates)
    of_down = _scan(a, surprise, output if fresh else memo(lambda: a @ down), *rates)
    return Pass(z_target, proposed, z, slope, error, carried, before, of_up, of_down)


def _scan(x: Tensor, surprise: Tensor, found: Tensor, eta: Tensor, alpha: Tensor, before: Tensor, memo: Memo) -> Scan:
    damped = 1 / (1 + eta * x.square().sum(-1, keepdim=True))
    erasure = eta * damped / alpha
    inverse = memo(lambda: unit_lower_inverse((erasure * x) @ x.mT))
    write = inverse @ (torch.addcdiv(found, surprise, before) * -erasure)
    return Scan(x, surprise, found, damped, erasure, inverse, write)


def _last(alpha: Tensor) -> Tensor:
    """What is left of the start after the block, `[.., 1, 1]`."""
    return alpha.log().sum(-1, keepdim=True).exp()[..., None]


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, radius: float, general: Callable[..., Any], *arguments: Any
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        outputs, made = _forward(Given(*arguments), radius)
        ctx.radius, ctx.general = radius, general
        ctx.save_for_backward(*arguments, *outputs, *made)
        return outputs

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> tuple[Any, ...]:
        size = len(Given._fields)
        tensors = ctx.saved_tensors  # once: a checkpoint does not give them twice
        given, outputs, made = Given(*tensors[:size]), tensors[size : size + 3], tensors[size + 3 :]
        if torch.is_grad_enabled():  # a second derivative is wanted
            found = _differentiable(ctx.general, given, slopes)
        else:
            found = _backward(given, ctx.radius, outputs, made, *slopes)
        return None, None, *found


def _differentiable(
    general: Callable[..., Any], given: Given, slopes: tuple[Tensor | None, ...]
) -> list[Tensor | None]:
    """The gradient as a function of arguments and slopes that can be differentiated again."""
    # as views, since one argument may have been made of another (running weights of those that the chunk began with): the
    # path through it belongs to that one's gradient
    views: Any = (None if x is None else x.view_as(x) for x in given)
    given = Given(*views)
    wanted = [x for x in given if x is not None and x.requires_grad]
    pairs = [(y, slope) for y, slope in zip(general(*given), slopes, strict=True) if y is not None and y.requires_grad]
    outputs, at_outputs = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outputs, wanted, at_outputs, create_graph=True, allow_unused=True))
    return [next(found) if x is not None and x.requires_grad else None for x in given]


def _backward(
    given: Given,
    radius: float,
    outputs: tuple[Tensor | None, Tensor, Tensor],
    made: tuple[Tensor, ...],
    at_y: Tensor | None,
    at_up_after: Tensor,
    at_down_after: Tensor,
) -> list[Tensor | None]:
    """The gradients at `given`, in its order."""
    q, k, v, eta, alpha, up, down, *_ = given
    (held_up, held_down), fresh = given.held(), given.held_up is None
    memo = Memo(made)
    met = _pass(given, radius, memo)
    of_up, of_down, before = met.up, met.down, met.before
    a, surprise = of_down.x, of_down.surprise
    y, up_after, down_after = outputs

    # the weights after the block: last * (W + x^T write)
    last = _last(alpha)
    at_up, at_down = last * at_up_after, last * at_down_after
    at_end = (at_up_after * up_after).sum((-2, -1)) + (at_down_after * down_after).sum((-2, -1))
    at_write_up, at_k = k @ at_up, of_up.write @ at_up.mT
    at_write_down, at_a = a @ at_down, of_down.write @ at_down.mT

    # reading: y = q + before * (hidden W_down + strictly_lower(hidden a^T) write_down), and so the hidden units
    at_q, at_before = None, torch.zeros_like(alpha)  # the latter at the logarithm
    if q is not None and at_y is not None:
        assert y is not None
        last_k, last_a, last_up, last_down, last_before, write_up, write_down = _readers(q, k, a, up, down, met)
        z_read = _read(q, last_k, last_up, last_before, write_up, memo)
        hidden, slope_read = silu_and_slope(z_read)
        inner = last_before * at_y
        scores = strictly_lower(inner @ write_down.mT)
        at_hidden = inner @ last_down.mT + scores @ last_a
        _add(at_a, scores.mT @ hidden)
        _add(at_down, hidden.mT @ inner)
        _add(at_write_down, strictly_lower(hidden @ last_a.mT).mT @ inner)
        at_z = at_hidden * slope_read
        inner = last_before * at_z
        scores = strictly_lower(inner @ write_up.mT)
        at_q = at_y + inner @ last_up.mT + scores @ last_k
        _add(at_k, scores.mT @ q)
        _add(at_up, q.mT @ inner)
        _add(at_write_up, strictly_lower(q @ last_k.mT).mT @ inner)
        decayed = (at_y * (y - q)).sum(-1) + (at_z * z_read).sum(-1)
        _add(at_before, decayed.sum_to_size(at_before[:, -q.shape[1] :].shape))

    # the scans
    rates = eta[..., None], alpha[..., None], before
    by_up = _scan_backward(of_up, at_write_up, *rates)
    by_down = _scan_backward(of_down, at_write_down, *rates)
    at_a = at_a + by_down.x
    if not fresh:
        at_k, at_up = at_k + by_up.found @ up.mT, at_up + k.mT @ by_up.found
        at_a, at_down = at_a + by_down.found @ down.mT, at_down + a.mT @ by_down.found

    # the local pass: surprise W_down^T silu'(z), output - target, within the bound
    at_carried = by_up.surprise * met.slope
    at_slope = by_up.surprise * met.carried
    at_surprise = by_down.surprise + at_carried @ held_down
    at_error = scaled_backward(met.error, at_surprise, radius, radius)
    at_output = at_error + by_down.found if fresh else at_error
    at_a = at_a + at_output @ held_down.mT
    at_z = torch.addcmul(at_a * met.slope, at_slope, bend(met.z))
    at_z = at_z + by_up.found if fresh else at_z
    at_k = at_k + at_error + at_z @ held_up.mT
    at_k = at_k.sum_to_size(k.shape) + by_up.x.sum_to_size(k.shape)  # of all memories that share the key

    # the target: unit(v + silu(v W_up) W_down)
    at_proposed = scaled_backward(met.proposed, -at_error, SMALLEST, 1.0)
    a_target, slope_target = silu_and_slope(met.z_target)
    at_z_target = (at_proposed @ held_down.mT) * slope_target
    at_v = at_proposed + at_z_target @ held_up.mT
    at_held_up = k.mT @ at_z + v.mT @ at_z_target
    at_held_down = a.mT @ at_output + at_carried.mT @ surprise + a_target.mT @ at_proposed
    if fresh:
        at_up, at_down, at_held_up, at_held_down = at_up + at_held_up, at_down + at_held_down, None, None

    # the gates; what decays a block's start decays at every token before
    at_before = at_before + _over(by_up.before, alpha) + _over(by_down.before, alpha)
    later = at_before.flip(-1).cumsum(-1).flip(-1) - at_before
    at_log = (
        later + at_end.sum_to_size(alpha.shape[:-1])[..., None] + _over(by_up.log, alpha) + _over(by_down.log, alpha)
    )
    found = {"q": at_q, "k": at_k, "v": at_v, "eta": _over(by_up.eta, eta) + _over(by_down.eta, eta)}
    found |= {"alpha": at_log / alpha, "up": at_up, "down": at_down, "held_up": at_held_up, "held_down": at_held_down}
    pairs = ((found[name], x) for name, x in given._asdict().items())
    return [None if at is None or x is None else at.sum_to_size(x.shape) for at, x in pairs]


def _add(total: Tensor, part: Tensor) -> None:
    """Add what the memories that are read have, in place."""
    total[:, -part.shape[1] :] += part


def _over(x: Tensor, like: Tensor) -> Tensor:
    """`[.., n, 1]` of several memories summed to the shape `[.., n]` of the gates they share."""
    return x.squeeze(-1).sum_to_size(like.shape)


class AtScan(NamedTuple):
    """Gradients at a scan's inputs, surprise, what it found, and the gates: `before` and `log` alpha as logarithms."""

    x: Tensor
    surprise: Tensor
    found: Tensor
    eta: Tensor
    before: Tensor
    log: Tensor


def _scan_backward(scan: Scan, at_write: Tensor, eta: Tensor, alpha: Tensor, before: Tensor) -> AtScan:
    x, surprise, found, damped, erasure, inverse, write = scan
    at_right = inverse.mT @ at_write
    at_system = strictly_lower((at_right @ write.mT).sum_to_size(inverse.shape), -1.0)
    pulled = at_system @ x
    missed = (at_right * torch.addcdiv(found, surprise, before)).sum(-1, keepdim=True)
    at_erasure = (x * pulled).sum(-1, keepdim=True) - missed.sum_to_size(erasure.shape)
    at_found = at_right * -erasure
    at_surprise = at_found / before
    by_rate = at_erasure * damped.square() / alpha
    at_x = erasure * pulled + at_system.mT @ (erasure * x) - x * (2 * eta.square() * by_rate)
    at_before = -(at_surprise * surprise).sum(-1, keepdim=True)
    return AtScan(at_x, at_surprise, at_found, by_rate, at_before, -at_erasure * erasure)
