"""A cache as tensors by name, and back: what files of memories and of streams hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nestling.levels import FastWeights, initial
from nestling.models.cache import HopeCache, Session
from nestling.models.reading import start_session
from nestling.ops.state import with_tensors

if TYPE_CHECKING:
    from nestling.models.learning import LearningModel


def cache_tree(cache: HopeCache) -> dict[str, Any]:
    """Everything that a cache holds, as a tree of tensors."""
    held = {"memory": cache.memory, "session": cache.session, "recent": cache.recent}
    return held | {"columns": torch.tensor([cache.get_seq_length()])}


def cache_from(model: LearningModel, tensors: dict[str, Tensor]) -> HopeCache:
    """The inverse of `cache_tree`, from tensors by name; those of other names are left. Raises KeyError where one is missing.

    What was recent stays so for a model whose recall has the same window; another one's begins with nothing.
    """
    memory, session = below(tensors, "memory"), below(tensors, "session")
    cache = model.new_cache(with_tensors(_no_memory(model), memory) if memory else None)
    cache.session = with_tensors(_no_session(model, session), session) if session else None
    if model.recall and (recent := below(tensors, "recent")):
        nothing = model.nothing_recent(model.recall, batch=1)
        cache.recent = with_tensors(nothing, recent) if recent["tokens"].shape == nothing.tokens.shape else None
    cache.advance(int(tensors["columns"]))
    return cache


def below(tensors: dict[str, Tensor], head: str) -> dict[str, Tensor]:
    """The tensors under a name, without it."""
    return {n.removeprefix(f"{head}/"): tensor for n, tensor in tensors.items() if n.startswith(f"{head}/")}


def _no_memory(model: LearningModel) -> FastWeights:
    return initial(model.levels, model.moves, model.learnable_weights(), batch=1)


def _no_session(model: LearningModel, names: Iterable[str]) -> Session:
    learns = any(name.startswith("segment/") for name in names)
    return start_session(model, batch=1) if learns else Session(model.begin(1))
