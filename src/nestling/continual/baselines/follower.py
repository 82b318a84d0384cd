"""The stream past a model that a method moves."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nestling.continual.baselines.method import Method
from nestling.models import HopeCache, HopeForCausalLM, Recall
from nestling.models.recall import given_to, recalled
from nestling.ops.state import nbytes


class Follower:
    """A copy of the model that a method moves: one step a chunk, each token seen once.

    It reads as a learner does: a chunk is `period` tokens, its first token is judged by the chunk before, the session
    (attention's window, the states of memories) goes on across chunks, and every prediction is made before the step
    that has seen its token.

    old: a sample `[N]` of what the model knows, for the methods that use one; it is not learnt from here.
    recall: mixed into what the stream is judged by, as in a learner, and not into what the method learns from.
    """

    def __init__(
        self,
        model: HopeForCausalLM,
        method: Method[Any],
        period: int,
        old: Tensor | None = None,
        recall: Recall | None = None,
    ) -> None:
        self.model, self.method, self.period = copy.deepcopy(model).eval(), method, period
        none = torch.empty(0, dtype=torch.int64)
        self.state = method.prepare(self.model, none if old is None else old)
        self.recall = recall
        self.end_context()

    def end_context(self) -> None:
        """The next call begins another text: nothing of this one is before it, what was learnt apart."""
        self.cache, self.last = HopeCache("off"), torch.empty(0, dtype=torch.int64)
        self.recent = self.recall and self.model.nothing_recent(self.recall, batch=1)

    def observe(self, ids: Tensor) -> Tensor:
        """Losses in nats of `ids [L]`, learning as they pass: `[L - 1]` in the first call, `[L]` in those that go on.

        A call's end ends a chunk.
        """
        ids, found = torch.cat([self.last, ids]), []
        self.last = ids[-1:]
        for start in range(0, len(ids) - 1, self.period):
            chunk = ids[start : start + self.period + 1]
            with given_to(self.model.lm_head) as hidden:
                logits = self.model(chunk[None, :-1], past_key_values=self.cache.detach(), use_cache=True).logits
            answers = self._recalled(logits, hidden[0], chunk[None, :-1])
            losses = F.cross_entropy(logits[0], chunk[1:], reduction="none")
            self.state = self.method.step(self.model, self.state, chunk, losses.mean())
            found.append(F.cross_entropy(answers[0].detach(), chunk[1:], reduction="none"))
        return torch.cat(found)

    @torch.no_grad()
    def _recalled(self, logits: Tensor, hidden: Tensor, ids: Tensor) -> Tensor:
        """What is said: the model's own predictions, and those of a recall mixed in."""
        if self.recall is None or self.recent is None:
            return logits
        answers, self.recent = recalled(self.recall, logits, hidden, ids, None, self.recent)
        return answers

    @torch.no_grad()
    def evaluate(self, ids: Tensor, piece: int = 1024) -> Tensor:
        """Losses `[L - 1]` in nats of a text read apart, without recall; nothing is learnt."""
        cache, found = HopeCache("off"), []
        for start in range(0, len(ids) - 1, piece):
            labels = ids[start + 1 : start + piece + 1]
            inputs = ids[None, start : start + len(labels)]
            logits = self.model(inputs, past_key_values=cache, use_cache=True).logits
            found.append(F.cross_entropy(logits[0], labels, reduction="none"))
        return torch.cat(found)

    def own_bytes(self) -> int:
        """How much has to be kept for each user, the model's session (the same for every method) apart."""
        return sum(tensor.nbytes for tensor in self.method.own(self.model, self.state)) + nbytes(self.recent)
