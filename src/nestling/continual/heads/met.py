"""The classes met so far: a label space that grows."""

from __future__ import annotations

import torch
from torch import Tensor


class Met:
    """Labels in the order in which they first came; the place of a label is its column in a head.

    labels: `[C]` int64. counts: `[C]` int64, examples of each.
    """

    def __init__(self) -> None:
        self.labels = torch.empty(0, dtype=torch.int64)
        self.counts = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def add(self, labels: Tensor) -> Tensor:
        """Count a batch of labels `[B]`, new ones included; returns their columns `[B]`."""
        labels = labels.to(torch.int64)
        new = [label for label in dict.fromkeys(labels.tolist()) if label not in set(self.labels.tolist())]
        self.labels = torch.cat([self.labels, torch.tensor(new, dtype=torch.int64)])
        columns = (labels[:, None] == self.labels).long().argmax(-1)
        self.counts = padded(self.counts, len(self)) + torch.bincount(columns, minlength=len(self))
        return columns

    def allowed(self, among: Tensor | None) -> Tensor:
        """Which columns may be predicted, `[C]` bool."""
        if not len(self):
            raise ValueError("no class was met yet: observe examples before predicting")
        if among is None:
            return torch.ones(len(self), dtype=torch.bool)
        found = torch.isin(self.labels, among)
        if not bool(found.any()):
            raise ValueError(f"none of the classes {among.tolist()} was met; met were {self.labels.tolist()}")
        return found


def padded(x: Tensor, length: int, dim: int = 0) -> Tensor:
    """With zeros after it along a dimension, so that new classes have their place."""
    shape = [*x.shape]
    shape[dim] = length - x.shape[dim]
    return torch.cat([x, x.new_zeros(shape)], dim) if shape[dim] else x


def codes(columns: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """One-hot rows `[B, classes]` of columns `[B]`."""
    return torch.nn.functional.one_hot(columns, classes).to(dtype)
