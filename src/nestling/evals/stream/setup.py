"""The model that reads, and how much."""

from __future__ import annotations

from dataclasses import dataclass

from nestling.levels import Level
from nestling.models import HopeConfig, Recall
from nestling.settings import TrainConfig

PERIOD = 1024


@dataclass(frozen=True)
class Size:
    """How much, in bytes (a token is a byte).

    tokens: of the stream. every: between two checkpoints. kills: how often the process that reads is killed. prefix: of the
    same stream, read once more and never interrupted, to compare with; the first kill is within it. lessons: that the model is
    trained on before.
    """

    tokens: int = 10_000_000
    every: int = 50_000
    kills: int = 3
    prefix: int = 300_000
    lessons: int = 1_000_000


SIZES = {"quick": Size(65_536, 8_192, 1, 40_960, 16_384), "default": Size()}


def config() -> HopeConfig:
    """A Hope of a million parameters. Its memories fade to their initial weights: one that fades to zero is lost after some ninety of
    its horizons, and arithmetic on what is left of it is slow. Its levels decay to what was trained, over ten and fifty of their
    periods: without that a few million tokens of other text wear out what it was trained for.
    """
    return HopeConfig(
        hidden_size=128,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=2304,
        memory_hidden=32,
        memory_retention="initial",
        memory_horizons=(2048, 2048),
        chunk_size=128,
        levels=[Level(PERIOD, lr=0.03, clip=0.5, reset=0.9), Level(8 * PERIOD, lr=0.03, clip=0.5, reset=0.98)],
        level_variant="superposed",
        learnt="last_quarter",
        recall=Recall(window=2048),
    )


def training(size: Size) -> TrainConfig:
    """How it is trained: through its recall, over windows in which numbers return."""
    return TrainConfig(tokens=size.lessons, batch_size=4, length=512, lr=4e-3)
