"""Who takes part: two blocks of width 128, of as many parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nestling.evals.exams.task import Task
from nestling.evals.formal.contenders import count
from nestling.models import HopeConfig, HopeForCausalLM

WIDTH, LAYERS = 128, 2
PARAMETERS = 420_000  # besides embedding and head
LONGEST = 16_384  # symbols whose attention is still computed: it grows with their square


class Reader(nn.Module):
    """A model of blocks, `[B, L]` symbols to `[B, L, symbols]`: each answer out of the state after its symbol."""

    def __init__(self, symbols: int, size: int, **settings: Any) -> None:
        super().__init__()
        shape = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "intermediate_size": size}
        apart = {"pad_token_id": None, "eos_token_id": None, "tie_word_embeddings": False}
        self.model = HopeForCausalLM(
            HopeConfig(vocab_size=symbols, **shape, **apart, levels=[], learning="off", **settings)
        )

    def forward(self, symbols: Tensor) -> Tensor:
        return self.model(symbols).logits


class Pooled(nn.Module):
    """Every answer out of the state after the last symbol, as mad-lab's autoencoder: a place, added to that state as sines and
    cosines, goes with it through two layers.
    """

    places: Tensor

    def __init__(self, reader: Reader, length: int) -> None:
        super().__init__()
        self.reader = reader
        layers = [nn.RMSNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU()]
        self.decoder = nn.Sequential(*layers, nn.RMSNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.RMSNorm(WIDTH))
        angles = torch.arange(length)[:, None] / 10_000 ** torch.linspace(0, 1, WIDTH // 2)
        self.register_buffer("places", torch.cat([angles.sin(), angles.cos()], dim=1), persistent=False)

    def forward(self, symbols: Tensor) -> Tensor:
        state = self.reader.model.model(symbols).last_hidden_state[:, -1:]
        return self.reader.model.lm_head(self.decoder(state + self.places))


@dataclass(frozen=True)
class Contender:
    """settings: of the configuration. holds: symbols that it can read at most."""

    settings: dict[str, Any] = field(default_factory=dict)
    holds: int | None = None

    def fits(self, task: Task) -> bool:
        """Whether it can read an example at all."""
        return self.holds is None or task.length <= self.holds

    def model(self, task: Task) -> nn.Module:
        """With the MLPs that bring it closest to the number of parameters that all have."""

        def reader(size: int) -> Reader:
            return Reader(task.symbols, size, **self.settings)

        with torch.random.fork_rng():
            fixed, step = count(reader(8)) - 2 * task.symbols * WIDTH, count(reader(16)) - count(reader(8))
        size = 8 * max(1, 1 + round((PARAMETERS - fixed) / step))
        model = reader(size)
        return Pooled(model, task.length) if task.pooled else model


def blocks(mixer: str, heads: int = 4, **settings: Any) -> Contender:
    """A model of blocks with this mixer."""
    return Contender({"mixer": mixer, "num_attention_heads": heads, **settings})


CONTENDERS: dict[str, Contender] = {
    "Hope": blocks("self_modifying_titans", chunk_size=128),
    "Titans": blocks("titans"),
    "Gated DeltaNet": blocks("gated_deltanet"),
    "Transformer++": Contender({"mixer": "attention", "num_attention_heads": 4}, holds=LONGEST),
    "Transformer++, window": blocks("attention", sliding_window=256),
}
USUAL = [name for name in CONTENDERS if "window" not in name]  # a window says nothing of exams that are shorter
