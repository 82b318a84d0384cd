"""What every language model that learns while it reads has in common, whatever its blocks are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from nestling.levels import (
    HasLevels,
    Level,
    LevelOptimizer,
    Moving,
    Outputs,
    asked,
    blocks,
    outputs,
    second_moments,
)
from nestling.models import reading
from nestling.models.cache import HopeCache
from nestling.models.recall import Recall, Recent, nothing_yet, recalled
from nestling.models.segment import IGNORED
from nestling.models.stream import Stream
from nestling.models.tokens import Tokens


class LearningModel(PreTrainedModel, GenerationMixin, HasLevels):
    """A causal language model whose levels move while it reads; its cache is a `HopeCache`.

    A subclass has `levels`, `moves` (for each level the names of the weights it moves) and `recall`, and says how to read: `begin`,
    `run` and `recite`. It gets `forward` and `generate`.
    """

    generate: Callable[..., Any]  # as inherited, whose type asks for attributes that a model need not have
    levels: list[Level]
    moves: list[list[str]]
    recall: Recall | None

    def learnable_weights(self) -> dict[str, Tensor]:
        """The weights that levels may move, `[out, in]` by name. Levels start from them."""
        raise NotImplementedError

    def module_of(self, name: str) -> nn.Module:
        """The module that uses a weight of `learnable_weights`."""
        raise NotImplementedError

    def watch(self, mask: Tensor | None, exact: bool = False) -> AbstractContextManager[dict[str, Tensor]]:
        """While open, what the rules of levels ask for is gathered: `nestling.levels.second_moments`, by weight name."""
        factors = asked(self.levels, self.moves, self.learnable_weights())
        modules = {name: self.module_of(name) for name in factors}
        return second_moments(modules, mask, factors, exact, blocks(self.levels, self.moves))

    def listen(self) -> AbstractContextManager[Outputs]:
        """While open, the outputs are kept whose gradients the rules of levels ask for: `nestling.levels.outputs`."""
        asking = [names for level, names in zip(self.levels, self.moves, strict=True) if level.feels]
        return outputs({name: self.module_of(name) for names in asking for name in names})

    def begin(self, batch: int) -> tuple[Any, ...]:
        """The states of what mixes over time, before the first token."""
        raise NotImplementedError

    def run(
        self, weights: dict[str, Tensor], ids: Tensor, mixers: tuple[Any, ...], lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
        """Logits of left-aligned tokens `[B, L]`, what the head was given `[B, L, D]`, and the mixers' states after them, with
        `weights` for the model's own.
        """
        raise NotImplementedError

    def recite(self, x: Tensor, rows: Rows, cache: HopeCache, keep: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[B, keep, V]` of ids or embeddings, with what the cache's memory holds, and what the head was given `[B, keep, D]`;
        nothing is learnt.
        """
        raise NotImplementedError

    def moving(self) -> Moving | None:
        if self.new_cache().learning != "context":
            return None
        return Moving(self.levels, self.moves, self.learnable_weights(), "next-token loss")

    def level_optimizer(self) -> LevelOptimizer:
        """The optimiser of the parameter regime, over this model's own weights."""
        raise NotImplementedError

    def new_cache(self, memory: Any = None) -> HopeCache:
        """A cache that has read nothing; it learns exactly when the model's configuration says "context"."""
        return HopeCache("context" if self.levels and self.config.learning == "context" else "off", memory)

    def stream(
        self, tokens: Tokens, checkpoint: str | Path | None = None, every: int = 100_000, block: int | None = None
    ) -> Stream:
        """Read tokens without an end, in memory that does not grow with them.

            stream = model.stream(tokens, checkpoint="book.safetensors")
            for progress in stream:  # a block at a time; stream.read() reads to the end
                print(progress.position, progress.loss)
            stream.cache  # what was read, to answer from

        tokens: ids `[N]`, or any iterable of ids or of chunks `[n]` of them, of which none is kept.
        checkpoint: a file, written about every `every` tokens and at the end. Where it exists the stream goes on from there;
            `tokens` begins at the beginning all the same, and what was read before is passed over. The numbers are those of a
            reading that was not interrupted, bit for bit. The file is also a memory that `nestling.Learner.load` takes.
        block: tokens of a call; None chooses whole periods. Another one changes results by rounding.

        Raises:
            ValueError: a mixer that keeps every token.
            UserError: what holds no tokens, or others than the model knows; a checkpoint that is damaged, or of another model,
                of other tokens or of another block.
        """
        return Stream(self, tokens, checkpoint, every, block)

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
        lessons: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and with `labels` (-100 is ignored) the mean next-token loss.

        input_ids: `[B, L]`. attention_mask: `[B, L]` or `[B, past + L]`, 0 at padding, on any side.
        past_key_values: a `HopeCache`; its mode says whether this call learns.
        labels: `[B, L]` int64, for the returned loss alone: what training the model minimises. Levels never see them.
        lessons: `[B, L]` int64, what levels learn while they read, aligned as `labels` are: what they should have predicted in
            each token's place from the tokens before it, or -100, from which they learn nothing. None: the tokens themselves.
            Periods are counted in tokens, and an update is made of the mean gradient of its period's lessons; a period without
            any makes no update.

        Raises:
            ValueError: lessons of another shape or dtype, outside the vocabulary, or where nothing learns; and for other input
                that does not fit the message says what would.
        """
        if past_key_values is not None and not isinstance(past_key_values, HopeCache):
            raise ValueError(
                f"past_key_values is a {type(past_key_values).__name__}; pass a HopeCache (model.new_cache())"
            )
        use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        cache = past_key_values or self.new_cache()
        keep = slice(-logits_to_keep or None, None) if isinstance(logits_to_keep, int) else logits_to_keep
        recall = self.recall if cache.recalls else None
        if cache.learning == "context":
            given = input_ids, lessons, attention_mask, position_ids
            logits, hidden = self._learn(*given, cache, inputs_embeds, 0 if recall else logits_to_keep)
            logits = logits if recall else logits[:, keep]
        else:
            if lessons is not None:
                raise ValueError(
                    "lessons were given, but this reading learns nothing; use learning='context', or leave them out"
                )
            x = one_of(input_ids, inputs_embeds)
            every = slice(None)
            logits, hidden = self.recite(x, Rows(x, attention_mask, position_ids), cache, every if recall else keep)
            cache.advance(x.shape[1])
        if recall:
            logits = self._recalled(recall, logits, hidden, input_ids, attention_mask, cache)[:, keep]
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.get_text_config().vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache if use_cache else None)

    def _learn(
        self, ids: Any, lessons: Any, mask: Any, positions: Any, cache: HopeCache, embeds: Any, keep: Any
    ) -> tuple[Tensor, Tensor]:
        """Logits `[B, L, V]`, and what the head was given, of the last `keep` tokens at least."""
        if not self.levels:
            raise ValueError("learning='context' but the model has no levels; give the configuration levels")
        if ids is None or embeds is not None:
            raise ValueError(
                "learning needs input_ids, since the next token is the label; with inputs_embeds use learning='off'"
            )
        lessons = ids if lessons is None else check_lessons(lessons, ids, self.config.get_text_config().vocab_size)
        outer = torch.is_grad_enabled()  # asked before the next line, which switches gradients on
        with torch.inference_mode(False), torch.set_grad_enabled(outer):
            ids, lessons = (t.clone() if t.is_inference() else t for t in (ids, lessons))
            rows = Rows(ids, mask, positions)
            keep = keep if isinstance(keep, int) and rows.lengths is None else 0
            found = reading.read(self, rows.align(ids), rows.align(lessons), rows.lengths, cache, keep)
            logits, hidden = map(rows.back, found)
        cache.advance(ids.shape[1])
        return logits, hidden

    def _recalled(
        self, recall: Recall, logits: Tensor, hidden: Tensor, ids: Tensor | None, mask: Tensor | None, cache: HopeCache
    ) -> Tensor:
        """The model's own predictions and those of its recall as one, `[B, L, V]`."""
        if ids is None:
            raise ValueError("a recall needs input_ids, since it keeps which token came; give them, or use recall=None")
        rows, recent = Rows(ids, mask, None), cache.recent or self.nothing_recent(recall, len(ids))
        logits, hidden, ids = map(rows.align, (logits, hidden, ids))
        logits, cache.recent = recalled(recall, logits, hidden, ids, rows.lengths, recent)
        return rows.back(logits)

    def nothing_recent(self, recall: Recall, batch: int) -> Recent:
        """What a recall has before the first token."""
        head = self.get_output_embeddings()
        assert head is not None  # every language model has one
        return nothing_yet(recall, batch, head.get_parameter("weight"))

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


