"""Hope, Hope-Attention and Transformer++ as one Hugging Face model (arXiv 2512.24695, section 8.3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from nestling.layers import (
    Attention,
    Block,
    ContinuumMemory,
    Delta,
    GatedDelta,
    Hebbian,
    Linear,
    LinearMemory,
    SelfModifyingTitans,
)
from nestling.levels import effective
from nestling.memory import DeltaGradientDescent, RetainSeen
from nestling.models import reading
from nestling.models.cache import HopeCache, Session
from nestling.models.config import HopeConfig

HEAD = "lm_head.weight"
GATES = {"deltanet": Delta, "gated_deltanet": GatedDelta}


def make_mixer(config: HopeConfig) -> Attention | LinearMemory | SelfModifyingTitans:
    """The mixer that a configuration names."""
    size, heads = config.hidden_size, config.num_attention_heads
    if config.mixer == "attention":
        return Attention(size, heads, config.sliding_window, config.rope_theta)
    if config.mixer == "linear_attention":
        return LinearMemory(size, heads, Hebbian())
    if config.mixer != "self_modifying_titans":
        gates, reach = GATES[config.mixer], 1.0 if config.step_range is None else config.step_range
        return LinearMemory(size, heads, gates(size, heads, reach))
    return SelfModifyingTitans(
        size,
        heads,
        hidden=config.memory_hidden,
        chunk_size=config.chunk_size,
        projection_chunk_size=config.projection_chunk_size,
        rule=DeltaGradientDescent(momentum=config.memory_momentum),
        read=config.memory_read,
    )


class Stack(nn.Module):
    """The blocks and the last norm: everything between embedding and logits. `x, states = stack(x, states, lengths)`."""

    def __init__(self, config: HopeConfig) -> None:
        super().__init__()
        self.levels = config.level_objects()
        size, hidden = config.hidden_size, config.intermediate_size
        self.layers = nn.ModuleList(
            Block(size, make_mixer(config), ContinuumMemory(size, self.levels, config.level_variant, hidden))
            for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.RMSNorm(size, eps=1e-6)

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

    def moves(self, learnt: str) -> list[list[str]]:
        """For each level the names of the weights it moves: the continuum memories' ("mlp"), or every linear map's."""
        if learnt != "mlp":
            names = [f"{name}.weight" for name, module in self.named_modules() if isinstance(module, Linear)]
            return [names for _ in self.levels]
        moved: list[list[str]] = [[] for _ in self.levels]
        for prefix, module in self.named_modules():
            if isinstance(module, ContinuumMemory):
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


class HopeModel(HopePreTrainedModel):
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
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        rows = Rows(x, attention_mask, position_ids, past_key_values)
        cache = past_key_values or HopeCache("off")
        hidden = rows.back(self.read(rows.align(x), rows.lengths, cache))
        cache.advance(x.shape[1])
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=cache if use_cache else None)

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


class HopeForCausalLM(HopePreTrainedModel, GenerationMixin):
    """A language model that learns while it reads.

    `config.learning` says how: "context" (fast weights per sequence, with or without a cache), "parameter" or "off".
    `model.generate(...)` works as in any Hugging Face model; its cache is a `HopeCache`.
    """

    generate: Callable[..., Any]  # as inherited, whose type asks for attributes that a model need not have
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: HopeConfig) -> None:
        super().__init__(config)
        self.model = HopeModel(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self.levels = config.level_objects()
        head = [HEAD] if config.learnt == "all" else []
        self.moves = [names + head for names in self.model.stack.moves(config.learnt)]
        asking = [
            names for level, names in zip(self.levels, self.moves, strict=True) if isinstance(level.rule, RetainSeen)
        ]
        self.watched = sorted({name for names in asking for name in names})
        self.post_init()

    def learnable_weights(self) -> dict[str, Tensor]:
        """The weights that levels may move, by name: those of the blocks, and the head's. Levels start from them."""
        return self.model.stack_weights() | {HEAD: self.lm_head.weight}

    def watched_modules(self) -> dict[str, nn.Module]:
        """By a weight's name the module that uses it, for the levels that retain what was seen."""
        stack = self.model.stack
        return {n: self.lm_head if n == HEAD else stack.get_submodule(n.removesuffix(".weight")) for n in self.watched}

    def run(
        self, weights: dict[str, Tensor], ids: Tensor, mixers: tuple[Any, ...], lengths: Tensor | None
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """Logits of left-aligned tokens `[B, L]`, and the mixers' states after them, with `weights` for the model's own."""
        stack = {name: weight for name, weight in weights.items() if name != HEAD}
        hidden, mixers = functional_call(self.model.stack, stack, (self.embed(ids), mixers, lengths))
        return self.head(hidden, weights), mixers

    def head(self, hidden: Tensor, weights: dict[str, Tensor]) -> Tensor:
        """`[B, L, D] -> [B, L, V]`, with the head in `weights` where there is one."""
        return functional_call(self.lm_head, {"weight": weights.get(HEAD, self.lm_head.weight)}, (hidden,))

    def embed(self, ids: Tensor) -> Tensor:
        """`[B, L] -> [B, L, D]`."""
        return self.model.embed_tokens(ids)

    def new_cache(self, memory: Any = None) -> HopeCache:
        """A cache that has read nothing; it learns exactly when the model's configuration says "context"."""
        return HopeCache("context" if self.levels and self.config.learning == "context" else "off", memory)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: HopeCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and with `labels` (-100 is ignored) the mean next-token loss.

        input_ids: `[B, L]`. attention_mask: `[B, L]` or `[B, past + L]`, 0 at padding, on any side.
        past_key_values: a `HopeCache`; its mode says whether this call learns.
        """
        if past_key_values is not None and not isinstance(past_key_values, HopeCache):
            raise ValueError(
                f"past_key_values is a {type(past_key_values).__name__}; pass a HopeCache (model.new_cache())"
            )
        use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        cache = past_key_values or self.new_cache()
        keep = slice(-logits_to_keep or None, None) if isinstance(logits_to_keep, int) else logits_to_keep
        if cache.learning == "context":
            logits = self._learn(input_ids, attention_mask, position_ids, cache, inputs_embeds, logits_to_keep)[:, keep]
        else:
            hidden = self.model(input_ids, attention_mask, position_ids, cache, inputs_embeds).last_hidden_state
            weights = effective(cache.memory or (), {HEAD: self.lm_head.weight})
            logits = self.head(hidden[:, keep], weights)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache if use_cache else None)

    def _learn(self, ids: Any, mask: Any, positions: Any, cache: HopeCache, embeds: Any, keep: Any) -> Tensor:
        """Logits `[B, L, V]`, of the last `keep` tokens at least."""
        if not self.levels:
            raise ValueError("learning='context' but the model has no levels; give the configuration levels")
        if ids is None or embeds is not None:
            raise ValueError(
                "learning needs input_ids, since the next token is the label; with inputs_embeds use learning='off'"
            )
        outer = torch.is_grad_enabled()  # asked before the next line, which switches gradients on
        with torch.inference_mode(False), torch.set_grad_enabled(outer):
            ids = ids.clone() if ids.is_inference() else ids
            rows = Rows(ids, mask, positions, cache)
            keep = keep if isinstance(keep, int) and rows.lengths is None else 0
            logits = rows.back(reading.read(self, rows.align(ids), rows.lengths, cache, keep))
        cache.advance(ids.shape[1])
        return logits

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        if generation_config.cache_implementation is not None:
            found = generation_config.cache_implementation
            raise ValueError(
                f"cache_implementation={found!r} does not fit: a HopeCache is made by itself; leave it out"
            )
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = self.new_cache()
        parent = super()._prepare_cache_for_generation  # pyright: ignore[reportAttributeAccessIssue] - see generate
        parent(generation_config, model_kwargs, *args, **kwargs)


class Rows:
    """Left-align the rows of a batch, and put results back where their tokens stood.

    A padded token is not read: positions count real tokens, so a row's result does not depend on its padding.
    """

    def __init__(self, x: Tensor, mask: Tensor | None, positions: Tensor | None, cache: HopeCache | None) -> None:
        self.order: Tensor | None = None
        self.lengths: Tensor | None = None
        batch, length = x.shape[:2]
        if length == 0:
            raise ValueError("the input is empty; give at least one token")
        if mask is not None:
            if mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] < length:
                raise ValueError(
                    f"attention_mask has shape {tuple(mask.shape)}; expected [B, L] = {(batch, length)}, 0 at padding"
                )
            mask = mask[:, -length:].bool()
            self.lengths = mask.sum(1).cpu()
            if bool((self.lengths == length).all()):
                self.lengths = None
            else:
                self.order = torch.argsort(~mask, dim=1, stable=True)
        if positions is not None:
            self._check(positions, mask, cache)

    def _check(self, positions: Tensor, mask: Tensor | None, cache: HopeCache | None) -> None:
        """Positions follow from the tokens read. Others, as of packed documents, would be read as one stream."""
        mask = torch.ones_like(positions, dtype=torch.bool) if mask is None else mask
        steps = positions.diff(dim=1)[
            mask[:, 1:].expand_as(positions[:, 1:]) & mask[:, :-1].expand_as(positions[:, 1:])
        ]
        if bool((steps != 1).any()):
            raise ValueError(
                "position_ids jump; positions follow from the tokens read. Give packed documents a row each"
            )

    def align(self, x: Tensor) -> Tensor:
        return x if self.order is None else self._gather(x, self.order)

    def back(self, x: Tensor) -> Tensor:
        return x if self.order is None else self._gather(x, self.order.argsort(dim=1))

    @staticmethod
    def _gather(x: Tensor, order: Tensor) -> Tensor:
        return x.gather(1, order.view(*order.shape, *[1] * (x.dim() - 2)).expand_as(x))


AutoConfig.register("nestling_hope", HopeConfig)
AutoModel.register(HopeConfig, HopeModel)
AutoModelForCausalLM.register(HopeConfig, HopeForCausalLM)
