"""What the levels of a converted model move: the three forms of a continuum over pretrained MLPs (arXiv 2512.24695, 7.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nestling.layers.continuum import SwiGLU
from nestling.models.config import block_numbers
from nestling.models.pretrained.config import ASSIGN
from nestling.models.pretrained.structure import LINEAR, Block, find_blocks, matrix

Assign = str | Sequence[int] | Sequence[str]
Moves = list[list[str]]


class Chain(nn.Module):
    """A continuum over one pretrained MLP (Eq. 73): the MLP, then members that start as the identity, slow to fast.

    It stands where the MLP's last map was, since what comes after that map is the MLP's output, in every architecture.
    """

    def __init__(self, pretrained: nn.Module, members: int) -> None:
        super().__init__()
        like = matrix(pretrained)
        self.pretrained = pretrained
        self.members = nn.ModuleList(SwiGLU(len(like), len(like)) for _ in range(members))
        for member in self.members:
            nn.init.zeros_(member.get_submodule("down").get_parameter("weight"))
        self.members.to(like.device, like.dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pretrained(x)
        for member in self.members:
            x = member(x)
        return x

    @torch.no_grad()
    def is_identity(self) -> bool:
        """Whether the members still do nothing."""
        return not any(bool(m.get_submodule("down").get_parameter("weight").any()) for m in self.members)


def shape(model: PreTrainedModel, levels: int, assign: Assign, form: str) -> Moves:
    """For each level, fast to slow, the names of the linear maps that it moves. A chain's members are put in place.

    Raises:
        ValueError: no recognisable MLPs, nothing assigned, or a form that does not fit what is assigned.
    """
    blocks = find_blocks(model)
    if form == "superposed":
        return [_assigned(model, blocks, assign) for _ in range(levels)]
    chosen = _chosen(blocks, assign, form)
    if form == "dealt":
        if len(chosen) < levels:
            raise ValueError(f"{len(chosen)} blocks cannot be dealt to {levels} levels; give fewer levels")
        return [[name for block in chosen[level::levels] for name in block.mlp] for level in range(levels)]
    return _chained(model, chosen, levels)


def _chained(model: PreTrainedModel, blocks: list[Block], levels: int) -> Moves:
    """Put a chain into every block. The pretrained member is the slowest level's."""
    moves: Moves = [[] for _ in range(levels)]
    for block in blocks:
        chain = Chain(model.get_submodule(block.down), levels - 1)
        model.set_submodule(block.down, chain)
        moves[-1] += [*block.up, f"{block.down}.pretrained"]
        for i in range(levels - 1):
            level = levels - 2 - i  # members go from slow to fast, levels from fast to slow
            moves[level] += [f"{block.down}.members.{i}.{name}" for name in ("gate", "up", "down")]
    return moves


def _chosen(blocks: list[Block], assign: Assign, form: str) -> list[Block]:
    """The blocks whose MLPs are assigned; None of `assign`'s other values means anything to `form`."""
    if assign in ("mlp", "last_quarter") or _all_are(assign, int):
        return [blocks[number] for number in block_numbers(assign, len(blocks))]
    raise ValueError(
        f"form={form!r} is made of whole MLPs and assign={assign!r} is not; choose 'mlp', 'last_quarter' or block numbers"
    )


def _assigned(model: PreTrainedModel, blocks: list[Block], assign: Assign) -> list[str]:
    """Names of the linear maps that superposed levels move."""
    if assign in ("blocks", "all"):
        names = [name for block in blocks for name in block.linear]
        return names + ([_head(model)] if assign == "all" else [])
    if isinstance(assign, str) and assign not in ASSIGN:
        raise ValueError(
            f"assign={assign!r} is unknown; choose {', '.join(map(repr, ASSIGN))}, block numbers, or names of linear maps"
        )
    if isinstance(assign, str) or _all_are(assign, int):
        return [name for block in _chosen(blocks, assign, "superposed") for name in block.mlp]
    linear = [name for name, module in model.named_modules() if isinstance(module, LINEAR)]
    if not assign or (unknown := [name for name in assign if name not in linear]):
        given = "is empty" if not assign else f"names {unknown}, no linear map of the model"
        raise ValueError(f"assign {given}; its linear maps are {', '.join(linear[:12])}{', ..' * (len(linear) > 12)}")
    return [str(name) for name in assign]


def _head(model: PreTrainedModel) -> str:
    head: Any = model.get_output_embeddings()
    found = [name for name, module in model.named_modules() if module is head and isinstance(module, LINEAR)]
    if not found:
        raise ValueError(f"assign='all' includes the output head, and {type(model).__name__} has none; use 'blocks'")
    return found[0]


def _all_are(items: str | Sequence[Any], kind: type) -> bool:
    return len(items) > 0 and all(isinstance(item, kind) for item in items)
