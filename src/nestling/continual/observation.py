"""What reading a text was like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from nestling.levels import FastWeights, Level, LevelState


@dataclass(frozen=True)
class Observation:
    """What reading a text was like; lists are by level, fast to slow.

    losses: `[n]` nats, one for each token that had a token before it, whatever was to be learnt in its place; each made before
        the token was learnt from.
    surprise: norm of the mean gradient of the level's last update, before its clip (0.0 when it has made none).
    norms: size of the level's last update (0.0 when it has made none).
    updates: how many updates the level has made in all. refused: how many of all levels were not finite and not made.
    """

    losses: Tensor
    surprise: list[float]
    norms: list[float]
    updates: list[int]
    refused: int

    @property
    def tokens(self) -> int:
        """How many tokens were predicted."""
        return len(self.losses)

    @property
    def loss(self) -> float:
        """Mean loss in nats a token (nan when nothing was predicted)."""
        return self.losses.mean().item()

    def record(self) -> dict[str, Any]:
        """Plain data for a log: everything but the single losses, and their number and mean."""
        values = {**asdict(self), "losses": None}
        del values["losses"]
        return {"tokens": self.tokens, "loss": self.loss if self.tokens else None, **values}


@dataclass(frozen=True)
class Standing:
    """Where one level of a user stands; see `nestling.levels.LevelState`."""

    period: int
    lr: float
    updates: int
    refused: int
    surprise: float
    norm: float
    frozen: bool


def standing(level: Level, state: LevelState) -> Standing:
    """Where a level of one row stands."""
    counters = {name: getattr(state, name)[0].item() for name in ("updates", "refused", "surprise", "norm", "frozen")}
    return Standing(level.period, level.lr, **counters)


def observed(losses: Sequence[Tensor], levels: FastWeights) -> Observation:
    """The observation of losses `[n]`, in parts, after which the levels of one row stand so."""
    return Observation(
        torch.cat(list(losses)),
        surprise=[level.surprise[0].item() for level in levels],
        norms=[level.norm[0].item() for level in levels],
        updates=[int(level.updates[0]) for level in levels],
        refused=sum(int(level.refused[0]) for level in levels),
    )
