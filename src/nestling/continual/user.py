"""One user: what the levels have learnt for them, where their stream stands, and how both were before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from nestling.errors import UserError
from nestling.levels import initial
from nestling.models import HopeCache
from nestling.models.cache import Session
from nestling.models.learning import LearningModel
from nestling.models.reading import start_session
from nestling.ops.state import with_tensors


@dataclass
class User:
    """cache: memory and session. logits: `[1, 1, V]`, what the last token read predicts. snapshots: by name.

    States are frozen, so that a copy costs nothing until one of the two moves on.
    """

    cache: HopeCache
    logits: Tensor | None = None
    snapshots: dict[str, User] = field(default_factory=dict)

    def copy(self) -> User:
        """The same, to go on by itself."""
        return User(self.cache.copy(), self.logits, dict(self.snapshots))

    def tree(self) -> dict[str, Any]:
        """Everything as a tree of tensors; the snapshots have none of their own."""
        columns = torch.tensor([self.cache.get_seq_length()])
        now = {"memory": self.cache.memory, "session": self.cache.session, "logits": self.logits, "columns": columns}
        return now | {"snapshots": {name: snapshot.tree() for name, snapshot in self.snapshots.items()}}


def from_tensors(model: LearningModel, tensors: dict[str, Tensor]) -> User:
    """The inverse of `User.tree`, from tensors by name. Raises KeyError where one is missing."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition("/")
        parts.setdefault(head, {})[rest] = tensor
    user = User(model.new_cache(_tree(_no_memory(model), parts.get("memory"))))
    user.cache.session = _tree(_no_session(model, parts.get("session", {})), parts.get("session"))
    user.cache.advance(int(parts["columns"][""]))
    if "logits" in parts:
        user.logits = parts["logits"][""].to(model.device)
    for name in sorted({name.partition("/")[0] for name in parts.get("snapshots", {})}):
        inside = {n.partition("/")[2]: t for n, t in parts["snapshots"].items() if n.partition("/")[0] == name}
        user.snapshots[name] = from_tensors(model, inside)
    return user


def _no_memory(model: LearningModel) -> Any:
    return initial(model.levels, model.moves, model.learnable_weights(), batch=1)


def _no_session(model: LearningModel, names: Iterable[str]) -> Session:
    session = start_session(model, batch=1)
    return session if any(name.startswith("segment/") for name in names) else replace(session, segment=None)


def _tree(template: Any, tensors: dict[str, Tensor] | None) -> Any:
    return None if tensors is None else with_tensors(template, tensors)


def check_snapshot_name(name: str, taken: dict[str, User]) -> str:
    """The name, if a snapshot can have it."""
    if not name or "/" in name:
        raise UserError(f"{name!r} is no name of a snapshot; give one without '/' that is not empty")
    if name in taken:
        raise UserError(f"snapshot {name!r} exists already; give another name than {', '.join(map(repr, taken))}")
    return name
