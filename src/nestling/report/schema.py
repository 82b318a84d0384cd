"""The shape a results dictionary must have, checked once so that no table or figure has to wonder.

A report is often made long after the run and by another version, so what does not fit is refused by name rather than
drawn half.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

VERSION = 1
REQUIRED = ("title", "command", "date", "environment", "seeds", "data", "models", "learners")
MODEL_VALUES = ("heldout_bpb", "tokens_per_s", "peak_memory_mb")
LEARNER_VALUES = ("last_quarter_bpb", "old_before_bpb", "old_after_bpb", "later_bpb", "tokens_per_s", "peak_memory_mb")

Results = dict[str, Any]


def check(results: Results) -> Results:
    """The results, unchanged, or a ValueError that says what does not fit."""
    _check_version(results)
    missing = [key for key in REQUIRED if key not in results]
    if missing:
        raise ValueError(f"The results lack {', '.join(missing)}: make them again with `nestling demo`.")
    seeds = len(results["seeds"])
    for model in results["models"]:
        _check_seeds(f"model {model['name']!r}", model, MODEL_VALUES, seeds)
        _check_curve(f"model {model['name']!r}, curve", model.get("curve"), seeds)
    for learner in results["learners"]:
        _check_seeds(f"learner {learner['name']!r}", learner, LEARNER_VALUES, seeds)
        _check_curve(f"learner {learner['name']!r}, stream", learner.get("stream"), seeds)
        for level, norms in (learner.get("updates") or {}).items():
            where = f"learner {learner['name']!r}, updates of level {level!r}"
            _check_rows(where, norms, seeds, len(norms[0]) if norms else 0)
    return results


def _check_version(results: Results) -> None:
    given = results.get("schema") if isinstance(results, dict) else type(results).__name__
    if given != VERSION:
        raise ValueError(
            f"These results have schema {given!r}; this version of nestling reads schema {VERSION}. "
            "Make them again with `nestling demo`, or use the version of nestling that wrote them."
        )


def _check_seeds(where: str, part: Results, keys: Sequence[str], seeds: int) -> None:
    for key in keys:
        if key not in part:
            raise ValueError(f"{where} has no {key}: give a list with one value per seed ({seeds}).")
        if len(part[key]) != seeds:
            raise ValueError(f"{where}: {key} has {len(part[key])} values for {seeds} seeds; give one per seed.")


def _check_curve(where: str, curve: Results | None, seeds: int) -> None:
    if curve:
        _check_rows(where, curve["bpb"], seeds, len(curve["tokens"]))


def _check_rows(where: str, rows: Sequence[Sequence[float]], seeds: int, length: int) -> None:
    lengths = [len(row) for row in rows]
    if lengths != [length] * seeds:
        raise ValueError(f"{where}: curves of lengths {lengths}; give {seeds} (one per seed) of length {length}.")
