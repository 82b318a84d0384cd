"""What a model carries between calls: a session, which ends with its context, and a memory, which does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from nestling.levels import FastWeights
from nestling.models.recall import Recent
from nestling.ops import State
from nestling.ops.state import tree_map

MODES = ("context", "off")


@dataclass(frozen=True)
class Segment(State):
    """The tokens since the fastest level last learnt. They are kept, with the state they started from, so that the
    gradient of a segment does not depend on how many calls delivered it.

    tokens: `[B, P]` int64. lessons: `[B, P]` int64, what should have been predicted in their places, -100 for nothing.
    count: `[B]` int64 on the CPU, how many are real: P means full, waiting for its last label.
    mixers: every layer's state at the segment's first token.
    """

    tokens: Tensor
    lessons: Tensor
    count: Tensor
    mixers: tuple[Any, ...]


@dataclass(frozen=True)
class Session(State):
    """mixers: every layer's state now. segment: under learning, the unfinished segment."""

    mixers: tuple[Any, ...]
    segment: Segment | None = None


class HopeCache(Cache):
    """The cache of `HopeForCausalLM`.

    session: the context: attention's keys and values, the states of self-modifying Titans, the unfinished segment.
    recent: the context's last predictions, of a model with a recall (`nestling.models.recall`).
    memory: what the levels have learnt (`nestling.levels.FastWeights`), or None before anything was. It can be put
        into a new cache: that cache has read no token, and knows what the memory knows.
    learning: "context" moves the levels while reading; "off" reads with what the memory holds and moves nothing.
    recalls: whether a model that has a recall asks it.
    """

    def __init__(self, learning: str = "context", memory: FastWeights | None = None, recalls: bool = True) -> None:
        if learning not in MODES:
            raise ValueError(f"learning={learning!r} is no mode of a cache; choose 'context' or 'off'")
        self._counter = _Counter()
        super().__init__(layers=[self._counter])
        self.learning, self.memory, self.recalls = learning, memory, recalls
        self.session: Session | None = None
        self.recent: Recent | None = None

    def advance(self, columns: int) -> None:
        """Count the columns of a call, padding included, as `generate` does."""
        self._counter.columns += columns

    def copy(self, columns: int | None = None) -> HopeCache:
        """A cache that stands where this one does and goes on by itself; the states are shared until one moves.

        columns: how many it has counted, None for as many as this one. With 0 `generate` asks for a mask of its prompt alone.
        """
        other = HopeCache(self.learning, self.memory, self.recalls)
        other.session, other.recent = self.session, self.recent
        other.advance(self._counter.columns if columns is None else columns)
        return other

    def detach(self) -> HopeCache:
        """Cut the outer gradient here, as truncated backpropagation through time does between two calls."""
        held = self.session, self.recent, self.memory
        self.session, self.recent, self.memory = tree_map(Tensor.detach, held)
        return self

    def reset(self) -> None:
        """End the context. The memory stays."""
        self.session = self.recent = None
        self._counter.columns = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.session is not None:
            rows = torch.arange(self.session.mixers[0].position.shape[0])
            self.batch_select_indices(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Rows in the order of `indices`, in everything that is held."""

        def pick(t: Tensor) -> Tensor:
            return t.index_select(0, indices.to(t.device))

        held = self.session, self.recent, self.memory
        self.session, self.recent, self.memory = tree_map(pick, held)

    def crop(self, tokens_to_remove: int) -> None:
        raise ValueError(
            "a memory cannot unread tokens; assisted decoding is not available, use another decoding method"
        )


class _Counter(CacheLayerMixin):
    """The one layer that `generate` asks how much was read."""

    def __init__(self) -> None:
        super().__init__()
        self.columns = 0

    def get_seq_length(self) -> int:
        return self.columns

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.columns + query_length, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise TypeError("HopeCache keeps states of its own; pass it to HopeForCausalLM only")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise TypeError("HopeCache keeps states of its own; pass it to HopeForCausalLM only")
