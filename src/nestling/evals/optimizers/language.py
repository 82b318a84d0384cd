"""Byte-level language models on WikiText-2."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from nestling.errors import UserError
from nestling.evals.optimizers.problem import Make, Outcome, Recorder
from nestling.models import HopeConfig, HopeForCausalLM
from nestling.train import TrainConfig, byte_tokenizer, encode, train, wikitext2
from nestling.train.train import Progress

MODELS: dict[str, dict[str, Any]] = {
    "transformer": dict(mixer="attention", num_attention_heads=4),
    "hope": dict(mixer="self_modifying_titans", num_attention_heads=1, memory_hidden=40),
}


@dataclass(frozen=True)
class Language:
    """About a million parameters, `tokens` bytes of training text; the score is bits a byte of held-out text."""

    model: str = "transformer"
    tokens: int = 120_000
    batch: int = 4
    width: int = 160
    layers: int = 3
    measure: str = "bits a byte"

    @property
    def name(self) -> str:
        return f"lm-{self.model}"

    def run(self, make: Make, seed: int, final: bool) -> Outcome:
        """Tuned by the first half of the validation text's start, judged by the second."""
        tokenizer = byte_tokenizer()
        ids = encode(tokenizer, wikitext2("train")[: 4 * self.tokens])
        judged = encode(tokenizer, wikitext2("valid")[40_000:80_000] if final else wikitext2("valid")[:40_000])
        torch.manual_seed(seed)
        size: dict[str, Any] = {
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "learning": "off",
            "levels": [],
        }
        model = HopeForCausalLM(HopeConfig(**size, **MODELS[self.model]))
        settings = TrainConfig(tokens=self.tokens, batch_size=self.batch, length=128, seed=seed)
        record, optimizer = Recorder(settings.steps), make(model)

        def report(progress: Progress) -> None:
            record(progress.loss / math.log(2))

        try:
            train(model, ids, settings, report, make_optimizer=lambda groups: optimizer)
        except UserError:  # the loss is not finite
            return record.done(float("nan"), optimizer)
        return record.done(bits(model, judged), optimizer)


@torch.no_grad()
def bits(model: HopeForCausalLM, ids: torch.Tensor, length: int = 512) -> float:
    """Bits a byte over windows of `length`, read in batches."""
    windows = ids[: len(ids) // length * length].view(-1, length)
    losses = [
        F.cross_entropy(model(part).logits[:, :-1].flatten(0, 1), part[:, 1:].flatten()) for part in windows.split(16)
    ]
    return torch.stack(losses).mean().item() / math.log(2)
