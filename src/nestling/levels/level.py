"""A level: parameters that move together, at a period of their own, by a rule of their own."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nestling.levels.step_of import StepOf
from nestling.memory import DeltaGradientDescent, GradientDescent, RetainPredictions, RetainSeen

RULES = {
    "GradientDescent": GradientDescent,
    "DeltaGradientDescent": DeltaGradientDescent,
    "RetainSeen": RetainSeen,
    "RetainPredictions": RetainPredictions,
    "StepOf": StepOf,
}


@dataclass(frozen=True)
class Level:
    """One level of a continuum memory (arXiv 2512.24695, Def. 2-3 and Eq. 71).

    period: tokens between two updates; each is a step on the mean gradient of what the period's tokens taught, and there is
        none where they taught nothing.
    lr: step size; 0.0 never moves. A step of `s` on the *sum* of n chunks' mean gradients is `lr = n s` here.
    rule: `GradientDescent()`, `DeltaGradientDescent()`, `RetainSeen(damping, forgetting)`, `RetainPredictions(..)`, or
        `StepOf(optimizer, ..)`, the step of an optimiser. `DeltaGradientDescent` (Eq. 57) erases what the level holds along the
        inputs of its period. While a text is read a level holds its difference `D`, in a chain, where it alone moves a weight,
        as in a superposition: `W_0` is its initial state, to which erasing leads back as resets and decays do, and the shares
        of other levels are theirs. In the parameter regime it holds the weight, and erases it as a whole, as the paper prints it.
    reset: None keeps what was learnt; "context" goes back to the initial state when a context ends; "slower" when the period of
        the next slower level ends; a number in (0, 1) is a decay towards the initial state at every update.
    clip: norm, over all the level's weights, above which the mean gradient is scaled down; None never does. Where a
        stream changes its subject the first gradients are many times the usual ones.
    rank: None moves a weight `[out, in]` in full. A number r moves it by `B A`, `B [out, r]` from zero and `A [r, in]` fixed, so
        that one sequence, or user, costs `B` (`nestling.levels.factor`); it needs learning="context".
    """

    period: int
    lr: float = 0.0
    rule: GradientDescent | DeltaGradientDescent | RetainSeen | RetainPredictions | StepOf = GradientDescent()  # noqa: RUF009 - frozen
    reset: str | float | None = None
    clip: float | None = None
    rank: int | None = None

    def __post_init__(self) -> None:
        if self.period < 1:
            raise ValueError(f"period={self.period} must be at least 1 token")
        if not self.lr >= 0:
            raise ValueError(f"lr={self.lr} must be 0 (never moves) or above")
        if not isinstance(self.rule, tuple(RULES.values())):
            raise ValueError(f"rule={self.rule!r} does not move a level; choose {' or '.join(RULES)}")
        if getattr(self.rule, "momentum", False):
            raise ValueError(f"rule={self.rule!r}: a level takes plain steps; leave out the momentum, or use StepOf")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip={self.clip} must be above 0, or None")
        if self.rank is not None and self.feels:
            raise ValueError(
                f"rank={self.rank} would save little with rule={self.rule!r}, which keeps matrices of the outputs' width; use "
                "RetainSeen(), or rank=None"
            )
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank={self.rank} must be at least 1, or None for a full difference")
        valid_number = isinstance(self.reset, float) and 0 < self.reset < 1
        if not (self.reset is None or self.reset in ("context", "slower") or valid_number):
            raise ValueError(
                f"reset={self.reset!r} is unknown; choose None, 'context', 'slower' or a decay between 0 and 1"
            )

    @property
    def sees(self) -> bool:
        """Whether its rule asks for what goes into the weights that it moves, and not for gradients alone."""
        return isinstance(self.rule, DeltaGradientDescent | RetainSeen | RetainPredictions)

    @property
    def feels(self) -> bool:
        """Whether its rule asks for the gradients at the outputs of the weights that it moves."""
        return isinstance(self.rule, RetainPredictions)

    @property
    def block(self) -> int | None:
        """Over how many neighbours at most its rule gathers moments, None for all."""
        return self.rule.block if isinstance(self.rule, RetainPredictions) else None

    @property
    def forgetting(self) -> float:
        """What is left at an update of what its rule retains."""
        return self.rule.forgetting if isinstance(self.rule, RetainSeen | RetainPredictions) else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a configuration file."""
        settings = self.rule.to_dict() if isinstance(self.rule, StepOf) else dataclasses.asdict(self.rule)
        rule = {"name": type(self.rule).__name__, **settings}
        return {**{field.name: getattr(self, field.name) for field in dataclasses.fields(self)}, "rule": rule}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Level:
        """The inverse of `to_dict`; unknown keys and rules raise ValueError."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(data) - known:
            raise ValueError(f"unknown key {sorted(unknown)} of a level; allowed are {sorted(known)}")
        data = dict(data)
        if isinstance(data.get("rule"), dict):
            rule = dict(data["rule"])
            name = rule.pop("name", None)
            if name not in RULES:
                raise ValueError(f"unknown rule {name!r} of a level; choose {' or '.join(RULES)}")
            try:
                data["rule"] = RULES[name](**rule)
            except TypeError as error:
                raise ValueError(f"rule {name} of a level: {error}") from None
        if "period" not in data:
            raise ValueError(f"a level needs a period in tokens; got {data}")
        return cls(**data)


def as_levels(levels: Sequence[Level | dict[str, Any]]) -> list[Level]:
    """Levels from objects or plain data, checked as a whole: sorted by period, each a multiple of the fastest.

    The period of a level that resets with the next slower one goes into that level's, several times.
    """
    out = [level if isinstance(level, Level) else Level.from_dict(level) for level in levels]
    for faster, slower in itertools.pairwise(out):
        if slower.period < faster.period:
            raise ValueError(f"levels must go from fast to slow; period {slower.period} stands after {faster.period}")
    for level in out:
        if level.period % out[0].period:
            raise ValueError(f"period {level.period} is not a multiple of the fastest level's period {out[0].period}")
    for faster, slower in itertools.zip_longest(out, out[1:]):
        if faster.reset == "slower":
            _check_nesting(faster, slower)
    return out


def _check_nesting(faster: Level, slower: Level | None) -> None:
    if slower is None:
        raise ValueError("the slowest level cannot have reset='slower': no level is slower; use None or 'context'")
    if slower.period % faster.period or slower.period == faster.period:
        raise ValueError(
            f"periods {faster.period} and {slower.period} do not nest; where a level resets with the next slower one, that "
            "one's period must be a multiple of its own, twice at least"
        )


def nested(levels: Sequence[Level | dict[str, Any]]) -> list[Level]:
    """The levels of a nested continuum (Eq. 72): every level but the slowest resets when the next slower one's period ends.

    Raises:
        ValueError: periods that do not nest, or a level that would reset otherwise.
    """
    out = as_levels(levels)
    for level in out[:-1]:
        if level.reset not in (None, "slower"):
            raise ValueError(
                f"reset={level.reset!r} of a level that the nested variant resets with the next slower one; leave it out"
            )
    return as_levels([*(dataclasses.replace(level, reset="slower") for level in out[:-1]), *out[-1:]])
