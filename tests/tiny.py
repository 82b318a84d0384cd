"""Tiny models of every configuration, in float64 and with weights large enough that everything matters.

A chunk of 4 tokens and periods of 6 and 12 share no boundary but 12: what is wrong about phases shows.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nestling.levels import Level, StepOf
from nestling.memory import DeltaGradientDescent, RetainPredictions, RetainSeen
from nestling.models import ConvertedForCausalLM, HopeCache, HopeConfig, HopeForCausalLM, LearningModel, Recall, convert
from tests.families import decoder

VOCAB, PERIOD = 24, 6
FAST, SLOW = Level(PERIOD, lr=0.3), Level(2 * PERIOD, lr=0.5, rule=RetainSeen(damping=0.1))

SETTINGS: dict[str, dict[str, Any]] = {
    "hope": {"mixer": "self_modifying_titans", "levels": [FAST, SLOW], "level_variant": "superposed"},
    "hope-sequential": {
        "mixer": "self_modifying_titans",
        "num_hidden_layers": 1,
        "levels": [FAST, SLOW],
        "level_variant": "sequential",
        "memory_momentum": True,
        "memory_read": "chunk",
        "projection_chunk_size": 8,
    },
    "hope-nested": {
        "mixer": "attention",
        "sliding_window": 10,
        "num_hidden_layers": 1,
        "levels": [FAST, Level(2 * PERIOD, lr=1.0, rule=RetainSeen(damping=0.3))],
        "level_variant": "nested",
    },
    "hope-independent": {
        "mixer": "attention",
        "sliding_window": 10,
        "num_hidden_layers": 1,
        "levels": [Level(PERIOD, lr=0.3, reset="context"), SLOW],
        "level_variant": "independent",
    },
    "hope-attention": {
        "mixer": "attention",
        "sliding_window": 10,
        "levels": [Level(PERIOD, lr=0.3, reset="context"), SLOW],
        "level_variant": "superposed",
        "learnt": "all",
    },
    "hope-optimised": {
        "mixer": "attention",
        "sliding_window": 10,
        "num_hidden_layers": 1,
        "levels": [
            Level(PERIOD, lr=0.1, rule=StepOf("DeltaMomentum", momentum=0.5), reset="context"),
            Level(2 * PERIOD, lr=0.1, rule=StepOf("M3", periods=(2,), adjust_lr="original")),
        ],
        "level_variant": "superposed",
    },
    "hope-delta": {
        "mixer": "attention",
        "sliding_window": 10,
        "num_hidden_layers": 1,
        "levels": [FAST, Level(2 * PERIOD, lr=0.5, rule=DeltaGradientDescent(), reset=0.9)],
        "level_variant": "sequential",
    },
    "hope-predictions": {
        "mixer": "attention",
        "sliding_window": 10,
        "num_hidden_layers": 1,
        "levels": [
            Level(PERIOD, lr=0.3, reset="context"),
            Level(2 * PERIOD, lr=1.0, rule=RetainPredictions(0.3, 0.3, forgetting=0.9, refresh=0.5)),
        ],
        "level_variant": "superposed",
        "learnt": "all",
    },
    "hope-low-rank": {
        "mixer": "attention",
        "sliding_window": 10,
        "num_hidden_layers": 1,
        "levels": [replace(FAST, rank=4), replace(SLOW, rank=6)],
        "level_variant": "superposed",
        "learnt": "all",
    },
    "hope-recall": {
        "mixer": "attention",
        "sliding_window": 10,
        "num_hidden_layers": 1,
        "levels": [Level(PERIOD, lr=0.3, reset="context"), SLOW],
        "level_variant": "superposed",
        "learnt": "all",
        "recall": Recall(window=9, sharpness=2.0, share=0.6),
    },
    "transformer++": {"mixer": "attention", "levels": []},
    "recall": {"mixer": "attention", "sliding_window": 10, "levels": [], "recall": Recall(window=9, sharpness=2.0)},
}
LEARNING = [name for name, settings in SETTINGS.items() if settings["levels"]]
CONVERTED: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {"assign": "all", "levels": [replace(FAST, lr=1.0, rule=RetainPredictions()), SLOW]},
    "mistral": {"assign": "last_quarter", "levels": [Level(PERIOD, lr=0.3, reset="context"), SLOW]},
    "gpt-neox": {"form": "chain"},
    "phi": {"form": "dealt", "recall": Recall(window=9, sharpness=2.0)},
    "qwen2": {"levels": [replace(FAST, rank=3, reset="context"), replace(SLOW, rank=5)]},
    "olmo": {
        "levels": [replace(FAST, rule=DeltaGradientDescent()), Level(2 * PERIOD, lr=0.5, rule=DeltaGradientDescent())]
    },
}
CHOICES = ("levels", "assign", "form", "learning", "window", "outer_gradient", "recall")
READERS, LEARNERS = [*SETTINGS, *CONVERTED], [*LEARNING, *CONVERTED]  # what is tested as a stream, by name


def config(name: str, **changes: Any) -> HopeConfig:
    """A configuration of 16 features, two heads and up to two blocks; `changes` override."""
    size = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "chunk_size": 4}
    return HopeConfig(**{**size, "initializer_range": 0.25, "eos_token_id": None, **SETTINGS[name], **changes})


def model(name: str, seed: int = 0, **changes: Any) -> Any:
    """The same weights for the same seed, whatever was drawn before. A name of `CONVERTED` is that family, converted."""
    if name in CONVERTED:
        return converted(name, seed, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return HopeForCausalLM(config(name, **changes)).double().eval()


def converted(name: str, seed: int = 0, **changes: Any) -> ConvertedForCausalLM:
    """A tiny model of a family, converted, in float64; `changes` are of its levels or of the original's configuration."""
    choices = {"levels": [FAST, SLOW], "window": 2 * PERIOD, **CONVERTED[name]}
    choices |= {key: changes.pop(key) for key in CHOICES if key in changes}
    original = decoder(name, seed, **{"vocab_size": VOCAB, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return convert(original, **choices).double().eval()


def text(rows: int, length: int, seed: int = 0) -> Tensor:
    """Random tokens `[rows, length]`, none of them padding."""
    return torch.randint(2, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def read(model: LearningModel, ids: Tensor, cache: HopeCache | None = None, **options: Any) -> tuple[Tensor, HopeCache]:
    """Logits and the cache after reading `ids`, without a graph."""
    cache = cache or model.new_cache()
    with torch.no_grad():
        return model(ids, past_key_values=cache, use_cache=True, **options).logits, cache


def knowledge(cache: HopeCache) -> tuple:
    """What a cache holds, less what of its segment was learnt already."""
    session, segment = cache.session, cache.session.segment
    if segment is None:
        return cache.memory, session.mixers, cache.recent
    real = torch.arange(segment.tokens.shape[1]) < segment.count[:, None]
    mine = segment.tokens * real, segment.lessons * real, segment.count, segment.mixers
    return cache.memory, session.mixers, cache.recent, *mine
