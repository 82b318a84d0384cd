"""How fast are the memories of nestling beside those of two public implementations?

`titans-pytorch`: its NeuralMemory (chunks of 64 tokens, weights written every 64), forward + backward, beside one memory of
equal size with the same projections that learns as it does, by descent on the squared error of the values: both with momentum
and without. Of ours rates, retention and momentum are each token's own, and not a chunk's; what is read was written before the
token's chunk, as there, and in further rows before the token. `nested-learning`: its self-modifying Titans at its own
shape (one head, memories as wide as the layer), forward alone, since its writes are outside the gradient, beside our layer
of that shape: each at chunks of one token (its default), each at 64, and its default beside ours.

First a parity gate: our chunk form must equal the token-loop oracle. The figure is a ratio of times taken in turn in one run.

    python -m pip install titans-pytorch nested-learning            (an environment of their own is best)
    python -m benchmarks.peers [--length 1024] [--batch 2] [--width 256] [--heads 4] [--repeats 3]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor, nn

from benchmarks.throughput import parity
from nestling.layers import SelfModifyingTitans
from nestling.memory import L2, MLP, AssociativeMemory, GradientDescent, unit

CHUNK = 64


class OneMemory(nn.Module):
    """A deep memory between projections, as Titans have it (arXiv 2501.00663): `[B, L, D] -> [B, L, D]`.

    read: "chunk", what was written before the token's chunk, or "token", before the token.
    """

    def __init__(self, width: int, heads: int, momentum: bool, read: str) -> None:
        super().__init__()
        self.heads, size = heads, width // heads
        self.norm, self.project = nn.RMSNorm(width), nn.Linear(width, 3 * width, bias=False)
        self.gates, self.out = nn.Linear(width, 3 * heads), nn.Linear(width, width, bias=False)
        parts = MLP(size, size, heads=heads), L2(), GradientDescent(momentum), CHUNK, read
        self.memory = AssociativeMemory(*parts)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        q, k, v = (self._split(part) for part in self.project(x).chunk(3, dim=-1))
        eta, alpha, theta = torch.sigmoid(self.gates(x).mT).chunk(3, dim=1)  # [B, H, L]
        theta = theta if self.memory.rule.momentum else None
        y, _ = self.memory(unit(q), unit(k), unit(v), eta, 1 - 0.1 * alpha, theta=theta)
        assert y is not None  # it was read
        return self.out(y.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def titans(width: int, heads: int, momentum: bool) -> Callable[[Tensor], Tensor]:
    """titans-pytorch's memory of the same size."""
    from titans_pytorch.memory_models import MemoryMLP  # pyright: ignore[reportMissingImports]
    from titans_pytorch.neural_memory import NeuralMemory  # pyright: ignore[reportMissingImports]

    size = width // heads
    network = MemoryMLP(dim=size, depth=2, expansion_factor=1.0)
    sizes = {"chunk_size": CHUNK, "batch_size": CHUNK, "heads": heads, "dim_head": size}
    memory = NeuralMemory(width, model=network, momentum=momentum, **sizes)
    return lambda x: memory(x)[0]


def nested_learning(width: int, chunk: int) -> Callable[[Tensor], Tensor]:
    """nested-learning's layer, which reads and rewrites."""
    from nested_learning.titan.self_modifying import (  # pyright: ignore[reportMissingImports]
        SelfModifyingTitans as Theirs,
    )
    from nested_learning.titan.self_modifying import (  # pyright: ignore[reportMissingImports]
        SelfModifyingTitansConfig,
    )

    layer = Theirs(SelfModifyingTitansConfig(dim=width, chunk_size_other=chunk, chunk_size_memory=chunk))
    return lambda x: layer.forward_with_updates(x, layer.init_fast_state())[0]


def seconds(run: Callable[[Tensor], Tensor], x: Tensor, backward: bool) -> float:
    """Of one pass."""
    begun = time.perf_counter()
    with torch.set_grad_enabled(backward):
        y = run(x)
        if backward:
            y.square().mean().backward()
    return time.perf_counter() - begun


def compare(
    title: str,
    ours: tuple[Callable[[Tensor], Tensor], Tensor],
    theirs: tuple[Callable[[Tensor], Tensor], Tensor],
    backward: bool,
    repeats: int,
) -> None:
    """Both on their inputs in turn, after a pass of each that does not count; prints tokens a second and the ratio."""
    times = [[seconds(run, x, backward) for run, x in (ours, theirs)] for _ in range(repeats + 1)][1:]
    speeds = [
        x[..., 0].numel() / statistics.median(t)
        for t, (_, x) in zip(zip(*times, strict=True), (ours, theirs), strict=True)
    ]
    mine, other = speeds
    print(f"{title:62} {mine:10,.0f} tokens/s, peer {other:8,.0f} tokens/s, ratio {mine / other:7.2f}", flush=True)


def main() -> None:
    """The whole table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("batch", 2), ("length", 1024), ("width", 256), ("heads", 4), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.manual_seed(0)
    try:
        memories = {on: titans(given.width, given.heads, on) for on in (True, False)}
        layers = {chunk: nested_learning(given.width, chunk) for chunk in (1, CHUNK)}
    except ImportError as missing:
        raise SystemExit(f"{missing}: python -m pip install titans-pytorch nested-learning") from None
    parity()
    print(f"batch {given.batch}, width {given.width}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    x = torch.randn(given.batch, given.length, given.width)
    for (momentum, peer), read in product(memories.items(), ("chunk", "token")):
        title = f"one memory, {'momentum' if momentum else 'no momentum'}, read by {read}, forward + backward"
        compare(title, (OneMemory(given.width, given.heads, momentum, read), x), (peer, x), True, given.repeats)
    inputs = {1: x[:, :64], CHUNK: x}
    for mine, theirs in ((1, 1), (CHUNK, CHUNK), (CHUNK, 1)):
        layer = SelfModifyingTitans(given.width, 1, chunk_size=mine)
        title = f"self-modifying Titans, chunk {mine} against {theirs}, forward"
        ours = (lambda x, layer=layer: layer(x)[0]), inputs[mine]
        compare(title, ours, (layers[theirs], inputs[theirs]), False, given.repeats)


if __name__ == "__main__":
    main()
