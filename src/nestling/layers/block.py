"""The block: a mixer over time and a continuum memory over features."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nestling.layers.attention import Attention
from nestling.layers.continuum import ContinuumMemory
from nestling.layers.memory_layer import MemoryLayer
from nestling.layers.self_modifying import SelfModifyingTitans


class Block(nn.Module):
    """`x + mixer(norm(x))`, then the continuum memory (norm and residual its own). `x, state = block(x, state)`.

    Hope is self-modifying Titans with a continuum memory, Hope-Attention attention with one, and a Transformer++
    attention with a continuum memory of no levels: one block, three configurations.
    """

    def __init__(self, dim: int, mixer: Attention | MemoryLayer | SelfModifyingTitans, mlp: ContinuumMemory) -> None:
        super().__init__()
        self.norm, self.mixer, self.mlp = nn.RMSNorm(dim, eps=1e-6), mixer, mlp

    def init_state(self, batch: int) -> Any:
        """The mixer's state before the first token."""
        return self.mixer.init_state(batch)

    def forward(self, x: Tensor, state: Any = None, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        """`x [B, L, D]`; state as the mixer's; `lengths [B]`, the real tokens of each row (None: all)."""
        y, state = self.mixer(self.norm(x), state, lengths)
        return self.mlp(x + y), state
