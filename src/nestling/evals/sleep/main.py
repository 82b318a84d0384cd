"""Sleep as one command: a learner reads the new domain, and from there has every night; no seed runs twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nestling.errors import UserError
from nestling.evals.adaptation.models import folder_of, parameters, place_of, ready
from nestling.evals.adaptation.readers import Learning, learning
from nestling.evals.adaptation.setup import FAST, SLOW, Texts, texts
from nestling.evals.demo.measures import bits
from nestling.evals.runs import kept, side_by_side, where, write
from nestling.evals.sleep.setup import BEGIN, PIECE, SIZES, STORED, Night, Size

MODEL = "Transformer++"
# rates at three quarters: at their own a seed in three runs off (docs/LOG.md)
LEVELS = tuple(replace(level, lr=0.75 * level.lr) for level in (FAST, SLOW))


def sleep(size_name: str, out: str, jobs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Results by night, also in `out`/results.json. What is there already is not run again.

    Raises:
        UserError: fewer than one job.
    """
    if jobs < 1:
        raise UserError(f"jobs={jobs} must be at least 1")
    size = SIZES[size_name]
    models = size.adaptation.models
    folder, seeds = folder_of(out, models), models.seeds
    for (_, seed, *_), count in side_by_side(parameters, [(MODEL, s, folder, models) for s in seeds], jobs):
        say(f"{MODEL}, seed {seed}: {count:,} parameters, trained")
    found: dict[int, Any] = {}
    for (seed, *_), met in side_by_side(_once, [(seed, folder, size) for seed in seeds], jobs):
        found[seed] = met
        say(f"seed {seed}: {len(met['nights'])} nights, later text {met['awake']['later']:.3f} bits a byte before them")
    results = {
        "title": "Sleep: what is kept when a context ends",
        "about": f"{where()}, one thread a run",
        "seeds": list(seeds),
        "read": len(texts(size.adaptation).stretches["B"]),
        "nights": [
            {"name": night.name, "tokens": night.tokens, "passes": night.passes, "stored": night.stored()}
            for night in size.nights()
        ],
        "runs": [found[seed] for seed in seeds],
    }
    write(Path(out) / "results.json", results)
    return results


def _once(seed: int, folder: Path, size: Size) -> dict[str, Any]:
    """All nights of one seed, unless they were run before."""

    def make() -> dict[str, Any]:
        data = texts(size.adaptation)
        model, _ = ready(MODEL, seed, folder, size.adaptation.models)
        return nights(learning(model, LEVELS, data.sample), data, size.nights(), seed)

    return kept(place_of(MODEL, seed, folder), f"sleep {size} {LEVELS} {BEGIN!r} {PIECE}", make)


def nights(reader: Learning, data: Texts, wanted: list[Night], seed: int) -> dict[str, Any]:
    """Both domains judged before anything is read, awake after the stream, and after each night. Times are the processor's."""
    frozen = _judged(reader, data)
    begun = time.process_time()
    reader.observe(data.stretches["A"])
    losses = reader.observe(data.stretches["B"])
    seconds = time.process_time() - begun
    awake = _judged(reader, data) | {"stream": bits(losses), "seconds": seconds}
    return {"frozen": frozen, "awake": awake, "nights": [_night(reader, data, night, seed) for night in wanted]}


def _night(reader: Learning, data: Texts, night: Night, seed: int) -> dict[str, Any]:
    """One night of a copy of the reader's user."""
    learner, user = reader.learner, "asleep"
    learner.forget(user)
    learner.fork(reader.user, user)
    begun = time.process_time()
    distances: dict[str, list[float]] = {}
    if night.new is None:
        learner.end_context(user)
    else:
        new, old = (
            _pieces(text, night.tokens, seed) if source == STORED else None
            for source, text in ((night.new, data.stretches["B"]), (night.old, data.sample))
        )
        slept = learner.sleep(user, new, old, night.passes, BEGIN, night.tokens, seed)
        distances = {"new": slept.new, "old": slept.old}
    seconds = time.process_time() - begun
    return _judged(Learning(learner, user), data) | {"seconds": seconds, "distances": distances}


def _pieces(text: Tensor, tokens: int, seed: int) -> list[Tensor]:
    """So many tokens of a text, in whole pieces of it drawn without replacement."""
    pieces = text.split(PIECE)
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(seed)).tolist()
    return [pieces[i] for i in order[: -(-tokens // PIECE)]]


def _judged(reader: Learning, data: Texts) -> dict[str, float]:
    """Bits a byte of text that is not in the stream."""
    return {"old": bits(reader.evaluate(data.old)), "later": bits(reader.evaluate(data.later))}
