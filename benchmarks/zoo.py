"""How fast is each memory of the zoo, as a layer, beside softmax attention of the same width?

First a parity gate: each memory's fast form must equal the token-loop oracle, outputs and gradients. Then forward + backward
of all in turn, in one run; the figure is the ratio to attention, above 1 where a memory is faster.

    python -m benchmarks.zoo [--batch 2] [--length 1024] [--width 256] [--heads 4] [--repeats 5] [--device cpu]
"""

from __future__ import annotations

import argparse
import statistics

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.throughput import once
from nestling.layers import Attention, MemoryLayer
from nestling.memory import AssociativeMemory
from nestling.memory.zoo import ZOO

LEARNING = [
    name for name in ZOO if "attention" not in name.replace("linear_attention", "") and name != "sliding_window"
]


def main() -> None:
    arguments = _arguments()
    torch.manual_seed(0)
    worst = max(map(parity, LEARNING))
    print(f"parity gate: outputs and gradients of {len(LEARNING)} memories equal the token loop within {worst:.1e}")
    width, heads = arguments.width, arguments.heads
    layers = {name: MemoryLayer(width, heads, ZOO[name]) for name in LEARNING}
    layers = {"attention": Attention(width, heads), **layers}
    x = torch.randn(arguments.batch, arguments.length, width, device=arguments.device)
    seconds: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(arguments.repeats + 1):  # the first is not counted
        for name, layer in layers.items():
            seconds[name].append(once(layer.to(arguments.device), x, backward=True))
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    where = f"{arguments.device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    table = Table(title=f"batch {arguments.batch}, length {arguments.length}, width {width}, heads {heads}, {where}")
    for title in ("layer", "chunk", "tokens/s", "beside attention"):
        table.add_column(title, justify="left" if title == "layer" else "right")
    for name, median in sorted(medians.items(), key=lambda item: item[1]):
        chunk = str(layers[name].memory.chunk_size) if name != "attention" else ""
        table.add_row(name, chunk, f"{x[..., 0].numel() / median:,.0f}", f"{medians['attention'] / median:.2f}")
    Console().print(table)


def parity(name: str) -> float:
    """The largest difference between the fast form and the slow one; raises where it is no rounding."""
    torch.manual_seed(0)
    fast = ZOO[name].make(4, 2, chunk_size=8).double()
    assert isinstance(fast, AssociativeMemory)
    parts = fast.network, fast.objective, fast.rule, fast.chunk_size, fast.read
    slow = AssociativeMemory(*parts, retention=fast.retention, backend="reference")
    q, k, v = (torch.nn.functional.normalize(torch.randn(2, 2, 21, 4, dtype=torch.float64), dim=-1) for _ in "qkv")
    rate = torch.full((2, 2, 21), 0.1, dtype=torch.float64).requires_grad_()
    theta = 0.5 * torch.ones_like(rate) if fast.rule.momentum else None
    found: list[list[Tensor]] = []
    for memory in (fast, slow):
        y, state = memory(q, k, v, rate, 1 - rate / 2, theta=theta)
        assert y is not None
        found.append([y, *state.weights, *torch.autograd.grad(y.sin().sum(), [rate, *fast.parameters()])])
    worst = max((a - b).abs().max().item() for a, b in zip(*found, strict=True))
    if not worst < 1e-9:
        raise SystemExit(f"parity gate: {name} differs from the token loop by {worst:.1e}; no speed is reported")
    return worst


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("batch", 2), ("length", 1024), ("width", 256), ("heads", 4), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
