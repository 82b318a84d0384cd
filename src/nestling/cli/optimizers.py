"""Optimisers by name."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from nestling.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

AROUND = ("Optimizer", "Retained", "Shell")  # the bases, and what stands around another optimiser
# Whose first step, which makes their state, cannot be tried without data.
WITH_DATA = ("Adafactor", "ASGD", "LBFGS", "SparseAdam")


def make_optimizers(network: PreTrainedModel, given: str | dict[str, Any]) -> list[Any]:
    """What trains a model: an optimiser by name, or by its settings and a name; and before it what moves levels, if it is another.

    Raises:
        UserError: no name, no such optimiser, one of which nothing can be said without data, or settings that it does not take.
    """
    import torch

    from nestling import optim

    settings = {"name": given} if isinstance(given, str) else dict(given)
    if "name" not in settings:
        raise UserError(
            f'optimizer={given!r} has no name; give one with the settings: {{"name": "SGD", "momentum": 0.9}}'
        )
    kind = _kind(settings.pop("name"), (torch.optim, optim))
    _check_settings(kind, settings)
    by_level = _by_level(network)
    moved: set[Tensor] = {o.weights[weight] for o in by_level for weight in o.moved}
    name, head = kind.__name__, _head(network)
    try:
        if name == "DGD":
            groups = _without(optim.layer_groups(network, plain=_tied(network)), moved)
            return [*by_level, kind(groups, network, **{"lr": 1e-3, **settings})]
        if name not in ("M3", "Muon"):
            left = [p for p in network.parameters() if p.requires_grad and p not in moved]
            return [*by_level, kind(left, **settings)]
        groups = _without(optim.matrix_groups(network, head), moved)
        if name == "M3":
            return [*by_level, kind(groups, **settings)]
        rest = [torch.optim.AdamW(group["params"]) for group in groups[1:]]
        return [*by_level, kind(groups[0]["params"], **settings), *rest]
    except TypeError as error:
        raise UserError(f"optimizer {name}: {error}") from None


def _kind(name: Any, homes: tuple[Any, ...]) -> type:
    """The optimiser of a name, of the last of the modules that has one."""
    kinds = {kind: getattr(home, kind) for home in homes for kind in _names(home)}
    choices = f"choose {', '.join(sorted(kinds.keys() - set(WITH_DATA)))}"
    if name in WITH_DATA:
        raise UserError(f"optimizer={name!r} makes its state in its first step, of data that are not here; {choices}")
    if name not in [*kinds]:
        raise UserError(f"optimizer={name!r} is unknown; {choices}")
    return kinds[name]


def _check_settings(kind: type, settings: dict[str, Any]) -> None:
    """Those that an optimiser takes beside the parameters and the model."""
    allowed = [name for name in inspect.signature(kind).parameters if name not in ("params", "model")]
    if unknown := [name for name in settings if name not in allowed]:
        raise UserError(f"optimizer {kind.__name__} has no setting {unknown[0]!r}; it takes {', '.join(allowed)}")


def _names(home: Any) -> list[str]:
    """The optimisers of a module that can be made from parameters and settings."""
    import torch

    kinds = {name: kind for name, kind in vars(home).items() if isinstance(kind, type) and name not in AROUND}
    return [name for name, kind in kinds.items() if issubclass(kind, torch.optim.Optimizer)]


def _by_level(network: PreTrainedModel) -> list[Any]:
    """What moves the levels of a model that learns only while it is trained."""
    from nestling.models import LearningModel

    if isinstance(network, LearningModel) and network.levels and network.config.learning == "parameter":
        return [network.level_optimizer()]
    return []


def _head(network: PreTrainedModel) -> list[str]:
    """The name of the output head, if there is one."""
    head = network.get_output_embeddings()
    return [name for name, module in network.named_modules() if head is not None and module is head]


def _tied(network: PreTrainedModel) -> list[str]:
    """The names of the modules that share a weight with the output head."""
    weights = {network.get_submodule(name)._parameters.get("weight") for name in _head(network)} - {None}
    found = [name for name, module in network.named_modules() if module._parameters.get("weight") in weights]
    return found if len(found) > 1 else []


def _without(groups: list[dict[str, Any]], moved: set[Tensor]) -> list[dict[str, Any]]:
    """Parameter groups without some parameters; empty ones are left out."""
    left = [{**group, "params": [p for p in group["params"] if p not in moved]} for group in groups]
    return [group for group in left if group["params"]]
