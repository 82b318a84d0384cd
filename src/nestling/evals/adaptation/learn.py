"""One run: one reader, the whole stream, judged between its stretches."""

from __future__ import annotations

import time
from typing import Any

from nestling.evals.adaptation.readers import Reader
from nestling.evals.adaptation.setup import Texts
from nestling.evals.demo.measures import bits, curve


def run(reader: Reader, texts: Texts) -> dict[str, Any]:
    """Bits a byte of every stretch as it was read, and of both domains before the first and after each.

    seconds: of the processor, for reading and learning; bytes: of state for one user, at the end.
    """
    stretches: dict[str, Any] = {}
    judged = {"": judge(reader, texts)}
    seconds = 0.0
    for name, ids in texts.stretches.items():
        begun = time.process_time()
        losses = reader.observe(ids)
        seconds += time.process_time() - begun
        stretches[name] = {"bits": bits(losses), "last_quarter": bits(losses[3 * len(losses) // 4 :]), **curve(losses)}
        judged[name] = judge(reader, texts)
    return {"stretches": stretches, "judged": judged, "seconds": seconds, "bytes": reader.own_bytes()}


def judge(reader: Reader, texts: Texts) -> dict[str, float]:
    """Bits a byte of text that is not in the stream, as the reader stands and after its context's end."""
    rested = reader.rested()
    after = _judge(rested, texts)
    standing = after if rested is reader else _judge(reader, texts)
    return after | {f"{name}, as it stands": value for name, value in standing.items()}


def _judge(reader: Reader, texts: Texts) -> dict[str, float]:
    return {"old": bits(reader.evaluate(texts.old)), "later": bits(reader.evaluate(texts.later))}
