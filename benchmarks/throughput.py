"""How fast is a layer of self-modifying Titans, beside a Transformer layer of the same width?

First a parity gate: the chunk form must equal the token-loop oracle, outputs and gradients. Then forward, and forward +
backward, of both in turn, interleaved, in one run; the figure is the ratio, which survives a noisy machine.

    python -m benchmarks.throughput [--device cuda] [--batch 2] [--length 1024] [--width 256] [--heads 4] [--chunk 64]
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from nestling.layers import Attention, Block, ContinuumMemory, SelfModifyingTitans


def main() -> None:
    arguments = _arguments()
    torch.manual_seed(0)
    parity()
    layers = {name: _layer(name, arguments) for name in ("self-modifying Titans", "Transformer layer")}
    x = torch.randn(arguments.batch, arguments.length, arguments.width, device=arguments.device)
    print(
        f"batch {arguments.batch}, length {arguments.length}, width {arguments.width}, heads {arguments.heads}, ",
        end="",
    )
    print(f"chunk {arguments.chunk}, {arguments.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for backward in (False, True):
        seconds: dict[str, list[float]] = {name: [] for name in layers}
        for _ in range(arguments.repeats + 1):
            for name, layer in layers.items():
                seconds[name].append(once(layer, x, backward))
        what = "forward + backward" if backward else "forward"
        best = {name: statistics.median(times[1:]) for name, times in seconds.items()}
        for name, median in best.items():
            print(f"{what:20} {name:24} {x[..., 0].numel() / median:12,.0f} tokens/s")
        titans, transformer = best.values()
        print(f"{what:20} {'ratio':24} {transformer / titans:12.3f}")
    for name in layers:
        print(f"{'peak memory':20} {name:24} {_peak(name, arguments):12,.0f} MB")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("batch", 2), ("length", 1024), ("width", 256), ("heads", 4), ("chunk", 64), ("repeats", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def _layer(name: str, arguments: argparse.Namespace) -> nn.Module:
    """One layer: the memory alone, or attention with its SwiGLU."""
    width, heads = arguments.width, arguments.heads
    if name == "self-modifying Titans":
        return SelfModifyingTitans(width, heads, chunk_size=arguments.chunk).to(arguments.device)
    return Block(width, Attention(width, heads), ContinuumMemory(width)).to(arguments.device)


def once(layer: nn.Module, x: Tensor, backward: bool) -> float:
    """Seconds of one pass."""
    _wait(x)
    begun = time.perf_counter()
    with torch.set_grad_enabled(backward):
        y, _ = layer(x)
        if backward:
            y.square().mean().backward()
    _wait(x)
    layer.zero_grad()
    return time.perf_counter() - begun


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def parity() -> None:
    """Raise unless the fast form is the slow one."""
    found = []
    for backend in ("auto", "reference"):
        torch.manual_seed(0)
        layer = SelfModifyingTitans(16, 2, chunk_size=8, backend=backend).double()
        x = torch.randn(2, 45, 16, dtype=torch.float64, requires_grad=True)
        y, _ = layer(x)
        found.append([y, *torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()])])
    worst = max((a - b).abs().max().item() for a, b in zip(*found, strict=True))
    if not worst < 1e-9:
        raise SystemExit(
            f"parity gate: the chunk form differs from the token loop by {worst:.1e}; no speed is reported"
        )
    print(f"parity gate: outputs and gradients equal the token loop within {worst:.1e}")


def _peak(name: str, arguments: argparse.Namespace) -> float:
    """Memory that forward + backward adds, in MB: the allocator's peak on a GPU, a fresh process's elsewhere."""
    if arguments.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        x = torch.randn(arguments.batch, arguments.length, arguments.width, device=arguments.device)
        once(_layer(name, arguments), x, True)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of_process, (name, arguments))


def _peak_of_process(name: str, arguments: argparse.Namespace) -> float:
    """By the kernel's high-water mark, set back after a small pass has loaded what every pass needs; nan elsewhere."""
    layer = _layer(name, arguments)
    x = torch.randn(arguments.batch, arguments.length, arguments.width)
    once(layer, x[:1, : arguments.chunk], True)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux
        return float("nan")
    before = _memory("VmRSS")
    once(layer, x, True)
    return _memory("VmHWM") - before


def _memory(field: str) -> float:
    """A field of this process's status, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
