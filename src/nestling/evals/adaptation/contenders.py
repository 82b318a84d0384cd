"""The methods, and the settings that each is swept over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from nestling.continual.baselines import (
    DynamicEvaluation,
    ElasticWeights,
    FineTuning,
    Frozen,
    LoRA,
    Replay,
    alike,
    root_mean_squares,
)
from nestling.evals.adaptation.readers import Following, Reader, learning
from nestling.evals.adaptation.setup import FAST, PERIOD, RECALL, SLOW
from nestling.evals.demo import setup as demo
from nestling.levels import Level
from nestling.models import HopeForCausalLM, Recall

Setting = dict[str, float]
Optimizer = Callable[[float], FineTuning]


@dataclass(frozen=True)
class Contender:
    """make: a reader from a model, a sample of the old domain and a setting. settings: those tried, by their step first.
    levels: of a learner of this library; none of a baseline. recall: of both, beside what the setting says of it.
    """

    make: Callable[[HopeForCausalLM, Tensor, Setting], Reader]
    settings: tuple[Setting, ...]
    levels: tuple[Level, ...] = ()
    recall: Recall | None = None


def sgd(lr: float) -> FineTuning:
    """Gradient descent."""
    return FineTuning(lambda weights: torch.optim.SGD(weights, lr=lr))


def adamw(lr: float) -> FineTuning:
    """AdamW without weight decay, which would be forgetting of its own."""
    return FineTuning(lambda weights: torch.optim.AdamW(weights, lr=lr, weight_decay=0.0))


def root_mean_square(setting: Setting) -> DynamicEvaluation:
    """Dynamic evaluation with steps divided by the root mean square of the gradients of what was known."""
    return DynamicEvaluation(setting["lr"], setting["decay"], root_mean_squares(PERIOD), epsilon=0.1)


def following(make: Callable[[Setting], Any], recall: Recall | None = None, **swept: tuple[float, ...]) -> Contender:
    """A baseline, at every combination of what is swept."""

    def reader(model: HopeForCausalLM, sample: Tensor, setting: Setting) -> Reader:
        return Following(model, make(setting), sample, recall)

    return Contender(reader, grid(**swept), recall=recall)


def recalling(**swept: tuple[float, ...]) -> Contender:
    """A recall over a model that stands still, at every combination of its settings: a continuous cache."""

    def reader(model: HopeForCausalLM, sample: Tensor, setting: Setting) -> Reader:
        return Following(model, Frozen(), sample, replace(RECALL, **setting))

    return Contender(reader, grid(**swept), recall=RECALL)


def levels(*given: Level, factors: tuple[float, ...], recall: Recall | None = None) -> Contender:
    """A learner whose levels' rates are all multiplied by the same factor."""

    def make(model: HopeForCausalLM, sample: Tensor, setting: Setting) -> Reader:
        scaled = [replace(level, lr=level.lr * setting["factor"]) for level in given]
        return learning(model, scaled, sample, recall)

    return Contender(make, grid(factor=factors), given, recall)


def replaying(tuning: Optimizer, **swept: tuple[float, ...]) -> Contender:
    """Replay from a buffer as large as the weights: it keeps all of the sample and the stream, and a larger one, of the
    bytes that two levels own, would hold the same.
    """

    def make(model: HopeForCausalLM, sample: Tensor, setting: Setting) -> Reader:
        return Following(model, Replay(tuning(setting["lr"]), weight_bytes(model), PERIOD), sample)

    return Contender(make, grid(**swept))


def weight_bytes(model: nn.Module) -> int:
    """Of all weights."""
    return sum(weight.nbytes for weight in model.parameters())


def grid(**swept: tuple[float, ...]) -> tuple[Setting, ...]:
    """Every combination."""
    return tuple(dict(zip(swept, values, strict=True)) for values in product(*swept.values()))


SGD_RATES = (0.05, 0.1, 0.2, 0.4, 0.8)
ADAMW_RATES = (1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
RMS_RATES = (0.1, 0.2, 0.4, 0.8, 1.6)
# decays of dynamic evaluation and strengths of EWC: the best of wider sweeps on another stream (docs/LOG.md)

CONTENDERS: dict[str, Contender] = {
    "frozen": following(lambda s: Frozen()),
    "SGD": following(lambda s: sgd(s["lr"]), lr=SGD_RATES),
    "AdamW": following(lambda s: adamw(s["lr"]), lr=ADAMW_RATES),
    "LoRA": following(lambda s: LoRA(adamw(s["lr"])), lr=(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)),
    "dynamic evaluation": following(lambda s: DynamicEvaluation(s["lr"], 0.001, alike), lr=SGD_RATES),
    "dynamic evaluation, RMS": following(root_mean_square, lr=RMS_RATES, decay=(0.001, 0.003)),
    "EWC": following(lambda s: ElasticWeights(sgd(s["lr"]), s["strength"], PERIOD), lr=SGD_RATES, strength=(0.01, 0.1)),
    "replay, SGD": replaying(sgd, lr=SGD_RATES),
    "replay, AdamW": replaying(adamw, lr=ADAMW_RATES),
    "two levels, outputs retained": levels(demo.FAST, demo.SLOW, factors=(0.25, 0.5, 1.0, 2.0, 4.0)),
    "fast level": levels(FAST, factors=(0.5, 0.75, 1.0, 1.5, 2.0, 3.0)),
    "slow level": levels(SLOW, factors=(0.25, 0.5, 1.0, 1.5, 2.0)),
    "two levels": levels(FAST, SLOW, factors=(0.25, 0.5, 0.75, 1.0, 1.25, 1.5)),
    "recall": recalling(share=(0.3, 0.45, 0.6, 0.75, 0.9), sharpness=(30.0, 45.0)),
    "recall, SGD": following(lambda s: sgd(s["lr"]), RECALL, lr=SGD_RATES),
    "recall, dynamic evaluation, RMS": following(root_mean_square, RECALL, lr=RMS_RATES, decay=(0.001,)),
    "recall, two levels, outputs retained": levels(
        demo.FAST, demo.SLOW, factors=(0.25, 0.5, 1.0, 2.0, 4.0), recall=RECALL
    ),
    "recall, fast level": levels(FAST, factors=(0.5, 0.75, 1.0, 1.5, 2.0), recall=RECALL),
    "recall, slow level": levels(SLOW, factors=(0.25, 0.5, 1.0, 1.5, 2.0), recall=RECALL),
    "recall, two levels": levels(FAST, SLOW, factors=(0.25, 0.5, 0.75, 1.0, 1.25), recall=RECALL),
}
