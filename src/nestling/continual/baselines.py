"""What a learner is compared with: the same model, fine-tuned online on the same stream."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestling.models import HopeCache, HopeForCausalLM


class OnlineFineTuning:
    """All weights of a copy of the model follow the stream: one step of an optimiser a chunk, each token seen once.

    It reads as a learner does: a chunk is `period` tokens, its first token is judged by the chunk before, the session
    (attention's window, the states of memories) goes on across chunks, and every prediction is made before the step
    that has seen its token.

    clip: norm above which a gradient is scaled down, as in training.
    optimizer: a function from parameters to a `torch.optim.Optimizer`, for instance
        `lambda p: torch.optim.SGD(p, lr=0.2)`.
    """

    def __init__(
        self,
        model: HopeForCausalLM,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        period: int,
        clip: float = 1.0,
    ) -> None:
        self.model = copy.deepcopy(model).eval()
        self.optimizer, self.period = optimizer(self.model.parameters()), period
        self.cache, self.clip = HopeCache("off"), clip

    def observe(self, ids: Tensor) -> Tensor:
        """Losses `[L - 1]` in nats of `ids [L]`, learning as they pass. Call it once: it is the whole stream."""
        found = []
        for start in range(0, len(ids) - 1, self.period):
            labels = ids[start + 1 : start + self.period + 1]
            inputs = ids[None, start : start + len(labels)]
            logits = self.model(inputs, past_key_values=self.cache.detach(), use_cache=True).logits
            losses = F.cross_entropy(logits[0], labels, reduction="none")
            losses.mean().backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            found.append(losses.detach())
        return torch.cat(found)

    @torch.no_grad()
    def evaluate(self, ids: Tensor, piece: int = 1024) -> Tensor:
        """Losses `[L - 1]` in nats of a text read apart; nothing is learnt."""
        cache, found = HopeCache("off"), []
        for start in range(0, len(ids) - 1, piece):
            labels = ids[start + 1 : start + piece + 1]
            inputs = ids[None, start : start + len(labels)]
            logits = self.model(inputs, past_key_values=cache, use_cache=True).logits
            found.append(F.cross_entropy(logits[0], labels, reduction="none"))
        return torch.cat(found)
