"""The configuration of a converted model: the original's, and what its levels are."""

from __future__ import annotations

from typing import Any

import transformers
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from nestling.levels import Level, as_levels
from nestling.models.config import LEARNING, check_outer_gradient
from nestling.models.recall import as_recall

FORMS = ("superposed", "chain", "dealt")
ASSIGN = ("mlp", "last_quarter", "blocks", "all")
KNOWN = {"dtype", "torch_dtype", "attn_implementation", "name_or_path", "transformers_version", "model_type"}


@strict
class ConvertedConfig(PreTrainedConfig):
    """Configuration of a model that `nestling.convert` made.

    text_config: the original model's configuration. architecture: the name of its class in transformers.
    levels, assign, form, learning, window, outer_gradient, recall: see `nestling.convert`.

    Unknown keys and values raise a ValueError.
    """

    model_type = "nestling_converted"
    keys_to_ignore_at_inference = ["past_key_values"]
    sub_configs = {"text_config": AutoConfig}  # pyright: ignore[reportAssignmentType] - as transformers' own models have it

    text_config: dict | PreTrainedConfig | None = None
    architecture: str = ""
    levels: list | tuple | None = None
    assign: str | list | tuple = "mlp"
    form: str = "superposed"
    learning: str = "context"
    outer_gradient: str = "first-order"
    window: int | None = None
    recall: Any = None
    use_cache: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if unknown := {key for key in kwargs if key not in KNOWN and not key.startswith("_")}:
            allowed = sorted(name for name in ConvertedConfig.__annotations__)
            raise ValueError(f"unknown configuration key {sorted(unknown)}; ConvertedConfig knows {', '.join(allowed)}")
        if isinstance(self.text_config, dict):
            given = dict(self.text_config)
            self.text_config = AutoConfig.for_model(given.pop("model_type"), **given)
        self.levels = [level.to_dict() for level in as_levels(self.levels or [])]
        recall = as_recall(self.recall)
        self.recall = recall and recall.to_dict()
        self.assign = list(self.assign) if not isinstance(self.assign, str) else self.assign
        for name, allowed in (("form", FORMS), ("learning", LEARNING)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose {' or '.join(map(repr, allowed))}")
        check_outer_gradient(self.outer_gradient, self.level_objects())
        super().__post_init__(**kwargs)

    def level_objects(self) -> list[Level]:
        """The levels as `nestling.Level`s."""
        return as_levels(self.levels or [])

    def original_class(self) -> type[PreTrainedModel]:
        """The class of the original model."""
        found = getattr(transformers, self.architecture, None)
        if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
            raise ValueError(
                f"architecture={self.architecture!r} is no model class of transformers {transformers.__version__}; "
                "a model with code of its own cannot be saved converted"
            )
        return found
