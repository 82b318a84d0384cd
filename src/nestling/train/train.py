"""Training: one visible loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nestling.errors import UserError
from nestling.levels import LevelOptimizer
from nestling.settings import TrainConfig
from nestling.train.data import batches

if TYPE_CHECKING:
    from nestling.models.learning import LearningModel


@dataclass(frozen=True)
class Progress:
    """One step of training: tokens seen, mean loss in nats a token, norm of the gradient, tokens a second so far."""

    step: int
    tokens: int
    loss: float
    norm: float
    tokens_per_s: float


def train(
    model: LearningModel,
    ids: Tensor,
    config: TrainConfig,
    report: Callable[[Progress], None] | None = None,
    make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None = None,
) -> list[Progress]:
    """Train `model` on the tokens `ids [N]`; `report` is called after every step.

    With `learning="parameter"` the weights that levels move are left to them; an optimiser moves all others.

    make_optimizer: the optimiser of two parameter groups, matrices of linear maps (with weight decay) and everything else
        (without); None is AdamW with the configuration's settings. Rates follow the configuration's schedule.

    Raises:
        UserError: the loss is not finite (the message says at which step), or the text is too short.
    """
    levels = model.level_optimizer() if _by_levels(model) else None
    groups = _groups(model, levels, config.weight_decay)
    optimizer = (make_optimizer or (lambda g: torch.optim.AdamW(g, lr=config.lr, betas=config.betas)))(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config))
    history, begun = [], time.perf_counter()
    model.train()
    for step, window in enumerate(batches(ids, config.batch_size, config.length, config.steps, config.seed), start=1):
        window = window.to(model.device)
        with levels.watch() if levels else torch.enable_grad():
            loss = model(window, labels=window).loss
        if not loss.isfinite():
            raise UserError(f"the loss is {loss.item()} at step {step}; try a lower lr than {config.lr}")
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        if levels:
            levels.step(tokens=window.numel())
        optimizer.zero_grad()
        schedule.step()
        seen = step * window.numel()
        history.append(Progress(step, seen, loss.item(), norm.item(), seen / (time.perf_counter() - begun)))
        if report:
            report(history[-1])
    model.eval()
    return history


def _by_levels(model: LearningModel) -> bool:
    return bool(model.levels) and model.config.learning == "parameter"


def _rate(step: int, config: TrainConfig) -> float:
    """Share of the learning rate at a step: linear warm-up, then a cosine to a tenth."""
    warmup = max(1, round(config.warmup * config.steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress)))


def _groups(model: LearningModel, levels: LevelOptimizer | None, decay: float) -> list[dict[str, Any]]:
    """Parameters with weight decay (the matrices of linear maps) and without (everything else)."""
    left = {id(levels.weights[name]) for name in levels.moved} if levels else set()
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    ours = [p for p in model.parameters() if p.requires_grad and id(p) not in left]
    decayed = [p for p in ours if id(p) in linear]
    return [
        {"params": decayed, "weight_decay": decay},
        {"params": [p for p in ours if id(p) not in linear], "weight_decay": 0.0},
    ]
