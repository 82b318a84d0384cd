"""Reading with fast weights that learn: the context regime of the continuum memory (arXiv 2512.24695, Eq. 71).

A sequence is read in segments of the fastest level's period P. The prediction of the token at a boundary is still
made by the old weights and counts in their loss; then, before that token is read, the levels move:

    segment s reads tokens  sP .. sP+P-1   and is judged on  sP+1 .. sP+P

The stream is its own label, or it comes with lessons: in each token's place what should have been predicted there.

What happens to one segment, and what of it the outer gradient sees, is in `segment.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nestling.levels import FastWeights, blocks, effective, gather, initial
from nestling.models.cache import HopeCache, Segment, Session
from nestling.models.segment import IGNORED, learn_segment, run, slopes, taught, weights_now
from nestling.ops.ragged import Piece, join, pieces, real_tokens
from nestling.ops.state import tree_map

if TYPE_CHECKING:
    from nestling.models.learning import LearningModel


def read(
    model: LearningModel, ids: Tensor, lessons: Tensor, lengths: Tensor | None, cache: HopeCache, keep: int = 0
) -> tuple[Tensor, Tensor]:
    """Logits `[B, L, V]` of left-aligned tokens `[B, L]`, and what the head was given `[B, L, D]`; the cache's session and memory
    move on.

    lessons: `[B, L]`, what is learnt to be predicted in each token's place, -100 for nothing.
    lengths: `[B]` int64 on the CPU, the real tokens of each row, None for all.
    keep: of how many of the last tokens both are wanted; those before may then be left out. 0 wants all.
    """
    batch, length = ids.shape
    period = model.levels[0].period
    session = cache.session or start_session(model, batch)
    if session.segment is None:
        raise ValueError("this cache was begun with learning='off'; begin a new one to learn")
    if cache.memory is None:
        cache.memory = initial(model.levels, model.moves, model.learnable_weights(), batch)
    cache.memory = _for_rows(cache.memory, batch)
    outputs: list[tuple[Tensor, ...]] = []
    cut = pieces(session.segment.count % period, lengths, length, period)
    for piece in cut:
        tokens, taught = piece.take(ids), piece.take(lessons)
        session = _learn_full(model, session, cache, taught[:, 0], piece.count > 0)
        after = int(piece.start[0]) + piece.width
        if piece.uniform and piece.width == period and after < length:
            labels = lessons[:, after - period + 1 : after + 1]
            *found, session = _read_and_learn(model, tokens, labels, session, cache)
        else:
            *found, session = _read_on(model, tokens, taught, piece, session, cache)
        early = length - keep - int(piece.start[0]) if keep and piece.uniform else 0
        outputs.append(tuple(x[:, early:].clone() if early > 0 else x for x in found))
    cache.session = session
    logits, hidden = (join([*parts], cut, length) for parts in zip(*outputs, strict=True))
    return logits, hidden


def _for_rows(memory: FastWeights, batch: int) -> FastWeights:
    """A memory of one row serves every row of a batch (beams, samples): each goes on with a copy of its own."""
    rows = memory[0].gathered.shape[0]
    if rows == batch:
        return memory
    if rows != 1:
        raise ValueError(f"the memory has {rows} rows and the input {batch}; give every sequence a memory of its own")
    return tuple(level.select(torch.zeros(batch, dtype=torch.int64)) for level in memory)


def start_session(model: LearningModel, batch: int) -> Session:
    """Nothing read yet."""
    mixers = model.begin(batch)
    period = model.levels[0].period
    tokens = torch.zeros(batch, period, dtype=torch.int64, device=model.device)
    return Session(mixers, Segment(tokens, tokens, torch.zeros(batch, dtype=torch.int64), mixers))


def _empty_segment(segment: Segment, mixers: tuple[Any, ...]) -> Segment:
    return replace(segment, count=torch.zeros_like(segment.count), mixers=mixers)


def flush(model: LearningModel, cache: HopeCache) -> None:
    """Learn from the unfinished segment, whose last token has no label: a context ends and nothing read is lost."""
    if cache.session is None or cache.session.segment is None:
        return
    segment = cache.session.segment
    cache.memory = _learn(model, segment, None, segment.count > 1, cache.memory)
    mixers = cache.session.mixers
    cache.session = Session(mixers, _empty_segment(segment, mixers))


def _read_on(
    model: LearningModel, tokens: Tensor, lessons: Tensor, piece: Piece, session: Session, cache: HopeCache
) -> tuple[Tensor, Tensor, Session]:
    """Read a stretch inside a segment and remember its tokens and lessons."""
    assert session.segment is not None and cache.memory is not None
    lengths = None if piece.mask(tokens.device) is None else piece.count
    logits, hidden, mixers = run(model, weights_now(model, cache.memory), tokens, session.mixers, lengths)
    segment = session.segment
    places = segment.count[:, None] + torch.arange(piece.width)
    real = real_tokens(piece.count, piece.width)
    spare = segment.tokens.shape[1]  # one more column takes the padding
    places = torch.where(real, places, spare).to(tokens.device)

    def kept(old: Tensor, new: Tensor) -> Tensor:
        return F.pad(old, (0, 1)).scatter(1, places, new)[:, :-1]

    tokens, lessons = kept(segment.tokens, tokens), kept(segment.lessons, lessons)
    return logits, hidden, Session(mixers, Segment(tokens, lessons, segment.count + piece.count, segment.mixers))


def _read_and_learn(
    model: LearningModel, tokens: Tensor, labels: Tensor, session: Session, cache: HopeCache
) -> tuple[Tensor, Tensor, Session]:
    """Read a whole segment, all of whose labels are here, and move the levels: one pass forward, one back."""
    assert session.segment is not None and cache.memory is not None
    logits, hidden, mixers, cache.memory = learn_segment(model, tokens, labels, None, session.mixers, cache.memory)
    return logits, hidden, Session(mixers, _empty_segment(session.segment, mixers))


def _learn_full(model: LearningModel, session: Session, cache: HopeCache, label: Tensor, coming: Tensor) -> Session:
    """In rows whose segment is full and whose next token is here: learn the segment, and begin a new one."""
    segment = session.segment
    assert segment is not None
    rows = (segment.count == segment.tokens.shape[1]) & coming
    if not bool(rows.any()):
        return session
    cache.memory = _learn(model, segment, label, rows, cache.memory)
    if bool(rows.all()):
        return Session(session.mixers, _empty_segment(segment, session.mixers))
    starts = tuple(now.where(rows, old) for now, old in zip(session.mixers, segment.mixers, strict=True))
    return Session(session.mixers, replace(segment, count=torch.where(rows, 0, segment.count), mixers=starts))


def _learn(
    model: LearningModel, segment: Segment, label: Tensor | None, rows: Tensor, memory: FastWeights | None
) -> FastWeights | None:
    """Read a remembered segment again, from where it started, for its gradient. Only `rows [B]` learn."""
    if memory is None or not bool(rows.any()):
        return memory
    count = segment.count if label is not None else (segment.count - 1).clamp_min(0)  # inputs that have a label
    count = torch.where(rows, count, 0)
    width = int(count.max())
    tokens = segment.tokens[:, :width]
    last = label[:, None] if label is not None else segment.lessons[:, :1]
    following = torch.cat([segment.lessons, last], dim=1)[:, 1 : width + 1]
    if label is not None:  # the label follows the last token of the row, wherever that is
        following = following.scatter(1, (count - 1).clamp_min(0)[:, None].to(tokens.device), last)
    # the outer gradient of what it says comes from when it was first read; only that of the update can be missing
    with torch.set_grad_enabled(torch.is_grad_enabled() and model.config.outer_gradient == "second-order"):
        return learn_segment(model, tokens, following, count, segment.mixers, memory)[3]


def calibrate(model: LearningModel, ids: Tensor, memory: FastWeights | None) -> FastWeights:
    """Enter the inputs that reading `ids [B, L]` gives every moved weight as seen, and the gradients at its outputs as felt
    where a rule asks for them. No weight moves.
    """
    with torch.inference_mode(False), torch.no_grad():
        return _calibrate(model, ids.clone() if ids.is_inference() else ids, memory)


def _calibrate(model: LearningModel, ids: Tensor, memory: FastWeights | None) -> FastWeights:
    memory = memory or initial(model.levels, model.moves, model.learnable_weights(), ids.shape[0])
    mixers = model.begin(ids.shape[0])
    weights = effective(memory, model.learnable_weights())
    period, cut = model.levels[0].period, blocks(model.levels, model.moves)
    following = F.pad(ids[:, 1:], (0, 1), value=IGNORED)
    for tokens, labels in zip(ids.split(period, dim=1), following.split(period, dim=1), strict=True):
        with torch.set_grad_enabled(any(level.feels for level in model.levels)), model.watch(None) as seen:
            with model.listen() as said:
                logits, _, mixers = model.run(weights, tokens, mixers, None)
            _, felt = slopes(taught(logits, labels), {}, said, cut, None) if said else ({}, {})
        mixers = tree_map(Tensor.detach, mixers)
        count = torch.full((ids.shape[0],), tokens.shape[1], device=ids.device)
        memory = gather(memory, None, seen, count, count, felt)
    return memory
