"""nestling: models made of associative memories that learn at many timescales and keep learning after deployment.

Names are imported when they are first used, so that `import nestling` is quick; `nestling.HopeForCausalLM` brings
transformers, and registers Hope with its Auto classes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "AssociativeMemory": "memory",
    "ConvertedConfig": "models",
    "ConvertedForCausalLM": "models",
    "ConvertedModel": "models",
    "HopeCache": "models",
    "HopeConfig": "models",
    "HopeForCausalLM": "models",
    "HopeModel": "models",
    "Learner": "continual",
    "Level": "levels",
    "Recall": "models",
    "convert": "models",
}

__all__ = ["AssociativeMemory", "HopeCache", "HopeConfig", "HopeForCausalLM", "HopeModel", "Learner", "Level", "Recall"]
__all__ += ["ConvertedConfig", "ConvertedForCausalLM", "ConvertedModel", "convert"]
__all__ += ["continual", "evals", "layers", "levels", "memory", "models", "ops", "optim", "report", "train"]

if TYPE_CHECKING:
    from nestling import continual, evals, layers, levels, memory, models, ops, optim, report, train
    from nestling.continual import Learner
    from nestling.levels import Level
    from nestling.memory import AssociativeMemory
    from nestling.models import (
        ConvertedConfig,
        ConvertedForCausalLM,
        ConvertedModel,
        HopeCache,
        HopeConfig,
        HopeForCausalLM,
        HopeModel,
        Recall,
        convert,
    )


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"nestling.{_HOMES[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"nestling.{name}")
    raise AttributeError(f"module 'nestling' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
