"""Sleep: what the fast levels hold is taught to the slow ones, offline, before it goes.

While a context lasts its fast levels learn the most of it, and when it ends they go back to their start. A learner asleep first
goes through texts of two kinds, and its slow levels alone learn, by their own rules at their own periods, to predict

    new texts   as all levels do now
    old texts   as they did themselves, without the fast levels, when they fell asleep

The first is distillation of the learner into its slow part (Hinton et al., arXiv 1503.02531), the second holds it to what it knew.
The texts are stored ones, or dreams: what the learner writes awake, and what it writes without its fast levels (generative replay,
Shin et al., arXiv 1705.08690). Two systems, of which a fast one teaches a slow one offline and interleaved with old knowledge,
are those of McClelland, McNaughton and O'Reilly (1995).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nestling.levels import FastWeights, Level, at_rest, blocks, effective, gather, step
from nestling.models import HopeCache
from nestling.models.learning import LearningModel
from nestling.models.segment import run, slopes
from nestling.ops.state import tree_map

LENGTH = 1024  # tokens of a dream
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Night:
    """What a sleep was like: for each pass over the texts how far the slow levels were from what they were to say, in nats a
    token (Kullback-Leibler divergence), each text measured before it was learnt from.
    """

    new: list[float] = field(default_factory=list)
    old: list[float] = field(default_factory=list)


def resetting(levels: Sequence[Level], memory: FastWeights) -> list[bool]:
    """Which levels reset when the context ends. Raises ValueError where there are not some that do and some that stay."""
    fast = [
        level.reset == "context" and not bool(state.frozen.all()) for level, state in zip(levels, memory, strict=True)
    ]
    if all(fast) or not any(fast):
        given = ", ".join(f"reset={level.reset!r}" for level in levels)
        raise ValueError(
            f"the levels have {given}; a sleep needs one that resets when the context ends (reset='context') and is not frozen, to "
            "learn from, and one that stays, to learn"
        )
    return fast


def rested(levels: Sequence[Level], memory: FastWeights, fast: Sequence[bool]) -> FastWeights:
    """The memory without what the fast levels hold."""
    each = zip(levels, memory, fast, strict=True)
    return tuple(at_rest(level, state) if resets else state for level, state, resets in each)


def consolidate(
    model: LearningModel,
    memory: FastWeights,
    fast: Sequence[bool],
    new: Sequence[Tensor],
    old: Sequence[Tensor],
    passes: int = 1,
) -> tuple[FastWeights, Night]:
    """The memory when the slow levels have learnt; the fast ones stand as they did.

    fast: as `resetting` says. new, old: texts `[L]` int64, gone through in turns, a segment of the fastest period of each.
    """
    with torch.inference_mode(False), torch.no_grad():
        resting = rested(model.levels, memory, fast)
        awake, before = (_weights(model, state) for state in (memory, resting))
        still = (replace(state, frozen=torch.ones_like(state.frozen)) for state in resting)
        student = tuple(s if resets else r for s, r, resets in zip(still, resting, fast, strict=True))
        night = Night()
        for _ in range(passes):
            student = _gone_through(model, student, night, _Reading(model, awake, new), _Reading(model, before, old))
        return tuple(m if resets else s for m, s, resets in zip(memory, student, fast, strict=True)), night


def dream(model: LearningModel, memory: FastWeights, begin: Tensor, tokens: int, seed: int) -> list[Tensor]:
    """Texts `[L]` that the model writes after `begin [n]`, at least so many tokens in all, `LENGTH` or fewer in each."""
    rows, length = -(-tokens // LENGTH), min(tokens, LENGTH)
    start = begin.to(model.device).expand(rows, -1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = model.generate(
            start, attention_mask=torch.ones_like(start), past_key_values=HopeCache("off", memory), do_sample=True, top_k=0,
            min_new_tokens=length, max_new_tokens=length,
        )  # fmt: skip
    assert isinstance(found, Tensor)
    return list(found)


@dataclass
class _Reading:
    """Texts, and how they are predicted with some weights; the student's own state is beside the teacher's."""

    model: LearningModel
    weights: Weights
    texts: Sequence[Tensor]
    mixers: Any = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Segments `[1, P]` and log-probabilities `[1, P, V]` of what follows each token."""
        period = self.model.levels[0].period
        for text in self.texts:
            own, self.mixers = self.model.begin(1), self.model.begin(1)
            for tokens in text[None].to(self.model.device).split(period, dim=1):
                logits, _, own = run(self.model, self.weights, tokens, own, None)
                yield tokens, _log_probabilities(logits)


def _gone_through(model: LearningModel, memory: FastWeights, night: Night, *readings: _Reading) -> FastWeights:
    """After one pass over the texts of all readings, in turns."""
    totals, counts = [0.0] * len(readings), [0] * len(readings)
    for turn in zip_longest(*readings):
        for i, (reading, lesson) in enumerate(zip(readings, turn, strict=True)):
            if lesson is not None:
                tokens, wanted = lesson
                memory, reading.mixers, divergence = _distil(model, memory, tokens, wanted, reading.mixers)
                totals[i], counts[i] = totals[i] + divergence, counts[i] + tokens.shape[1]
    for kept, total, count in zip((night.new, night.old), totals, counts, strict=True):
        kept.append(total / max(count, 1))
    return memory


def _distil(
    model: LearningModel, memory: FastWeights, tokens: Tensor, wanted: Tensor, mixers: Any
) -> tuple[FastWeights, Any, float]:
    """One segment: the memory that has learnt to say what is wanted, the mixers' states, and how far it was from it."""
    with torch.enable_grad():
        weights = {name: weight.requires_grad_() for name, weight in _weights(model, memory).items()}
        with model.watch(None) as seen, model.listen() as said:
            logits, _, mixers = run(model, weights, tokens, mixers, None)
        loss = F.kl_div(_log_probabilities(logits), wanted, log_target=True, reduction="sum")
        gradients, felt = slopes(loss, weights, said, blocks(model.levels, model.moves), None)
    count = torch.full((1,), tokens.shape[1], device=tokens.device)
    memory = step(model.levels, gather(memory, gradients, seen, count, count, felt))
    return memory, tree_map(Tensor.detach, mixers), loss.item()


def _weights(model: LearningModel, memory: FastWeights) -> Weights:
    """The weights that levels move, as they stand, without a history."""
    return {name: weight.detach() for name, weight in effective(memory, model.learnable_weights()).items()}


def _log_probabilities(logits: Tensor) -> Tensor:
    """In float32 or better."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