def one_of(ids: Tensor | None, embeds: Tensor | None) -> Tensor:
    """The input that was given, ids or embeddings; a ValueError unless it is exactly one of them."""
    if ids is not None and embeds is None:
        return ids
    if embeds is not None and ids is None:
        return embeds
    raise ValueError("pass exactly one of input_ids and inputs_embeds")


def check_lessons(lessons: Tensor, ids: Tensor, size: int) -> Tensor:
    """The lessons, where they are of these ids and of a vocabulary of `size`; a ValueError otherwise."""
    if lessons.shape != ids.shape or lessons.dtype != torch.int64:
        found = f"{tuple(lessons.shape)} {lessons.dtype}"
        raise ValueError(f"lessons are {found}; expected {tuple(ids.shape)} torch.int64, one for each of the input_ids")
    if bool(((lessons != IGNORED) & ((lessons < 0) | (lessons >= size))).any()):
        raise ValueError(f"lessons must be tokens, 0 to {size - 1}, or {IGNORED} where nothing is to be learnt")
    return lessons.to(ids.device)


class Rows:
    """Left-align the rows of a batch, and put results back where their tokens stood.

    A padded token is not read: positions count real tokens, so a row's result does not depend on its padding.
    """

    def __init__(self, x: Tensor, mask: Tensor | None, positions: Tensor | None) -> None:
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
            self._check(positions, mask)

    def _check(self, positions: Tensor, mask: Tensor | None) -> None:
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
