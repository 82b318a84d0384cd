"""Train an arm from the weights that all start from; read documents with what came out, learning and not."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nestling.evals.demo.measures import bits
from nestling.evals.meta_learning.setup import Arm, Setting, Size, cost
from nestling.levels import Level
from nestling.models import HopeConfig, HopeForCausalLM
from nestling.train import TrainConfig, train

PIECE = 1024  # bytes of one call without learning, in which attention forms all pairs


def under(model: HopeForCausalLM, level: Level, outer: str | None, learning: str) -> HopeForCausalLM:
    """The same weights under one level, which moves the MLPs as TTT-E2E does (arXiv 2512.23675)."""
    config = copy.deepcopy(model.config)
    assert isinstance(config, HopeConfig)  # transformers declares its base class
    config.levels, config.learnt, config.learning = [level.to_dict()], "mlp", learning
    config.outer_gradient = outer or "none"
    other = HopeForCausalLM(config)
    other.load_state_dict(model.state_dict())
    return other.eval()


def trained(
    model: HopeForCausalLM, arm: Arm, setting: Setting, size: Size, ids: Tensor, seed: int
) -> tuple[HopeForCausalLM, dict[str, Any]]:
    """The model after the arm's training, and what it cost: bytes read, passes, steps, seconds of the processor.

    Raises:
        UserError: the loss was not finite.
    """
    tokens = size.tokens(arm)
    spent = {"bytes": tokens, "passes": tokens * cost(arm.outer), "steps": tokens // (size.batch * size.length)}
    if not tokens:
        return model, {**spent, "seconds": 0.0}
    learner = under(model, size.level(setting.inner or 0.0), arm.outer, "context" if arm.outer else "off")
    config = TrainConfig(tokens, size.batch, size.length, lr=setting.lr, seed=1000 + seed)  # other places than before
    begun = time.process_time()
    train(learner, ids, config)
    return learner, {**spent, "seconds": time.process_time() - begun}


@torch.no_grad()
def read(model: HopeForCausalLM, documents: Tensor, level: Level | None) -> Tensor:
    """Losses `[D, L - 1]` in nats of documents `[D, L]`, each read by a user of its own; None learns nothing."""
    reader = under(model, level or Level(1), None, "context" if level else "off")
    cache, piece = reader.new_cache(), documents.shape[1] if level else PIECE
    logits = torch.cat([reader(part, past_key_values=cache).logits for part in documents.split(piece, dim=1)], dim=1)
    return F.cross_entropy(logits[:, :-1].mT, documents[:, 1:], reduction="none")


def judged(model: HopeForCausalLM, documents: Tensor, level: Level | None, ends: tuple[int, ...]) -> dict[str, Any]:
    """Bits a byte of the documents as a whole, and of the parts that end at `ends`."""
    losses = read(model, documents, level)
    begins = (1, *ends[:-1])  # a document's first byte is not predicted
    return {
        "bits": bits(losses),
        "parts": [bits(losses[:, begin - 1 : end - 1]) for begin, end in zip(begins, ends, strict=True)],
    }
