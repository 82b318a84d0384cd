"""Settings of the command line and of training: plain dataclasses, so that reading a TOML file imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from nestling.errors import UserError


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Args:
        tokens: tokens to see, in windows of `length`, `batch_size` at a time.
        batch_size: windows a step.
        length: tokens a window.
        lr: highest learning rate of AdamW; it rises over a share `warmup` of the steps and falls as a cosine to a tenth.
        weight_decay: on the matrices of linear maps.
        warmup: see lr.
        betas: of AdamW.
        clip: norm of the gradient above which it is scaled down.
        seed: of the windows' places.
    """

    tokens: int = 1_000_000
    batch_size: int = 4
    length: int = 256
    lr: float = 3e-3
    weight_decay: float = 0.1
    warmup: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens", "batch_size", "length", "lr", "clip"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}={getattr(self, name)} must be above 0")

    @property
    def steps(self) -> int:
        """How many steps see `tokens` tokens."""
        return max(1, round(self.tokens / (self.batch_size * self.length)))


@dataclass(frozen=True)
class LevelSettings:
    """One level; see `nestling.Level`.

    Args:
        period: tokens between two updates.
        lr: step on the mean gradient of a period.
        rule: GradientDescent, DeltaGradientDescent, RetainSeen, RetainPredictions, or a rule with its settings:
            {"name": "RetainPredictions", "damping": 0.3, "output_damping": 0.3}, {"name": "StepOf", "optimizer": "M3"}.
        damping, forgetting: of RetainSeen and RetainPredictions; none is the rule's own.
        reset: nothing, "context", "slower", or a decay per update.
        clip: largest norm of a gradient.
        rank: of the differences; none is full. Small ranks make small memory files.
    """

    period: int
    lr: float
    rule: str | dict[str, Any] = "GradientDescent"
    damping: float | None = None
    forgetting: float | None = None
    reset: str | float | None = None
    clip: float | None = None
    rank: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The plain data of a `nestling.Level`."""
        rule = {"name": self.rule} if isinstance(self.rule, str) else dict(self.rule)
        given = {name: getattr(self, name) for name in ("damping", "forgetting")}
        rule |= {name: value for name, value in given.items() if value is not None}
        rest = {name: getattr(self, name) for name in ("period", "lr", "reset", "clip", "rank")}
        return {**rest, "rule": rule}


def two_levels() -> list[LevelSettings]:
    """A fast level that resets over a slow one that protects what was seen."""
    fast = LevelSettings(256, 0.4, reset="context", clip=0.5)
    return [fast, LevelSettings(2048, 40.0, rule={"name": "RetainSeen", "damping": 5e-3}, clip=0.5)]


@dataclass(frozen=True)
class ModelSettings:
    """The model; see `nestling.HopeConfig`.

    Args:
        mixer: self_modifying_titans or attention.
        hidden_size: width.
        num_hidden_layers: blocks.
        num_attention_heads: heads of the mixer.
        intermediate_size: hidden width of the MLPs; none is 8/3 of the width.
        memory_hidden: hidden width of each memory of self-modifying Titans, per head; none is the head width.
            Attention has none.
        chunk_size: of self-modifying Titans.
        sliding_window: tokens that attention sees; none sees all.
        levels: from fast to slow.
        level_variant: superposed, sequential, nested or independent.
        learnt: all, blocks, mlp, last_quarter, or block numbers.
        recall: how many of the last predictions are kept as they were; none keeps none. See `nestling.Recall`.
    """

    mixer: str = "self_modifying_titans"
    hidden_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 1
    intermediate_size: int | None = None
    memory_hidden: int | None = 32
    chunk_size: int = 64
    sliding_window: int | None = None
    levels: list[LevelSettings] = field(default_factory=two_levels)
    level_variant: str = "superposed"
    learnt: str | list[int] = "all"
    recall: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Arguments of `nestling.HopeConfig`."""
        settings = {**asdict(self), "levels": [level.to_dict() for level in self.levels]}
        settings["recall"] = None if self.recall is None else {"window": self.recall}
        if self.mixer == "attention":
            del settings["memory_hidden"]
        return settings
