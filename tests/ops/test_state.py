"""States are data: trees of tensors that have names, and can be chosen row by row."""

from dataclasses import FrozenInstanceError, dataclass

import pytest
import torch
from torch import Tensor

from nestling.ops import State
from nestling.ops.state import named_tensors, tree_map, with_tensors
from tests.helpers import same


@dataclass(frozen=True)
class Leaf(State):
    x: Tensor
    missing: Tensor | None = None


@dataclass(frozen=True)
class Tree(State):
    leaves: tuple[Leaf, ...]
    table: dict[str, Tensor]


def a_tree() -> Tree:
    return Tree((Leaf(torch.randn(3, 2)), Leaf(torch.randn(3), torch.arange(3))), {"a.b": torch.randn(3, 1, 2)})


def test_names_are_paths_and_lead_back():
    """`named_tensors` is a flat dictionary of plain tensors; `with_tensors` is its inverse."""
    tree, other = a_tree(), a_tree()
    names = named_tensors(tree)
    assert list(names) == ["leaves/0/x", "leaves/1/x", "leaves/1/missing", "table/a.b"]
    same(with_tensors(other, names), tree)


def test_rows_are_selected_repeated_and_dropped():
    """`select` is indexing of the first dimension of every tensor."""
    tree, order = a_tree(), torch.tensor([2, 2, 0])
    for name, tensor in named_tensors(tree.select(order)).items():
        assert torch.equal(tensor, named_tensors(tree)[name][order])


def test_where_takes_each_row_from_one_side():
    """True rows come from this state, the others from the other one."""
    mine, theirs, rows = a_tree(), a_tree(), torch.tensor([True, False, True])
    chosen = mine.where(rows, theirs)
    same(chosen.select(torch.tensor([0, 2])), mine.select(torch.tensor([0, 2])))
    same(chosen.select(torch.tensor([1])), theirs.select(torch.tensor([1])))


def test_detach_cuts_the_graph_of_every_tensor():
    """A detached state carries no gradient; the old one still does."""
    leaf = Leaf(torch.randn(3, requires_grad=True) * 2)
    assert not leaf.detach().x.requires_grad and leaf.x.requires_grad


def test_states_are_frozen_and_hold_nothing_else():
    """A state cannot be changed in place, and what is no tensor is refused with its type."""
    with pytest.raises(FrozenInstanceError):
        a_tree().table = {}
    with pytest.raises(TypeError, match="float"):
        tree_map(lambda t: t, {"a": 1.0})
