"""Tuning that evaluations of many methods share: settings tried on a stream of their own, the best one judged on others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nestling.errors import UserError

Setting = dict[str, Any]
TUNING = 100  # seed of the stream to tune on; those to judge by are others


def judging(seeds: Sequence[int] | None, usual: Sequence[int]) -> list[int]:
    """The seeds to judge by; None is the usual ones. Raises UserError where there is none, one comes twice, or one is tuned on."""
    seeds = list(usual if seeds is None else seeds)
    if not seeds or len(set(seeds)) < len(seeds) or TUNING in seeds:
        raise UserError(f"seeds={seeds} must be some numbers, each once, and not {TUNING}, which is tuned on")
    return seeds


def spread(settings: tuple[Setting, ...], count: int | None) -> tuple[Setting, ...]:
    """Those that are tried: all, or about so many, spread over them."""
    step = 1 if count is None else -(-len(settings) // count)
    return settings[step // 2 :: step]


def told(setting: Setting) -> str:
    """In words."""
    return ", ".join(f"{key} {value if isinstance(value, str) else f'{value:g}'}" for key, value in setting.items())


def at_edge(setting: Setting, every: Sequence[Setting]) -> bool:
    """Whether a number of which at least three were tried is the smallest or largest of them."""
    numbers = [key for key, value in setting.items() if not isinstance(value, str)]
    tries = {key: sorted({other[key] for other in every}) for key in numbers}
    return any(len(tried) > 2 and setting[key] in (tried[0], tried[-1]) for key, tried in tries.items())
