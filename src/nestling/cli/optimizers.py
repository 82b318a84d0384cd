"""Optimisers by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nestling.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

AROUND = ("Optimizer", "Retained", "Shell")  # the bases, and what stands around another optimiser


def make_optimizers(network: PreTrainedModel, given: str | dict[str, Any]) -> list[Any]:
    """What trains a model: an optimiser by name, or by its settings and a name; and before it what moves levels, if it is another.

    Raises:
        UserError: no such optimiser, or settings that it does not take.
    """
    import torch

    from nestling import optim

    settings = {"name": given} if isinstance(given, str) else dict(given)
    name = settings.pop("name", None)
    homes = {kind: home for home in (torch.optim, optim) for kind in _names(home)}
    if name not in homes:
        raise UserError(f"optimizer={name!r} is unknown; choose {', '.join(sorted(homes))}")
    by_level = _by_level(network)
    moved: set[Tensor] = {o.weights[weight] for o in by_level for weight in o.moved}
    kind, head = getattr(homes[name], name), _head(network)
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
