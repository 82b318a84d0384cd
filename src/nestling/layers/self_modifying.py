"""Self-modifying Titans (arXiv 2512.24695, section 8, Eq. 83-93): memories that make their own keys, values, learning
rates, decays and targets, and rewrite themselves while they read.

B batch, L length, H heads, d head width, C chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nestling.layers.conv import CausalConv
from nestling.layers.gates import RETENTION_FLOOR, Gates
from nestling.layers.linear import Linear
from nestling.layers.look import unit_answers, unit_heads
from nestling.layers.recurrent import ANSWER, TokenStep, token_by_token, token_step
from nestling.memory import (
    MLP,
    AssociativeMemory,
    DeltaGradientDescent,
    GradientDescent,
    Huber,
    MemoryState,
    SelfGenerated,
    unit,
)
from nestling.memory.associative import RECOMPUTED
from nestling.memory.objective import Objective
from nestling.memory.part import PROJECTIONS, STARTS, Context, Described, Part, called
from nestling.memory.retention import Retention
from nestling.memory.rule import Rule
from nestling.ops import State
from nestling.ops.ragged import check_lengths, join, pieces, real_tokens, split
from nestling.ops.state import named_tensors, tree_map


@dataclass(frozen=True)
class SelfModifyingState(State):
    """tail: `[B, conv_width - 1, D]` of the convolution. memories: those of k, v, eta, alpha, perhaps q, and the one that
    answers, weights `[B, 5 or 6, H, ..]`."""

    tail: Tensor
    memories: MemoryState


class SelfModifyingTitans(nn.Module, Described):
    """`y, state = layer(x, state)`, `x, y [B, L, D]`.

    For a token `x_t`, after a short causal convolution, every memory being a residual MLP per head:

        q_t = x_t W_q            k_t, v_t, eta_t, alpha_t = M_k(x_t), M_v(x_t), M_eta(x_t), M_alpha(x_t)
        y_t = M_memory(q_t)      every memory M writes  k_t -> M(v_t)  with rate eta_t and retention alpha_t

    `q`, what the memories answer and the targets have unit norm per head, surprises at most norm 2: so no weight can
    grow beyond a bound that the rates and retentions set (docs/stability.md). `eta` and `alpha` come out of their
    memories as vectors; a learnt direction per head reduces each to one number. The four projections are read
    at the state their chunk started from, as the chunk-wise form of the paper (section 8.2) has it; the memory that
    answers is read at every token, writes inside the chunk included, or at the chunk's start (`read`).

    Args:
        dim: width D. heads: H, a divisor of D.
        hidden: hidden width of each memory, per head; None is the head width.
        chunk_size: tokens between the states at which `memory` takes its gradients.
        projection_chunk_size: the same for the four projections, a multiple of `chunk_size`; None is `chunk_size`.
        objective, rule: of every memory's writing; see `nestling.memory`.
        read: "token", "chunk", or "inclusive": what the token itself writes, too.
        detach_writes: no outer gradient through the writes (cheap; less is learnt).
        backend: "auto", or "reference" for the token-loop oracle.
        retention: what the memories fade to; see `nestling.memory`.
        horizons: between these numbers of tokens the heads' memories fade at the start, spread over the heads.
        conv_width: tokens that the convolution sees, the current one included; 1 mixes none.
        query: "static", a linear map as in the paper, or "memory": `q_t = M_q(x_t)`, a sixth memory that rewrites itself.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int | None = None,
        chunk_size: int = 64,
        projection_chunk_size: int | None = None,
        objective: Objective | None = None,
        rule: Rule | None = None,
        read: str = "token",
        detach_writes: bool = False,
        backend: str = "auto",
        retention: Retention | None = None,
        horizons: tuple[float, float] = (16, 1024),
        conv_width: int = 4,
        query: str = "static",
    ) -> None:
        super().__init__()
        if query not in ("static", "memory"):
            raise ValueError(f"query={query!r} is unknown; choose 'static' or 'memory'")
        if dim % heads:
            raise ValueError(f"dim={dim} is not a multiple of heads={heads}")
        self.period = chunk_size if projection_chunk_size is None else projection_chunk_size
        if min(chunk_size, self.period) < 1:
            raise ValueError(f"chunk_size={chunk_size}, projection_chunk_size={self.period}: each must be at least 1")
        if self.period % chunk_size:
            raise ValueError(f"projection_chunk_size={self.period} must be a multiple of chunk_size={chunk_size}")
        width = dim // heads
        hidden = width if hidden is None else hidden
        if hidden < 1:
            raise ValueError(
                f"hidden={hidden} must be at least 1: units of each memory (the head width, {width}, is usual)"
            )
        self.heads = heads
        self.conv = CausalConv(dim, filters=5, width=conv_width)
        self.query, self.out = Linear(dim, dim) if query == "static" else None, Linear(dim, dim)
        self.projections = ANSWER if query == "static" else ANSWER + 1  # how many memories make something of a token
        rule = rule or DeltaGradientDescent()
        self.memories = AssociativeMemory(
            MLP(width, hidden, heads=(self.projections + 1, heads)),
            objective or Huber(),
            rule,
            (self.period,) * self.projections + (chunk_size,),
            read,
            SelfGenerated(),
            detach_writes,
            RETENTION_FLOOR,
            backend,
            retention,
        )
        self.gates = Gates(heads, width, horizons)
        self.momentum = nn.Linear(dim, heads) if rule.momentum else None
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.token_step: TokenStep | None = None
        plain = isinstance(rule, GradientDescent | DeltaGradientDescent) and not rule.momentum and not detach_writes
        plain = plain and read != "inclusive" and not self.memories.retention.maps
        if self.period == 1 and (backend, query) == ("auto", "static") and plain:
            self.token_step = token_step

    def parts(self) -> tuple[Part, ...]:
        """The memories that make keys, values, rates and retentions, and the one that answers.

        All move at every token, and each from what the others were before it: none needs another's state of the same moment.
        """
        state, horizons = self.memories.init_state(1), self.gates.horizons
        what = called(self.memories.objective), called(self.memories.rule)
        context = Context(effective=max(horizons), note=f"heads from {min(horizons):g} tokens on, as they begin")
        starts = tuple(self.memories.network.parameters())
        momentum = ("momentum of the memories",) if state.momentum else ()
        named = named_tensors((state.weights, state.start)).values()
        count, width = self.projections, self.out.in_features
        makers = Part(
            "self-modifying projections",
            *what,
            context=context,
            needs=momentum,
            knowledge=(("initialisation", STARTS), ("generation", "self-modifying projections")),
            state=tuple(w[:, :count] for w in named),
            item=2 * count * width,
            parameters=starts,
        )
        answering = replace(
            makers,
            name="self-modifying memory",
            knowledge=(*makers.knowledge, ("direct parametric", PROJECTIONS)),
            state=(*(w[:, count:] for w in named), state.position, state.refused),
            item=2 * width,
        )
        gathered = Part(
            *("momentum of the memories", what[0], "S <- theta S + (1 - theta) k^T u"),
            context=Context(effective=None, note="as theta says"),
            knowledge=(("generation", "self-modifying projections"),),
            state=state.momentum,
            item=2 * (count + 1) * width,
        )
        return (makers, answering, *([gathered] if momentum else []), *self.conv.parts())

    def init_state(self, batch: int) -> SelfModifyingState:
        """The meta-learned state before the first token."""
        return SelfModifyingState(self.conv.init_tail(batch), self.memories.init_state(batch))

    def forward(
        self, x: Tensor, state: SelfModifyingState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, SelfModifyingState]:
        """Read and rewrite. `lengths [B]` int64 on the CPU: the real tokens of each row, None for all."""
        if x.dim() != 3 or x.shape[-1] != self.out.in_features:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected [B, L, {self.out.in_features}]")
        batch, length, _ = x.shape
        if not length:
            raise ValueError("x has no tokens; give at least one")
        check_lengths(lengths, batch, length)
        if lengths is not None:  # whatever stands in the padding is not seen
            x = torch.where(real_tokens(lengths, length, x.device)[..., None], x, 0.0)
        state = state or self.init_state(batch)
        y, state = self._recurrence(x, state, lengths) or self._chunks(x, state, lengths)
        y = self.norm(y.to(self.out.weight.dtype))
        return self.out(y.transpose(1, 2).flatten(2)), state

    def _query(self, x: Tensor, tail: Tensor) -> Tensor | None:
        """The static query `[B, 1, H, L, d]` of norm 1, for a whole call: who watches what its weight sees, sees it once."""
        if self.query is None:
            return None
        x, _ = self.conv(x, tail, None, slice(ANSWER, None))
        return unit(self._split(self.query(F.silu(x[:, 0]))))[:, None]

    def _looks(
        self, x: Tensor, tail: Tensor, lengths: Tensor | None, conv: Callable[..., Any]
    ) -> tuple[Tensor, Tensor]:
        """What the projections are read at, `[B, 4 or 5, H, L, d]` of norm 1, and the tail."""
        x, tail = conv(x, tail, lengths, slice(self.projections))
        return unit_heads(x, self.heads), tail

    def _recurrence(
        self, x: Tensor, state: SelfModifyingState, lengths: Tensor | None
    ) -> tuple[Tensor, SelfModifyingState] | None:
        """As `_chunks` for chunks of one token, all memories at once; None where it does not apply: where the layer or
        the state has something apart that it takes as one, or a row has an update to refuse.
        """
        step, memories = self.token_step, state.memories
        if step is None or not self.memories.at_start(memories):
            return None
        length, exact = x.shape[1], memories.start[0].dtype
        q, (x, tail) = self._query(x, state.tail), self._looks(x, state.tail, lengths, self.conv)
        assert q is not None  # there is no recurrence with another query
        looks = torch.cat([x, q], 1).to(exact)
        mask = None if lengths is None else real_tokens(lengths, length, x.device)
        with torch.autocast(x.device.type, enabled=False):
            gates = self.gates.direction.to(exact), self.gates.bias.to(exact)
            parts = self.memories.objective, self.memories.rule
            network, (up, down) = self.memories.network, memories.start
            assert isinstance(network, MLP)
            rest = tree_map(lambda w: w.to(exact).unsqueeze(-1), self.memories.retention.rest(network))
            y, weights = token_by_token(lambda look, w: step(look, w, rest, *gates, *parts), looks, (up, down), mask)
        if not all(bool(w.detach().sum().isfinite()) for w in weights):
            return None
        position = memories.position + (length if lengths is None else lengths)
        return y, SelfModifyingState(tail, MemoryState(weights, weights, None, position, memories.refused))

    def _chunks(
        self, x: Tensor, state: SelfModifyingState, lengths: Tensor | None
    ) -> tuple[Tensor, SelfModifyingState]:
        """One chunk of the projections after the other: the answers `[B, H, L, d]`."""
        outputs, length = [], x.shape[1]
        cut = pieces(state.memories.position, lengths, length, self.period)
        queries = self._query(x, state.tail)
        # of a long sequence the backward pass computes again what is cheap: all but most of the memories' writing
        say: Callable[..., Any] = self._say
        conv: Callable[..., Any] = self.conv
        gates: Callable[..., Any] = self.gates
        momentum: Callable[..., Any] | None = self.momentum
        frugal = length > RECOMPUTED and torch.is_grad_enabled()
        if frugal:
            say = partial(checkpoint, self._say, use_reentrant=False, preserve_rng_state=False)
            conv, gates = as_now(self.conv), as_now(self.gates)
            momentum = None if self.momentum is None else as_now(self.momentum)
        for piece, q, part in zip(cut, split(queries, cut, 3), split(x, cut), strict=True):
            real = None if piece.mask(x.device) is None else piece.count
            start = tuple(w[:, : self.projections] for w in state.memories.start)
            said, tail = say(part, state.tail, start, real, conv, gates, momentum)
            k, v, eta, alpha, theta, own = tree_map(lambda t: t[:, None], said)  # one for all memories
            q = own if q is None else q
            y, memories = self.memories(q, k, v, eta, alpha, state.memories, theta, real, frugal)
            state = SelfModifyingState(tail, memories)
            outputs.append(y)
        return join(outputs, cut, length, dim=3).squeeze(1), state

    def _say(
        self,
        x: Tensor,
        tail: Tensor,
        weights: tuple[Tensor, ...],
        lengths: Tensor | None,
        conv: Callable[..., Any],
        gates: Callable[..., Any],
        momentum: Callable[..., Any] | None,
    ) -> tuple[tuple[Tensor | None, ...], Tensor]:
        """What the projections say of tokens `[B, n, D]` of one of their chunks, which began with `weights`.

        Returns k, v `[B, H, n, d]`, eta, alpha, theta `[B, H, n]` (None without momentum), q as k where it is not static,
        and the tail.
        """
        theta = None if momentum is None else torch.sigmoid(momentum(x)).mT
        x, tail = self._looks(x, tail, lengths, conv)
        network = self.memories.network
        assert isinstance(network, MLP)
        with torch.autocast(x.device.type, enabled=False):
            weights = tree_map(self.memories.retention.weight, weights)
            k, v, rate, decay, *q = unit_answers(x.to(weights[0].dtype), *weights).unbind(1)
            eta, alpha = gates(rate, decay)
        return (k, v, eta, alpha, theta, *(q or [None])), tail

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)


def as_now(module: nn.Module) -> Callable[..., Any]:
    """The module with the parameters that it has now, also when it is called again in the backward pass: `functional_call`
    gives a module others for the time of one call.
    """
    parameters: dict[str, Tensor] = dict(module.named_parameters())
    return lambda *inputs: functional_call(module, parameters, inputs)
