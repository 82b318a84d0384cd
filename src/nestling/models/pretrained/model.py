"""A pretrained transformers model whose weights have levels: it reads, generates, saves, loads and goes back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from nestling.levels import FastWeights, LevelOptimizer, effective
from nestling.memory import GradientDescent
from nestling.models.cache import HopeCache, Session
from nestling.models.learning import LearningModel, Rows
from nestling.models.pretrained import past as attention
from nestling.models.pretrained.config import ConvertedConfig
from nestling.models.pretrained.forms import shape
from nestling.models.pretrained.merge import merge
from nestling.models.pretrained.structure import adapted, matrix
from nestling.models.pretrained.weights import in_place
from nestling.models.recall import as_recall, given_to
from nestling.ops.ragged import join, pieces


class Converted(PreTrainedModel):
    """What every converted model has: the original `inner`, and levels that move some of its linear maps.

    levels, moves: the levels, and for each the names of the weights it moves. maps: the moved maps, by weight name.
    """

    config_class = ConvertedConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    inner: PreTrainedModel

    def __init__(self, config: ConvertedConfig, inner: PreTrainedModel | None = None) -> None:
        """`inner`: the pretrained model, which is taken over; without it one is made, to be loaded into."""
        super().__init__(config)
        made = config.original_class()._from_config(config.text_config) if inner is None else inner
        assert isinstance(made, PreTrainedModel)
        self.inner, self.levels, self.recall = made, config.level_objects(), as_recall(config.recall)
        if made.can_generate():
            self.generation_config = made.generation_config
        names = shape(made, len(self.levels), config.assign, config.form)
        self.moves = [[f"{name}.weight" for name in moved] for moved in names]
        # plain references: a module registered twice would be saved twice
        self.maps = {f"{n}.weight": made.get_submodule(n) for moved in names for n in moved}
        with no_init_weights():  # what is pretrained stays
            self.post_init()

    def learnable_weights(self) -> dict[str, Tensor]:
        return {name: matrix(module) for name, module in self.maps.items()}

    def level_optimizer(self) -> LevelOptimizer:
        """The optimiser of the parameter regime, over the original's own weights."""
        for level, names in zip(self.levels, self.moves, strict=True):
            turned = [n for n in names if self.maps[n].get_parameter("weight") is not matrix(self.maps[n])]
            if turned and not isinstance(level.rule, GradientDescent):
                raise ValueError(
                    f"{turned[0]} is stored as [in, out], and rule={level.rule!r} takes [out, in] here; use "
                    "GradientDescent(), or learning='context'"
                )
        now = {module: f"{name}.weight" for name, module in self.inner.named_modules()}  # an adapter gives other names
        return LevelOptimizer(self.inner, self.levels, [[now[self.maps[n]] for n in names] for names in self.moves])

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """As transformers' models are saved.

        Raises:
            ValueError: a package of adapters has wrapped maps, under names that loading would not find again.
        """
        if (wrapped := adapted(self)) and not self._hf_peft_config_loaded:
            raise ValueError(
                f"{wrapped[0]} holds an adapter, which is not part of the model: save the adapter by its own package, or fold it "
                "in first (in peft, save_pretrained() or merge_and_unload() of the PeftModel)"
            )
        super().save_pretrained(save_directory, **kwargs)

    def merge(self, memory: FastWeights | None = None) -> PreTrainedModel:
        """The original model with what was learnt folded into its weights: see `nestling.models.pretrained.merge`."""
        return merge(self.inner, self.maps, memory)

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.inner.get_output_embeddings()


class ConvertedModel(Converted):
    """A converted encoder, or any model without a next token to predict. Its levels are moved by `level_optimizer`."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the original's forward pass gives."""
        return self.inner(*args, **kwargs)


class ConvertedForCausalLM(Converted, LearningModel):
    """A converted language model. It learns while it reads, as `HopeForCausalLM` does, and its cache is a `HopeCache`.

    A stream may be longer than the model's positions: after `config.window` tokens attention begins anew, the levels go on.
    """

    _is_stateful = True

    def new_cache(self, memory: Any = None) -> HopeCache:
        """As every model's; where no level has a rate above 0 nothing can be learnt, and reading is the original's."""
        return super().new_cache(memory) if any(level.lr for level in self.levels) else HopeCache("off", memory)

    def module_of(self, name: str) -> nn.Module:
        return self.maps[name]

    def begin(self, batch: int) -> tuple[attention.Past]:
        blocks = self.config.get_text_config().num_hidden_layers
        return (attention.begin(batch, blocks, torch.empty(0, dtype=self.dtype, device=self.device)),)

    def run(
        self, weights: dict[str, Tensor], ids: Tensor, mixers: tuple[Any, ...], lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
        return self._run(weights, ids, mixers, lengths)

    def _run(
        self, weights: dict[str, Tensor], x: Tensor, mixers: tuple[Any, ...], lengths: Any, keep: Any = 0
    ) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
        if self.training and any(getattr(module, "gradient_checkpointing", False) for module in self.modules()):
            raise ValueError(
                "gradient checkpointing would repeat a pass with other weights than it had; call eval() or "
                "gradient_checkpointing_disable(), or use learning='parameter' without a cache"
            )
        own = {name: weights[name] for name in weights if weights[name].dim() == 3}
        with in_place(self.maps, own), given_to(self.get_output_embeddings()) as hidden:
            logits, past = attention.read(self.inner, x, lengths, mixers[0], self.config.window, keep)
        return logits, hidden[0], (past,)

    def recite(self, x: Tensor, rows: Rows, cache: HopeCache, keep: slice | Tensor) -> tuple[Tensor, Tensor]:
        session = cache.session or Session(self.begin(len(x)))
        if session.segment is not None:
            raise ValueError("this cache learns; go on with learning='context', or begin one with learning='off'")
        weights, mixers = effective(cache.memory or (), self.learnable_weights()), session.mixers
        cut = pieces(mixers[0].position, rows.lengths, x.shape[1], self.config.window)
        x, outputs = rows.align(x), list[tuple[Tensor, Tensor]]()
        whole = len(cut) == 1 and rows.lengths is None
        for piece in cut:
            lengths = None if piece.mask(x.device) is None else piece.count
            wanted = _number(keep) if whole else 0
            *found, mixers = self._run(weights, piece.take(x), mixers, lengths, wanted)
            outputs.append((found[0], found[1]))
        cache.session = Session(mixers)
        if whole and _number(keep):
            return outputs[0]
        logits, hidden = (rows.back(join([*parts], cut, x.shape[1]))[:, keep] for parts in zip(*outputs, strict=True))
        return logits, hidden

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As `LearningModel.forward`. Without a cache and without learning it is the original's, which knows more options."""
        cached = kwargs.get("past_key_values") is not None or kwargs.get("use_cache", not self.training)
        if cached or args or "lessons" in kwargs or self.new_cache().learning == "context":
            return super().forward(*args, **kwargs)
        return self.inner(**kwargs)


def _number(keep: slice | Tensor) -> int:
    """How many last tokens `keep` wants, 0 for all; a choice of single tokens is made afterwards."""
    return -keep.start if isinstance(keep, slice) and keep.start else 0


AutoConfig.register(ConvertedConfig.model_type, ConvertedConfig)
AutoModel.register(ConvertedConfig, ConvertedModel)
AutoModelForCausalLM.register(ConvertedConfig, ConvertedForCausalLM)
