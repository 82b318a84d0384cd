"""One user: what the levels have learnt for them, where their stream stands, and how both were before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nestling.errors import UserError
from nestling.models import HopeCache
from nestling.models.learning import LearningModel
from nestling.models.saved import below, cache_from, cache_tree


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
        now = cache_tree(self.cache) | {"logits": self.logits}
        return now | {"snapshots": {name: snapshot.tree() for name, snapshot in self.snapshots.items()}}


def from_tensors(model: LearningModel, tensors: dict[str, Tensor]) -> User:
    """The inverse of `User.tree`, from tensors by name. Raises KeyError where one is missing."""
    user = User(cache_from(model, tensors))
    if "logits" in tensors:
        user.logits = tensors["logits"].to(model.device)
    snapshots = below(tensors, "snapshots")
    for name in sorted({name.partition("/")[0] for name in snapshots}):
        user.snapshots[name] = from_tensors(model, below(snapshots, name))
    return user


def check_snapshot_name(name: str, taken: dict[str, User]) -> str:
    """The name, if a snapshot can have it."""
    if not name or "/" in name:
        raise UserError(f"{name!r} is no name of a snapshot; give one without '/' that is not empty")
    if name in taken:
        raise UserError(f"snapshot {name!r} exists already; give another name than {', '.join(map(repr, taken))}")
    return name
