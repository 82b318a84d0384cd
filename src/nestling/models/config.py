"""The configuration of Hope, Hope-Attention and Transformer++: one block, three settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from nestling.levels import Level, StepOf, as_levels, nested
from nestling.memory.zoo import ZOO
from nestling.models.recall import as_recall

MIXERS = ("self_modifying_titans", "attention", *ZOO)
OF_SOME = {  # settings that mean nothing to other mixers
    "sliding_window": ("attention", *(name for name, classic in ZOO.items() if classic.takes("window"))),
    "memory_hidden": ("self_modifying_titans", *(name for name, classic in ZOO.items() if classic.takes("hidden"))),
    "projection_chunk_size": ("self_modifying_titans",),
    "memory_retention": ("self_modifying_titans",),
    "memory_horizons": ("self_modifying_titans",),
    "memory_query": ("self_modifying_titans",),
    "conv_width": ("self_modifying_titans", *ZOO),
    "step_range": tuple(name for name, classic in ZOO.items() if classic.largest > 1),
}
LEARNING = ("context", "parameter", "off")
RETENTIONS = (None, "zero", "initial")
QUERIES = (None, "static", "memory")
LEARNT = ("mlp", "last_quarter", "blocks", "all")
OUTER = ("second-order", "first-order", "none")


def block_numbers(which: str | Sequence[Any], count: int) -> list[int]:
    """Which of `count` blocks: "last_quarter", the numbers given, from the end where negative, or by any other word all of them.

    Raises:
        ValueError: no such block, or none at all.
    """
    blocks = range(count)
    if isinstance(which, str):
        return list(blocks[-max(1, count // 4) :] if which == "last_quarter" else blocks)
    if not which or (unknown := [n for n in which if type(n) is not int or n not in range(-count, count)]):
        given = "no block" if not which else f"block {', '.join(map(str, unknown))}"
        raise ValueError(f"{given} was chosen; the model has blocks 0 to {count - 1}")
    return list(dict.fromkeys(blocks[number] for number in which))


def check_outer_gradient(outer: str, levels: list[Level]) -> None:
    """Raise ValueError unless the outer gradient exists, and exists for the rules of the levels."""
    if outer not in OUTER:
        raise ValueError(f"outer_gradient={outer!r} is unknown; choose {' or '.join(map(repr, OUTER))}")
    stepping = [level.rule for level in levels if isinstance(level.rule, StepOf)]
    if outer == "second-order" and stepping:
        raise ValueError(
            f"outer_gradient='second-order' does not go through the step of an optimiser, rule={stepping[0]!r}; use "
            "one of the other rules, or outer_gradient='first-order'"
        )


@strict
class HopeConfig(PreTrainedConfig):
    """Configuration of `HopeForCausalLM`.

    mixer: "self_modifying_titans" (Hope), "attention" (Hope-Attention; with `levels=[]` a Transformer++), or one of the
        memories of the literature, `nestling.memory.zoo.ZOO`: "linear_attention", "gated_deltanet", "ttt_mlp", "titans", ..
    levels: `nestling.Level`s from fast to slow (or their plain data); `[]` is the plain MLP.
    level_variant: "sequential", "nested", "independent" or "superposed"; see `nestling.layers.ContinuumMemory`.
    learning: "context" - each sequence has fast weights that move while it is read; "parameter" - levels move only by a
        `nestling.levels.LevelOptimizer`; "off" - nothing moves.
    outer_gradient: what training through a reading that learns sees of the inner updates: "first-order", "second-order" or
        "none"; see `nestling.models.segment`. It changes no output.
    learnt: which weights levels move: "mlp", the continuum memory's in every block; "last_quarter", in the last quarter of the
        blocks; or a list of block numbers, from the end where negative: the other blocks have a plain MLP. Superposed levels
        also "blocks", every linear map of a block; or "all", the output head too (where it is tied to the embedding, only
        its work as a head changes).
    intermediate_size: hidden width of the MLP (over its whole chain); None is 8/3 of hidden_size, rounded to 8 a part.
    recall: a `nestling.Recall` (or its plain data), which keeps the last predictions as they were; None has none.
    sliding_window: how many tokens attention sees, itself included; None is all. Of "omeganet" and "atlas", the tokens that a step
        is taken for.
    memory_hidden: hidden width of each deep memory, per head; None is the head width (four times that in "ttt_mlp").
    chunk_size: tokens of a memory's chunk, see `nestling.AssociativeMemory`; None is the mixer's own, 64 of self-modifying Titans.
    projection_chunk_size, memory_read: see `nestling.layers.SelfModifyingTitans`.
    memory_momentum: whether its memories have momentum.
    memory_retention: what they fade to: "zero" (None is that) or "initial", their meta-learned initial weights.
    memory_horizons: between these numbers of tokens its heads' memories fade at the start; None is (16, 1024).
    memory_query: where its query comes from: "static" (None is that), a linear map, or "memory", one more memory.
    conv_width: tokens that the short convolution in front of a memory sees; None is 4, and 1 mixes none.
    step_range: of the delta rule's step in "deltanet" and "gated_deltanet": None is 1, and 2 allows negative eigenvalues.

    Unknown keys raise a ValueError.
    """

    model_type = "nestling_hope"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 384
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int | None = None
    mixer: str = "self_modifying_titans"
    levels: list | tuple | None = None
    level_variant: str = "sequential"
    learning: str = "context"
    outer_gradient: str = "first-order"
    learnt: str | list | tuple = "mlp"
    recall: Any = None
    sliding_window: int | None = None
    rope_theta: float = 10_000.0
    memory_hidden: int | None = None
    chunk_size: int | None = None
    projection_chunk_size: int | None = None
    memory_read: str = "token"
    memory_momentum: bool = False
    memory_retention: str | None = None
    memory_horizons: list | tuple | None = None
    memory_query: str | None = None
    conv_width: int | None = None
    step_range: float | None = None
    initializer_range: float = 0.02
    max_position_embeddings: int = 1_000_000
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 1

    def __post_init__(self, **kwargs: Any) -> None:
        known = {
            "attn_implementation",
            "torch_dtype",
            "name_or_path",
            "_commit_hash",
            "transformers_version",
            "model_type",
        }
        if unknown := {key for key in kwargs if key not in known and not key.startswith("_")}:
            allowed = sorted(name for name in HopeConfig.__annotations__)
            raise ValueError(f"unknown configuration key {sorted(unknown)}; HopeConfig knows {', '.join(allowed)}")
        levels = as_levels(self.levels or [])
        self.levels = [level.to_dict() for level in levels]
        recall = as_recall(self.recall)
        self.recall = recall and recall.to_dict()
        if self.intermediate_size is None:
            parts = len(levels) if self.level_variant != "superposed" and levels else 1
            self.intermediate_size = max(8, round(self.hidden_size * 8 / 3 / parts / 8) * 8) * parts
        self._check()
        super().__post_init__(**kwargs)

    def _check(self) -> None:
        """Every choice is one that exists."""
        for name, allowed in (
            ("mixer", MIXERS),
            ("learning", LEARNING),
            ("memory_retention", RETENTIONS),
            ("memory_query", QUERIES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose {' or '.join(map(repr, allowed))}")
        if isinstance(self.learnt, str) and self.learnt not in LEARNT:
            allowed = ", ".join(map(repr, LEARNT))
            raise ValueError(f"learnt={self.learnt!r} is unknown; choose {allowed}, or block numbers")
        self.learning_blocks()
        check_outer_gradient(self.outer_gradient, self.level_objects())
        if self.hidden_size % self.num_attention_heads:
            given = f"hidden_size={self.hidden_size}, num_attention_heads={self.num_attention_heads}"
            raise ValueError(f"{given}: the width must be a multiple of the heads")
        for name, usual in (("memory_read", "token"), ("memory_momentum", False)):
            if self.mixer != "self_modifying_titans" and getattr(self, name) != usual:
                raise ValueError(f"{name}={getattr(self, name)!r} means nothing to mixer={self.mixer!r}; leave it out")
        for name, mixers in OF_SOME.items():
            if self.mixer not in mixers and getattr(self, name) is not None:
                raise ValueError(f"{name}={getattr(self, name)} means nothing to mixer={self.mixer!r}; leave it out")
        if self.learnt in ("blocks", "all") and self.levels and self.level_variant != "superposed":
            raise ValueError(
                f"learnt={self.learnt!r} moves weights outside the chain of MLPs; it needs level_variant='superposed'"
            )
        if self.learnt == "all" and self.levels and self.learning == "parameter":
            raise ValueError("learnt='all' needs learning='context'; an optimiser's levels take 'blocks' or 'mlp'")

    def learning_blocks(self) -> list[int]:
        """The numbers of the blocks whose weights levels move."""
        return block_numbers(self.learnt, self.num_hidden_layers)

    def level_objects(self) -> list[Level]:
        """The levels as `nestling.Level`s; those of the nested variant reset with each other."""
        levels = as_levels(self.levels or [])
        return nested(levels) if self.level_variant == "nested" else levels
