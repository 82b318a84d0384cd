"""The model that reads: trained once on documents of other languages, so that it knows their form and how to use them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestling.errors import UserError
from nestling.evals.demo.trained import once
from nestling.evals.languages.lessons import FIRST, Lesson, answers, rows
from nestling.evals.languages.words import VOCABULARY
from nestling.levels import Level
from nestling.models import HopeConfig, HopeForCausalLM

SOURCE = 0.1  # weight of a token that is no answer: most of them are drawn at random


@dataclass(frozen=True)
class Backbone:
    """width, blocks, heads: of the model. lr: highest rate of AdamW. lessons: one after the other."""

    width: int
    blocks: int
    heads: int
    lr: float
    lessons: tuple[Lesson, ...]

    def config(self, levels: tuple[Level, ...] = (), learning: str = "off") -> HopeConfig:
        """With superposed levels, which have no weights of their own."""
        return HopeConfig(
            vocab_size=len(VOCABULARY), hidden_size=self.width, num_hidden_layers=self.blocks,
            num_attention_heads=self.heads, mixer="gated_deltanet", tie_word_embeddings=False,
            levels=[*levels], level_variant="superposed", learnt="all" if levels else "mlp", learning=learning,
        )  # fmt: skip


def trained(backbone: Backbone, seed: int, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """How the training went; the model is in `folder` afterwards, and is not trained again."""

    def work() -> dict[str, Any]:
        torch.manual_seed(seed)
        model = HopeForCausalLM(backbone.config())
        curve = train(model, backbone, seed, say)
        model.save_pretrained(folder / "model")
        return {"parameters": sum(p.numel() for p in model.parameters()), "curve": curve}

    folder.mkdir(parents=True, exist_ok=True)
    return once(folder / "training.json", work)


def with_levels(backbone: Backbone, folder: Path, levels: tuple[Level, ...]) -> HopeForCausalLM:
    """The trained weights under levels; none of them learns nothing."""
    model = HopeForCausalLM(backbone.config(levels, "context" if levels else "off"))
    model.load_state_dict(HopeForCausalLM.from_pretrained(folder / "model").state_dict())
    return model.eval()


def train(model: HopeForCausalLM, backbone: Backbone, seed: int, say: Callable[[str], None]) -> list[dict[str, float]]:
    """AdamW, a rate that rises and falls as a cosine, every document once. Returns loss and tokens by step, every 50.

    Raises:
        UserError: the loss is not finite.
    """
    total = sum(lesson.steps for lesson in backbone.lessons)
    optimizer = torch.optim.AdamW(model.parameters(), lr=backbone.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(step, total))
    curve, tokens = [], 0
    model.train()
    for step, ids in enumerate(batches(backbone.lessons, seed), start=1):
        loss = weighted(model(ids[:, :-1]).logits, ids)
        if not loss.isfinite():
            raise UserError(f"the loss is {loss.item()} at step {step}; try a lower lr than {backbone.lr}")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        tokens += ids[:, 1:].numel()
        if step % 50 == 0 or step == total:
            curve.append({"step": step, "tokens": tokens, "loss": loss.item()})
            say(f"backbone, step {step} of {total}: {tokens:,} tokens, loss {loss.item():.3f}")
    model.eval()
    return curve


def batches(lessons: tuple[Lesson, ...], seed: int) -> Iterator[Tensor]:
    """`[batch, length]` after each other, no language twice; those of another seed are others."""
    first = FIRST * (1 + seed)
    for lesson in lessons:
        for _ in range(lesson.steps):
            yield rows(first, lesson)
            first += lesson.batch


def share(step: int, steps: int) -> float:
    """Of the rate: a linear rise over 50 steps, and a cosine to a tenth."""
    return min(1.0, (step + 1) / 50) * (0.55 + 0.45 * math.cos(math.pi * step / steps))


def weighted(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean loss of `ids [B, L + 1]` in nats, what is no answer weighted less; `logits [B, L, V]` are of all but the last."""
    weight = torch.where(answers(ids)[:, 1:], 1.0, SOURCE)
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * weight.flatten()).sum() / weight.sum()
