"""What reads the stream: a model that a baseline moves, or a learner."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from nestling.continual import Learner
from nestling.continual.baselines import Follower, Method
from nestling.evals.adaptation.setup import PERIOD
from nestling.levels import Level
from nestling.models import HopeConfig, HopeForCausalLM, Recall
from nestling.ops.state import nbytes
from nestling.train import byte_tokenizer


class Reader(Protocol):
    """Losses are nats a token."""

    def observe(self, ids: Tensor) -> Tensor:
        """Losses of the next stretch of the stream, learning from it."""
        ...

    def evaluate(self, ids: Tensor) -> Tensor:
        """Losses of a text read apart and without recall, by the weights alone; nothing is learnt."""
        ...

    def rested(self) -> Reader:
        """As if the stream's context had ended, for `evaluate` until the next stretch: levels that reset with it have."""
        ...

    def own_bytes(self) -> int:
        """What has to be kept for one user, recall included, attention's window and the like apart."""
        ...


class Following(Follower):
    """A baseline: no end of a context changes it."""

    def __init__(
        self, model: HopeForCausalLM, method: Method[Any], sample: Tensor, recall: Recall | None = None
    ) -> None:
        super().__init__(with_levels(model, (), learning="off"), method, PERIOD, sample, recall)

    def rested(self) -> Following:
        return self


@dataclass(frozen=True)
class Learning:
    """A learner, and one of its users."""

    learner: Learner
    user: str = "default"

    def observe(self, ids: Tensor) -> Tensor:
        return self.learner.observe(ids, self.user).losses

    def evaluate(self, ids: Tensor) -> Tensor:
        return self.learner.evaluate(ids, self.user, recall=False)

    def rested(self) -> Learning:
        other = f"{self.user}, rested"
        self.learner.forget(other)
        if self.user in self.learner.users():
            self.learner.fork(self.user, other)
            self.learner.end_context(other)
        return replace(self, user=other)

    def own_bytes(self) -> int:
        model = self.learner.model
        recent = model.recall and model.nothing_recent(model.recall, batch=1)
        return self.learner.memory_bytes(self.user) + nbytes(recent)


def learning(model: HopeForCausalLM, levels: Sequence[Level], sample: Tensor, recall: Recall | None = None) -> Learning:
    """A learner with the given levels, which has been shown the sample."""
    learner = Learner(with_levels(model, levels, "context", recall), byte_tokenizer())
    learner.calibrate(sample)
    return Learning(learner)


def with_levels(
    model: HopeForCausalLM, levels: Sequence[Level], learning: str, recall: Recall | None = None
) -> HopeForCausalLM:
    """The same weights under other superposed levels and a recall, which have none of their own."""
    config = copy.deepcopy(model.config)
    assert isinstance(config, HopeConfig)  # transformers declares its base class
    config.levels, config.learning, config.recall = [*levels], learning, recall and recall.to_dict()
    other = HopeForCausalLM(config)
    other.load_state_dict(model.state_dict())
    return other.eval()
