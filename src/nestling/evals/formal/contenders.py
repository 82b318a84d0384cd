"""Who takes part: models of as many parameters, each with the learning rates that are tried for it."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from nestling.models import HopeConfig, HopeForCausalLM

WIDTH = 32
PARAMETERS = 20_000  # besides the embedding and the head
RATES = (3e-3, 1e-2, 3e-2)
SIZES = range(1, 512)


class Blocks(nn.Module):
    """Hope or a model of the same blocks, `[B, L]` symbols to `[B, L, classes]`."""

    def __init__(self, classes: int, size: int, **settings: Any) -> None:
        super().__init__()
        common = {"vocab_size": classes, "hidden_size": WIDTH, "intermediate_size": size, "num_attention_heads": 4}
        apart = {"pad_token_id": None, "eos_token_id": None, "tie_word_embeddings": False}
        self.model = HopeForCausalLM(HopeConfig(**common, **apart, levels=[], learning="off", **settings))

    def forward(self, symbols: Tensor) -> Tensor:
        return self.model(symbols).logits


class LSTM(nn.Module):
    """torch's LSTM (Hochreiter and Schmidhuber 1997) of width `size` between an embedding and a head."""

    def __init__(self, classes: int, size: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(classes, WIDTH), nn.Linear(size, classes)
        self.memory = nn.LSTM(WIDTH, size, batch_first=True)

    def forward(self, symbols: Tensor) -> Tensor:
        return self.head(self.memory(self.embedding(symbols))[0])


@dataclass(frozen=True)
class Contender:
    """kind: what is built, for a number of classes (of symbols, and of answers), a size, which sets the number of
    parameters, and `settings`. rates: of learning, tried for each language.
    """

    kind: type[Blocks | LSTM]
    settings: dict[str, Any] = field(default_factory=dict)
    rates: tuple[float, ...] = RATES

    def model(self, classes: int) -> nn.Module:
        """With the size that comes closest to the number of parameters that all have."""
        wanted = PARAMETERS + 2 * classes * WIDTH

        def parameters(size: int) -> int:
            return count(self.kind(classes, size, **self.settings))

        above = bisect_left(SIZES, wanted, key=parameters)
        size = min(SIZES[max(0, above - 1) : above + 1], key=lambda size: abs(parameters(size) - wanted))
        return self.kind(classes, size, **self.settings)


def count(model: nn.Module) -> int:
    """Parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def blocks(mixer: str, layers: int, **settings: Any) -> Contender:
    """A model of blocks with this mixer; its size is the hidden width of the MLPs."""
    return Contender(Blocks, {"mixer": mixer, "num_hidden_layers": layers, **settings})


# Hope and the LSTM have one block, the others two with narrower MLPs: depth helps where a state is missing. No recurrent
# model mixes neighbouring tokens before its memory: what it knows of the past is what its memory holds.
HOPE = {"chunk_size": 1, "memory_horizons": (4.0, 8.0), "conv_width": 1}
CONTENDERS: dict[str, Contender] = {
    "Hope": blocks("self_modifying_titans", 1, memory_retention="initial", **HOPE),
    "Hope, fading to zero": blocks("self_modifying_titans", 1, memory_retention="zero", **HOPE),
    "Transformer++": blocks("attention", 2),
    "linear attention": blocks("linear_attention", 2, conv_width=1),
    "DeltaNet": blocks("deltanet", 2, conv_width=1),
    "Gated DeltaNet": blocks("gated_deltanet", 2, conv_width=1),
    "Gated DeltaNet [-1, 1]": blocks("gated_deltanet", 2, conv_width=1, step_range=2.0),
    "LSTM": Contender(LSTM),
}
