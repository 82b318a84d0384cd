"""What the demonstration trains, and what it streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nestling.levels import Level
from nestling.memory import RetainSeen
from nestling.models import HopeConfig
from nestling.settings import TrainConfig
from nestling.train import byte_tokenizer, encode, english_prose, python_source, read_text

if TYPE_CHECKING:
    from torch import Tensor

PERIOD = 256  # tokens of a chunk: of the fast level, and of a step of fine-tuning
FAST = Level(PERIOD, lr=0.4, reset="context", clip=0.5)
SLOW = Level(PERIOD * 8, lr=40.0, rule=RetainSeen(damping=0.005), clip=0.5)


@dataclass(frozen=True)
class Size:
    """How much of everything, in bytes (a token is a byte).

    train: seen in training. stream: of the new domain. later, heldout: new and old text to judge by, never learnt from.
    calibration: of the training text, shown to the level that retains what was seen.
    """

    seeds: tuple[int, ...]
    train: int
    stream: int
    later: int
    heldout: int
    calibration: int


SIZES = {
    "quick": Size((0,), 32_768, 8_192, 4_096, 4_096, 8_192),
    "default": Size((0,), 204_800, 65_536, 12_288, 12_288, 65_536),
    "full": Size((0, 1, 2), 512_000, 204_800, 24_576, 24_576, 204_800),
}

# learning rates: the best of a sweep on the old domain's training text (docs/LOG.md)
ARCHITECTURES: dict[str, tuple[dict[str, Any], float]] = {
    "Hope": (dict(mixer="self_modifying_titans", num_attention_heads=1, memory_hidden=32, intermediate_size=312), 4e-3),
    "Transformer++": (dict(mixer="attention", num_attention_heads=4, sliding_window=256), 2e-3),
}
FINE_TUNING = {
    "sgd": (0.1, 0.2, 0.3, 0.4),
    "adamw": (5e-4, 1e-3, 2e-3),
}


def model_config(architecture: str) -> HopeConfig:
    """The model, levels at rest: superposed levels of zero difference are the model itself."""
    settings, _ = ARCHITECTURES[architecture]
    return HopeConfig(
        hidden_size=128, num_hidden_layers=2, levels=[FAST, SLOW], level_variant="superposed", learnt="all",
        learning="off", **settings,
    )  # fmt: skip


def training(architecture: str, size: Size, seed: int) -> TrainConfig:
    """How it is trained."""
    return TrainConfig(tokens=size.train, batch_size=4, length=256, lr=ARCHITECTURES[architecture][1], seed=seed)


@dataclass(frozen=True)
class Domains:
    """Token ids: the old domain to train on and to judge by, the new one to stream and to judge by."""

    train: Tensor
    heldout: Tensor
    stream: Tensor
    later: Tensor
    new_name: str


def domains(size: Size, text: str | None) -> Domains:
    """English prose first, then Python source or the user's own text (a file)."""
    tokenizer = byte_tokenizer()
    old = encode(tokenizer, english_prose())
    cut = int(0.9 * len(old))
    wanted = size.stream + size.later
    source = read_text(text) if text else python_source(wanted)
    new = encode(tokenizer, source)[:wanted]
    stream = min(size.stream, len(new) - min(size.later, len(new) // 5))
    name = text or "Python source (standard library)"
    return Domains(old[:cut], old[cut : cut + size.heldout], new[:stream], new[stream:], name)
