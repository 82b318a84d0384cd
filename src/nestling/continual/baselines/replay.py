"""Experience replay from a small memory (Chaudhry et al., arXiv 1902.10486)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nestling.continual.baselines.method import apart
from nestling.continual.baselines.tuning import FineTuning
from nestling.models import HopeForCausalLM


@dataclass(frozen=True)
class Buffer:
    """A reservoir of chunks (Vitter 1985): each one met so far is in it with the same probability.

    chunks: `[n, P + 1]`, the narrowest integers that hold the vocabulary. capacity: the largest n. met: how many so far.
    """

    chunks: Tensor
    capacity: int
    met: int = 0

    def add(self, chunk: Tensor, generator: torch.Generator) -> Buffer:
        """After one more chunk."""
        met, chunk = self.met + 1, chunk.to(self.chunks)[None]
        if len(self.chunks) < self.capacity:
            return replace(self, chunks=torch.cat([self.chunks, chunk]), met=met)
        place = int(torch.randint(met, (), generator=generator))
        if place >= self.capacity:
            return replace(self, met=met)
        return replace(self, chunks=torch.cat([self.chunks[:place], chunk, self.chunks[place + 1 :]]), met=met)


@dataclass(frozen=True)
class Replaying:
    """optimizer: of the weights. buffer: what can be replayed. generator: draws from it, and into it."""

    optimizer: torch.optim.Optimizer
    buffer: Buffer
    generator: torch.Generator


@dataclass(frozen=True)
class Replay:
    """Each step's loss is the mean of the new chunk's and of one chunk from a buffer, drawn with equal probabilities.

    The buffer is a reservoir over the old sample and what was read; a chunk in it is a context of its own.

    size: of the buffer, in bytes. length: tokens predicted in a chunk. seed: of the draws.
    """

    tuning: FineTuning
    size: int
    length: int
    seed: int = 0

    def prepare(self, model: HopeForCausalLM, old: Tensor) -> Replaying:
        """A buffer of the old sample."""
        generator = torch.Generator().manual_seed(self.seed)
        kind, width = narrowest(model.config.vocab_size), self.length + 1
        buffer = Buffer(torch.empty(0, width, dtype=kind), self.size // (width * kind.itemsize))
        for chunk in old[: len(old) // width * width].view(-1, width):
            buffer = buffer.add(chunk, generator)
        return Replaying(self.tuning.prepare(model, old), buffer, generator)

    def step(self, model: HopeForCausalLM, state: Replaying, chunk: Tensor, loss: Tensor) -> Replaying:
        """Draw, step, and only then put the chunk into the buffer."""
        held, buffer = state.buffer.chunks, state.buffer
        if len(held):
            drawn = held[int(torch.randint(len(held), (), generator=state.generator))]
            loss = (loss + apart(model, drawn.to(chunk))) / 2
        self.tuning.step(model, state.optimizer, chunk, loss)
        if len(chunk) == held.shape[1]:  # the last of a stream may be shorter
            buffer = buffer.add(chunk, state.generator)
        return replace(state, buffer=buffer)

    def own(self, model: HopeForCausalLM, state: Replaying) -> list[Tensor]:
        """The moved weights, the optimiser's averages, and the buffer."""
        return [*self.tuning.own(model, state.optimizer), state.buffer.chunks]


def narrowest(vocabulary: int) -> torch.dtype:
    """The integers of fewest bytes that hold every token."""
    fits = (kind for kind in (torch.uint8, torch.int16, torch.int32) if torch.iinfo(kind).max >= vocabulary - 1)
    return next(fits, torch.int64)
