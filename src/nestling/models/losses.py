"""What a stream that comes in calls is judged by."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def next_token_losses(logits: Tensor, ids: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """Losses of the tokens `ids [1, L]`, the first one predicted by the logits `before` it, and the last logits."""
    predictions = logits if before is None else torch.cat([before.to(logits), logits], dim=1)
    targets = ids[0, 1:] if before is None else ids[0]
    exact = torch.promote_types(logits.dtype, torch.float32)
    losses = F.cross_entropy(predictions[0, : len(targets)].to(exact), targets, reduction="none")
    return losses.cpu(), logits[:, -1:]
