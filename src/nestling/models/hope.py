"""Hope, Hope-Attention and Transformer++ as one Hugging Face model (arXiv 2512.24695, section 8.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast

from nestling.layers import (
    Attention,
    Block,
    ContinuumMemory,
    Linear,
    MemoryLayer,
    SelfModifyingTitans,
)
from nestling.levels import HasLevels, LevelOptimizer, effective
from nestling.memory import DeltaGradientDescent, ToInitial, ToZero
from nestling.memory.zoo import ZOO
from nestling.models.cache import HopeCache, Session
from nestling.models.config import HopeConfig
from nestling.models.learning import LearningModel, Rows, one_of
from nestling.models.recall import as_recall

HEAD = "lm_head.weight"


def make_mixer(config: HopeConfig) -> Attention | MemoryLayer | SelfModifyingTitans:
    """The mixer that a configuration names."""
    size, heads = config.hidden_size, config.num_attention_heads
    if config.mixer == "attention":
        return Attention(size, heads, config.sliding_window, config.rope_theta)
    conv_width = 4 if config.conv_width is None else config.conv_width
    if config.mixer != "self_modifying_titans":
        classic, reach = ZOO[config.mixer], 1.0 if config.step_range is None else config.step_range
        given = {"chunk_size": config.chunk_size, "hidden": config.memory_hidden, "window": config.sliding_window}
        shape = {name: value for name, value in given.items() if value is not None and classic.takes(name)}
        return MemoryLayer(size, heads, classic, conv_width, reach, **shape)
    shortest, longest = config.memory_horizons or (16, 1024)
    return SelfModifyingTitans(
        size,
        heads,
        hidden=config.memory_hidden,
        chunk_size=64 if config.chunk_size is None else config.chunk_size,
        projection_chunk_size=config.projection_chunk_size,
        rule=DeltaGradientDescent(momentum=config.memory_momentum),
        read=config.memory_read,
        retention=ToInitial() if config.memory_retention == "initial" else ToZero(),
        horizons=(shortest, longest),
        conv_width=conv_width,
        query=config.memory_query or "static",
    )


def make_memory(config: HopeConfig, learns: bool) -> ContinuumMemory:
    """The MLPs of a block; of one that does not learn, a plain MLP."""
    if not learns:
        return ContinuumMemory(config.hidden_size, hidden=config.intermediate_size)
    return ContinuumMemory(config.hidden_size, config.level_objects(), config.level_variant, config.intermediate_size)


class Stack(nn.Module):
    """The blocks and the last norm: everything between embedding and logits. `x, states = stack(x, states, lengths)`."""

    def __init__(self, config: HopeConfig) -> None:
        super().__init__()
        self.levels = config.level_objects()
        self.layers = nn.ModuleList(
            Block(config.hidden_size, make_mixer(config), make_memory(config, i in config.learning_blocks()))
            for i in range(config.num_hidden_layers)
        )
        self.norm = nn.RMSNorm(config.hidden_size, eps=1e-6)

    def init_state(self, batch: int) -> tuple[Any, ...]:
        """Every block's state before the first token."""
        # to a type checker the items of a ModuleList are plain modules
        return tuple(block.init_state(batch) for block in self.layers)  # pyright: ignore[reportCallIssue]

    def forward(self, x: Tensor, states: tuple[Any, ...], lengths: Tensor | None) -> tuple[Tensor, tuple[Any, ...]]:
        """`x [B, L, D]`, one state a block, `lengths [B]` the real tokens of each row (None: all)."""
        after = []
        for block, state in zip(self.layers, states, strict=True):
            x, state = block(x, state, lengths)
            after.append(state)
        return self.norm(x), tuple(after)

    def moves(self, learnt: str | Sequence[int]) -> list[list[str]]:
        """For each level the names of the weights it moves: every linear map's, or the continuum memories'."""
        if learnt in ("blocks", "all"):
            names = [f"{name}.weight" for name, module in self.named_modules() if isinstance(module, Linear)]
            return [names for _ in self.levels]
        moved: list[list[str]] = [[] for _ in self.levels]
        for prefix, module in self.named_modules():
            if isinstance(module, ContinuumMemory) and module.levels:
                for found, names in zip(moved, module.moves(), strict=True):
                    found += [f"{prefix}.{name}" for name in names]
        return moved


class HopePreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation."""

    config_class = HopeConfig
    base_model_prefix = "model"
    _is_stateful = True
    _no_split_modules = ["Block"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if initial_values := getattr(module, "initial_values", None):
            for name, value in initial_values().items():
                init.copy_(getattr(module, name), value)
        else:
            super()._init_weights(module)


class HopeModel(HopePreTrainedModel, HasLevels):
    """Embedding and blocks, without a head. It reads; learning needs the next-token loss of `HopeForCausalLM`."""

    def __init__(self, config: HopeConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.stack = Stack(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: HopeCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states `[B, L, D]`. `past_key_values` may hold a memory, which is read and not moved."""
        x = one_of(input_ids, inputs_embeds)
        x = x if x.is_floating_point() else self.embed_tokens(x)
        rows = Rows(x, attention_mask, position_ids)
        cache = past_key_values or HopeCache("off")
        hidden = rows.back(self.read(rows.align(x), rows.lengths, cache))
        cache.advance(x.shape[1])
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=cache if use_cache else None)

    def moving(self) -> None:
        """It reads what a memory holds, and moves nothing."""

    def stack_weights(self) -> dict[str, Tensor]:
        """The weights of the blocks, by name."""
        return dict(self.stack.named_parameters())

    def read(self, x: Tensor, lengths: Tensor | None, cache: HopeCache) -> Tensor:
        """Left-aligned `x [B, L, D]` through the blocks, with what the cache's memory holds; the session moves on."""
        session = cache.session or Session(self.stack.init_state(x.shape[0]))
        if session.segment is not None:
            raise ValueError("this cache learns; read it with HopeForCausalLM, or begin one with learning='off'")
        weights = effective(cache.memory or (), self.stack_weights())
        hidden, mixers = functional_call(self.stack, weights, (x, session.mixers, lengths))
        cache.session = Session(mixers)
        return hidden


class HopeForCausalLM(HopePreTrainedModel, LearningModel):
    """A language model that learns while it reads.

    `config.learning` says how: "context" (fast weights per sequence, with or without a cache), "parameter" or "off".
    `model.generate(...)` works as in any Hugging Face model; its cache is a `HopeCache`.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: HopeConfig) -> None:
        super().__init__(config)
        self.model = HopeModel(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self.levels, self.recall = config.level_objects(), as_recall(config.recall)
        head = [HEAD] if config.learnt == "all" else []
        self.moves = [names + head for names in self.model.stack.moves(config.learnt)]
        self.post_init()

    def learnable_weights(self) -> dict[str, Tensor]:
        return self.model.stack_weights() | {HEAD: self.lm_head.weight}

    def module_of(self, name: str) -> nn.Module:
        return self.lm_head if name == HEAD else self.model.stack.get_submodule(name.removesuffix(".weight"))

    def run(
        self, weights: dict[str, Tensor], ids: Tensor, mixers: tuple[Any, ...], lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
        stack = {name: weight for name, weight in weights.items() if name != HEAD}
        hidden, mixers = functional_call(self.model.stack, stack, (self.embed(ids), mixers, lengths))
        return self.head(hidden, weights), hidden, mixers

    def head(self, hidden: Tensor, weights: dict[str, Tensor]) -> Tensor:
        """`[B, L, D] -> [B, L, V]`, with the head in `weights` where there is one."""
        return functional_call(self.lm_head, {"weight": weights.get(HEAD, self.lm_head.weight)}, (hidden,))

    def embed(self, ids: Tensor) -> Tensor:
        """`[B, L] -> [B, L, D]`."""
        return self.model.embed_tokens(ids)

    def begin(self, batch: int) -> tuple[Any, ...]:
        return self.model.stack.init_state(batch)

    def recite(self, x: Tensor, rows: Rows, cache: HopeCache, keep: slice | Tensor) -> tuple[Tensor, Tensor]:
        x = x if x.is_floating_point() else self.embed(x)
        hidden = rows.back(self.model.read(rows.align(x), rows.lengths, cache))[:, keep]
        weights = effective(cache.memory or (), {HEAD: self.lm_head.weight})
        return self.head(hidden, weights), hidden

    def level_optimizer(self) -> LevelOptimizer:
        return LevelOptimizer(self.model.stack, self.levels, self.moves)


AutoConfig.register("nestling_hope", HopeConfig)
AutoModel.register(HopeConfig, HopeModel)
AutoModelForCausalLM.register(HopeConfig, HopeForCausalLM)
