"""The associative memory: network x objective x rule x retention, learning while it is read.

Surprises are taken at the weights the chunk started from (section 8.2 of the paper), so the chunk size is part of the
mathematics. Boundaries are at each row's absolute positions 0, C, 2C, ..., whatever the calls that deliver the tokens.

B batch, H heads (one or more dimensions), L length, C chunk, d width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nestling.memory import fused
from nestling.memory.checks import check_choices, check_settings, check_tokens
from nestling.memory.compound import window_of
from nestling.memory.forms import form_of
from nestling.memory.matrix_rule import MatrixRule
from nestling.memory.network import Network
from nestling.memory.objective import Objective, as_objective
from nestling.memory.part import LOSS, STARTS, Context, Described, Part, called
from nestling.memory.recent import nothing_yet
from nestling.memory.retention import Retention, ToZero
from nestling.memory.rule import GradientDescent, Rule
from nestling.memory.state import MemoryState, Moved
from nestling.memory.target import Given
from nestling.ops.ragged import Piece, check_lengths, join, pieces, split
from nestling.ops.scan.chunk import over_heads
from nestling.ops.state import tree_map, where_rows

RECOMPUTED = 2048  # length of a call from which on some is computed again in the backward pass, to save memory


class AssociativeMemory(nn.Module, Described):
    """A memory that maps keys to values and learns them as they pass.

    Args:
        network: `Matrix`, `MLP`, or any `nn.Module` (`[.., dk] -> [.., dv]`): a module without a closed form runs on
            the token-loop oracle, slowly, and takes `GradientDescent` only.
        objective: `DotProduct`, `L2`, `Lp`, `Huber`, an object with their two methods, or a function of output and target.
        rule: `GradientDescent` or `DeltaGradientDescent`, each with or without momentum; `Omega` or `Orthogonal` over plain
            descent; or, of linear networks, `DeltaRule`, `Oja` or `LeastSquares`.
        retention: `ToZero`; `ToInitial` (with momentum, `Omega` or `Orthogonal` on the token loop, slowly); `KL` or `Lq` (without
            erasure).
        chunk_size: tokens whose surprises are taken at the same weights; or one for each memory along the network's first
            dimension of heads, each a multiple of the smallest.
        read: "token" reads the weights just before the token (writes inside the chunk included), "inclusive" those just
            after it, as the linear memories of the literature do, "chunk" those at the chunk's start (Eq. 90). With a
            chunk of 1, "token" and "chunk" are the same.
        target: `Given` (the value) or `SelfGenerated` (Eq. 84).
        detach_writes: no outer gradient flows through the writes: cheap, and what is learnt are the reads, and the initial weights
            through what fades and is erased of them.
        retention_floor: what alpha is promised to be at least. From 1/2 on, without momentum, a faster form is exact.
        backend: "auto", "chunk" for the general closed form, or "reference" for the token loop.

    Raises:
        ValueError: choices without a meaning together, or a value that is not allowed; the message says which.

    Gradients of gradients are those of autograd; transforms of `torch.func` do not go through a memory.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective | Callable[[Tensor, Tensor], Tensor],
        rule: Rule | None = None,
        chunk_size: int | Sequence[int] = 64,
        read: str = "token",
        target: Callable[..., Tensor] | None = None,
        detach_writes: bool = False,
        retention_floor: float = 0.0,
        backend: str = "auto",
        retention: Retention | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise ValueError(
                f"network={network!r} must be a network of nestling.memory, as Matrix(64, 64), or an nn.Module"
            )
        check_settings(network, chunk_size, read, backend)
        if not isinstance(network, Network):
            if backend == "chunk":
                raise ValueError(f"{type(network).__name__} has no closed form; use backend='reference' or 'auto'")
            backend = "reference"
        self.network, self.objective = network, as_objective(objective)
        self.rule: Rule | MatrixRule = rule or GradientDescent()
        self.retention: Retention = retention or ToZero()
        self.target: Callable[..., Tensor] = target or Given()
        self.chunk_size, self.read, self.detach_writes, self.backend = chunk_size, read, detach_writes, backend
        self.retention_floor = retention_floor
        check_choices(self)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The chunk size of each memory, or one of all."""
        return _sizes(self.chunk_size)

    @property
    def fused(self) -> bool:
        """Whether `nestling.memory.fused` computes it."""
        parts = self.network, self.objective, self.rule, self.target, self.retention
        general = self.backend != "auto" or self.detach_writes or self.read == "inclusive"
        return not general and fused.fits(*parts, self.retention_floor)

    @property
    def block(self) -> int:
        """How many tokens are taken at once: the smallest chunk, or a part of it that `nestling.memory.fused` can take."""
        smallest = min(self.sizes)
        if not self.fused or smallest <= fused.LONGEST:
            return smallest
        part = next(size for size in range(fused.LONGEST, 0, -1) if smallest % size == 0)
        return part if part >= fused.LONGEST // 4 else smallest  # a prime has no part that would pay

    def extra_repr(self) -> str:
        path, _ = form_of(self)
        parts = self.objective, self.rule, self.retention, self.target
        return f"{', '.join(map(str, parts))}, chunk_size={self.chunk_size}, read={self.read!r}, path={path}"

    def parts(self) -> tuple[Part, ...]:
        """The memory of one sequence, with one head where the network has none of its own; and its momentum."""
        own = isinstance(self.network, Network) and self.network.heads
        state, parameters = self.init_state(1, None if own else ()), tuple(self.network.parameters())
        momentum, item = ("momentum of the memory",) if state.momentum else (), 0
        if isinstance(self.network, Network) and self.network.dim_key is not None:
            item = math.prod(self.network.heads) * (self.network.dim_key + self.network.dim_value)
        memory = Part(
            "memory",
            called(self.objective),
            called(self.rule),
            context=Context(note="less what alpha lets fade"),
            needs=momentum,
            knowledge=(("initialisation", STARTS),),
            state=(*state.weights, *state.start, state.position, state.refused, *state.carried),
            item=item,
            parameters=parameters,
        )
        gathered = Part(
            *("momentum of the memory", called(self.objective), "S <- theta S + (1 - theta) k^T u"),
            context=Context(effective=None, note="as theta says"),
            knowledge=(("backpropagation", LOSS),),
            state=state.momentum,
            item=item,
        )
        return (memory, gathered) if momentum else (memory,)

    def init_state(self, batch_size: int, heads: int | tuple[int, ...] | None = None) -> MemoryState:
        """The state before the first token: the meta-learned initial weights, one copy a row.

        heads: how many heads share a network that has no heads of its own; its own number otherwise.
        """
        own = self.network.heads if isinstance(self.network, Network) else ()
        wanted = own if heads is None else ((heads,) if isinstance(heads, int) else tuple(heads))
        if own and wanted != own:
            raise ValueError(f"heads={wanted} but the network has heads {own} of its own; leave heads out")
        initial = self.network.weights() if isinstance(self.network, Network) else tuple(self.network.parameters())
        if not initial:
            raise ValueError(f"{type(self.network).__name__} has no parameters; a memory needs weights to write")
        exact = torch.promote_types(initial[0].dtype, torch.float32)
        weights = tuple(w.to(exact).expand(batch_size, *wanted, *w.shape[len(own) :]) for w in initial)
        momentum = tuple(torch.zeros_like(w) for w in weights) if self.rule.momentum else None
        carried: tuple[Tensor, ...] = ()
        if isinstance(self.rule, MatrixRule):
            carried = self.rule.initial(weights[0])
        elif window_of(self.rule) > 1 and isinstance(self.network, Network):
            carried = nothing_yet(self.network, weights[0], len(wanted), window_of(self.rule))
        counters = torch.zeros(batch_size, dtype=torch.int64)
        return MemoryState(weights, weights, momentum, counters, counters.to(initial[0].device), carried)

    def forward(
        self,
        q: Tensor | None,
        k: Tensor,
        v: Tensor,
        eta: Tensor,
        alpha: Tensor | None = None,
        state: MemoryState | None = None,
        theta: Tensor | None = None,
        lengths: Tensor | None = None,
        frugal: bool = False,
    ) -> tuple[Tensor | None, MemoryState]:
        """Read with `q`, learn `k -> v`.

        Args:
            q, k: `[B, H, L, dk]`; `q=None` learns without reading, a q for fewer memories (the first dimension of heads)
                reads the last ones. v: `[B, H, L, dv]`. What memories share may have size 1 there.
            eta: `[B, H, L]`, learning rate, >= 0. alpha: `[B, H, L]` in [0, 1], retention (None: 1). Of linear networks
                alpha, and the rate of `DeltaRule`, may be of each input channel, `[B, H, L, in]`.
            theta: `[B, H, L]` in [0, 1], momentum; exactly when the rule has momentum.
            state: from `init_state` or an earlier call (None: the initial one).
            lengths: `[B]` int64 on the CPU, the real tokens of each row (None: all). Padding changes nothing.
            frugal: the backward pass computes again what is cheap beside the room that it takes; so it does of more than
                2,048 tokens anyway.

        Returns:
            `y [B, H, L, dv]` (None without q; zero at padding) and the new state.

        Raises:
            ValueError: theta and the rule disagree, a shape does not fit, or a learning rate is below 0.
        """
        if (theta is not None) != self.rule.momentum:
            have = "without" if theta is None else "with"
            raise ValueError(f"{self.rule} was called {have} theta; pass theta exactly when momentum=True")
        check_tokens(self, {"q": q, "k": k, "v": v, "eta": eta, "alpha": alpha, "theta": theta}, state)
        batch, length = k.shape[0], k.shape[-2]
        check_lengths(lengths, batch, length)
        if state is None:
            heads = None if isinstance(self.network, Network) and self.network.heads else tuple(v.shape[1:-2])
            state = self.init_state(batch, heads)
        run = partial(form_of(self, frugal or length > RECOMPUTED)[1], self)
        outputs = []
        with torch.autocast(k.device.type, enabled=False):
            exact = state.weights[0].dtype
            q, k, v, eta, alpha, theta = tree_map(lambda x: x.to(exact), (q, k, v, eta, alpha, theta))
            cut = pieces(state.position, lengths, length, self.block)
            tokens = [split(x, cut, dim=k.dim() - 2) for x in (q, k, v, eta, alpha, theta)]
            for piece, *parts in zip(cut, *tokens, strict=True):
                mask = piece.mask(k.device)
                y, moved = run(*_neutral(parts, mask), state=state, mask=mask)
                finite = _finite(moved)
                if finite is not None:  # rare: again as if those rows had no tokens, or their NaN reaches gradients
                    mask = finite[:, None].expand(-1, piece.width) if mask is None else mask & finite[:, None]
                    y, moved = run(*_neutral(parts, mask), state=state, mask=mask)
                y, state = self._accept(y, moved, finite, state, piece)
                outputs.append(y)
        return (None if q is None else join(outputs, cut, length, dim=q.dim() - 2)), state

    def step(
        self,
        q: Tensor | None,
        k: Tensor,
        v: Tensor,
        eta: Tensor,
        alpha: Tensor | None = None,
        state: MemoryState | None = None,
        theta: Tensor | None = None,
    ) -> tuple[Tensor | None, MemoryState]:
        """One token: as `forward` without the dimension L (`q, k, v [B, H, d]`, `eta, alpha, theta [B, H]`)."""
        q, k, v = tree_map(lambda x: x.unsqueeze(-2), (q, k, v))
        # a gate of each channel has the tokens where keys have them
        eta, alpha, theta = tree_map(lambda x: x.unsqueeze(-2 if x.dim() == k.dim() - 1 else -1), (eta, alpha, theta))
        y, after = self(q, k, v, eta, alpha, state, theta)
        return (None if y is None else y.squeeze(-2)), after

    def at_start(self, state: MemoryState) -> bool:
        """Whether every row begins a chunk: `weights` are `start`, for gradients as well as in value."""
        if state.weights is state.start:
            return True
        apart = any(w.requires_grad for w in (*state.weights, *state.start))  # gradients might want to tell them apart
        return not apart and not any(bool((state.position % size).any()) for size in self.sizes)

    def _accept(
        self, y: Tensor | None, moved: Moved, finite: Tensor | None, state: MemoryState, piece: Piece
    ) -> tuple[Tensor | None, MemoryState]:
        """Take an update that is finite; refuse and count one that is not, row by row. At a boundary a chunk ends.

        finite: `[B]`, or None where all rows are.
        """
        position, refused = state.position + piece.count, state.refused
        if finite is not None:
            refused = refused + (~finite).long()
            choose = partial(where_rows, finite)
            weights, momentum, carried = moved
            moved = Moved(
                tree_map(choose, weights, state.weights),
                tree_map(choose, momentum, state.momentum),
                tree_map(choose, carried, state.carried),
            )
            y = tree_map(choose, y)
        weights = moved.weights
        moves = zip(position.tolist(), piece.count.tolist(), strict=True)
        # [B][1 or memories]: whose chunk ends
        done = [[at % size == 0 and count > 0 for size in self.sizes] for at, count in moves]
        if all(map(all, done)):
            start = weights
        elif any(map(any, done)):
            ends = torch.tensor(done, device=weights[0].device)
            start = tree_map(
                lambda w, old: torch.where(ends[(..., *[None] * (w.dim() - 2))], w, old), weights, state.start
            )
        else:
            start = state.start
        return y, MemoryState(weights, start, moved.momentum, position, refused, moved.carried)


def _neutral(parts: Sequence[Any], mask: Tensor | None) -> Sequence[Any]:
    """q, k, v, eta, alpha, theta of a piece; at masked tokens they write and erase nothing and let nothing fade, whatever
    stood there.
    """
    if mask is None:
        return parts
    neutral, dims = (0.0, 0.0, 0.0, 0.0, 1.0, 1.0), parts[1].dim()

    def filled(x: Tensor, value: float) -> Tensor:
        wide = x.dim() == dims  # a number a token, or one a channel
        return torch.where(over_heads(mask, x.dim() - wide)[(..., *[None] * wide)], x, value)

    return [None if x is None else filled(x, value) for x, value in zip(parts, neutral, strict=True)]


def _sizes(chunk_size: int | Sequence[int]) -> tuple[int, ...]:
    return (chunk_size,) if isinstance(chunk_size, int) else tuple(chunk_size)


def _finite(moved: Moved) -> Tensor | None:
    """`[B]`: rows whose new weights and momenta, and what else is carried, are finite; None where all are."""
    tensors = [t.detach() for t in (*moved.weights, *(moved.momentum or ()), *moved.carried) if t.is_floating_point()]
    if math.isfinite(sum(t.sum() for t in tensors)):
        return None
    finite = torch.stack([t.flatten(1).sum(1) for t in tensors]).sum(0).isfinite()
    return None if bool(finite.all()) else finite
