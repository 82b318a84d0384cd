"""What memories recall of the pairs that passed them once: every rate, task and draw is a row of one call.

R rates, T tasks, I individuals (each a draw of everything random), n pairs, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.memories import THETA, Choice
from benchmarks.pairs import Pairs, Task
from nestling.memory import AssociativeMemory, Features, MemoryState, Network
from nestling.ops.state import tree_map

READ = 256  # keys of a task at most: of more that are stored, some at even steps


class Recall(NamedTuple):
    """rates: those that were tried. stored, unseen: errors `[numbers of pairs, R, T, I]`; NaN where no key is unseen."""

    rates: list[float]
    stored: Tensor
    unseen: Tensor


@torch.no_grad()
def recall(choice: Choice, tasks: Sequence[Task], individuals: Sequence[int], dim: int) -> Recall:
    """Of tasks with the same numbers of pairs."""
    networks = [_network(choice, i, dim) for i in individuals]
    drawn = [[task.pairs(dim, i) for i in individuals] for task in tasks]
    rates = choice.rates(networks[0], drawn[0][0].keys)
    shape = len(rates), len(tasks), len(individuals)
    drawn = [[_featured(network, pairs) for network, pairs in zip(networks, row, strict=True)] for row in drawn]
    k, v, other_k, other_v = (
        _rows(torch.stack([torch.stack([pairs[part] for pairs in of_task]) for of_task in drawn]), shape)
        for part in range(4)
    )
    memory, state = _together(choice, [_without_features(network) for network in networks], shape)
    eta = torch.tensor(rates, dtype=k.dtype).repeat_interleave(len(k) // len(rates))[:, None, None]
    stored, unseen, begin = [], [], 0
    for n in tasks[0].numbers(dim):
        state = _written(memory, k[:, :, begin:n], v[:, :, begin:n], eta, state)
        some = torch.arange(0, n, max(1, n // READ))
        stored.append(_error(memory, state, k[:, :, some], v[:, :, some]).view(shape))
        unseen.append(_error(memory, state, other_k, other_v).view(shape))
        begin = n
    return Recall(rates, torch.stack(stored), torch.stack(unseen))


def _network(choice: Choice, individual: int, dim: int) -> Network:
    """Its random weights and features are the individual's own, whatever the objective and the rule.

    They are drawn in float32: numbers that have nothing in common with those of the individual's tasks, in float64.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(individual)
        return choice.make(dim).double()


def _featured(network: Network, pairs: Pairs) -> Pairs:
    """Features stand still: made once, they are the keys of the network behind them."""
    if not isinstance(network, Features):
        return pairs
    return pairs._replace(keys=network.inputs(pairs.keys), unseen_keys=network.inputs(pairs.unseen_keys))


def _without_features(network: Network) -> Network:
    return network.network if isinstance(network, Features) else network


def _together(
    choice: Choice, networks: Sequence[Network], shape: Sequence[int]
) -> tuple[AssociativeMemory, MemoryState]:
    """One memory whose rows start as the networks, at every rate and for every task."""
    memory = choice.memory(networks[0])
    blank = memory.init_state(shape[0] * shape[1] * shape[2], 1)
    each = zip(*(network.weights() for network in networks), strict=True)
    weights = tuple(_rows(torch.stack(w).expand(shape[1], -1, -1, -1), shape) for w in each)
    return memory, replace(blank, weights=weights, start=weights)


def _rows(x: Tensor, shape: Sequence[int]) -> Tensor:
    """`[T, I, ..]` as `[R T I, 1, ..]`: a row for each rate, task and individual, and one head."""
    return x.expand(shape[0], *x.shape).flatten(0, 2).unsqueeze(1)


def _written(memory: AssociativeMemory, k: Tensor, v: Tensor, eta: Tensor, state: MemoryState) -> MemoryState:
    """The state that has seen these pairs `[B, 1, n, d]` as well. eta: `[B, 1, 1]`."""
    eta = eta.expand(k.shape[:-1])
    theta = torch.full_like(eta, THETA) if memory.rule.momentum else None
    return memory(None, k, v, eta, None, state, theta)[1]


def _error(memory: AssociativeMemory, state: MemoryState, k: Tensor, v: Tensor) -> Tensor:
    """Of each row, `[B]`; infinite where a memory ran off."""
    network = memory.network
    assert isinstance(network, Network)
    read = network.read(k, tree_map(memory.retention.weight, state.weights))
    error = (read - v).square().sum((1, 2, 3)) / v.square().sum((1, 2, 3))
    return torch.where(error.isfinite(), error, torch.inf) if v.numel() else error
