"""Helpers of the tests: comparing trees of tensors, gradients against a random direction, cutting, covering a grid."""

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, product
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from nestling.ops.state import named_tensors

EXACT = 1e-9  # relative and absolute, of two ways to compute the same thing in float64


def close(actual: Any, expected: Any, tolerance: float = EXACT) -> None:
    """Assert that two tensors, or trees of them, have the same names and the same values."""
    actual, expected = named_tensors(actual), named_tensors(expected)
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(
            actual[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda found, name=name: f"{name}: {found}"
        )


def same(actual: Any, expected: Any) -> None:
    """Assert that two tensors, or trees of them, are equal bit for bit."""
    actual, expected = named_tensors(actual), named_tensors(expected)
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), f"{name} differs by {(actual[name] - tensor).abs().max()}"


def differ(one: Any, other: Any, least: float = 1e-6) -> None:
    """Assert that two tensors, or trees of them, are not the same: the guard of a test that could compare nothing."""
    one, other = named_tensors(one), named_tensors(other)
    gaps = [(tensor - other[name]).abs().max().item() for name, tensor in one.items() if tensor.is_floating_point()]
    assert max(gaps) > least


def relative(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return ((actual.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def named(tree: Any) -> dict[str, Tensor]:
    """The tensors of a state by name."""
    return named_tensors(tree)


def randomise(module: nn.Module, scale: float = 0.5) -> nn.Module:
    """Every parameter of a module plus normal noise of `scale`, so that no special initial value hides a fault."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def row(tree: Any, index: int) -> Any:
    """One row of a tree of tensors, the batch dimension kept."""
    return {name: tensor[index : index + 1] for name, tensor in named_tensors(tree).items()}


def gradients(outputs: Any, inputs: Sequence[Tensor], seed: int = 0) -> list[Tensor]:
    """Gradient of a random linear function of every floating tensor in `outputs`; zero where there is no path."""
    generator = torch.Generator().manual_seed(seed)
    found = [t for t in named_tensors(outputs).values() if t.is_floating_point() and t.requires_grad]
    total = sum((t * torch.randn(t.shape, generator=generator, dtype=t.dtype)).sum() for t in found)
    grads = torch.autograd.grad(total, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True)]


def randn(*shape: int, grad: bool = False) -> Tensor:
    """Standard normal float64."""
    return torch.randn(*shape, dtype=torch.float64).requires_grad_(grad)


def uniform(low: float, high: float, *shape: int, grad: bool = False) -> Tensor:
    """Uniform float64."""
    return (low + (high - low) * torch.rand(*shape, dtype=torch.float64)).requires_grad_(grad)


def directions(*shape: int, grad: bool = False) -> Tensor:
    """Random float64 vectors of unit norm."""
    return F.normalize(randn(*shape), dim=-1).requires_grad_(grad)


def cuts(length: int) -> st.SearchStrategy[list[int]]:
    """Lengths of pieces that make up `length`, as a strategy: any number of cuts at any places."""
    places = st.lists(st.integers(1, length - 1), unique=True, max_size=8).map(sorted)
    return places.map(lambda at: [b - a for a, b in zip([0, *at], [*at, length], strict=True)])


def in_pieces(call: Callable[..., tuple[Tensor, Any]], x: Tensor, sizes: Iterable[int], state: Any = None) -> tuple:
    """`y, state = call(piece, state)` over pieces of `x` along dimension 1; the outputs joined."""
    outputs = []
    for piece in x.split(list(sizes), dim=1):
        y, state = call(piece, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def pairwise(*factors: Sequence[Any]) -> list[tuple]:
    """A small subset of the product in which every pair of values of two factors occurs (greedy)."""
    rows = list(product(*factors))
    pairs = {r: {(i, r[i], j, r[j]) for i, j in combinations(range(len(r)), 2)} for r in rows}
    missing, chosen = set().union(*pairs.values()), []
    while missing:
        best = max(rows, key=lambda r: len(pairs[r] & missing))
        missing -= pairs[best]
        chosen.append(best)
    return chosen


def grid(*factors: Sequence[Any]) -> list[Any]:
    """The whole product as parameters of a test: a pairwise covering runs always, the rest where slow tests run."""
    fast = set(pairwise(*factors))
    return [pytest.param(*r, marks=() if r in fast else pytest.mark.slow, id=_id(r)) for r in product(*factors)]


def _id(values: tuple) -> str:
    return "-".join(getattr(v, "__name__", None) or str(v) for v in values)
