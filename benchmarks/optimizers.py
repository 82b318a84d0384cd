"""How long does a step of an optimiser take, beside torch's own of its kind?

The parameters are the matrices of 12 Transformer layers of width 384: in each the four projections of attention, 384 x 384,
and an MLP of 1536 x 384 and 384 x 1536. First a parity gate: M3 without slow memories must be Muon. Then one step of each
optimiser in turn, interleaved, in one run; the figure is the ratio to the first of its comparison.

    python -m benchmarks.optimizers [matrices vectors] [--device cuda] [--layers 12] [--width 384] [--repeats 5]

torch's Muon iterates in bfloat16, which a CPU without instructions for it does slowly: a second row has it iterate in
float32, one matrix at a time still. M3's slow memory costs a further Newton-Schulz in the step where a period begins:
that step has a row of its own, and the mean over a period of 32 steps another.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.optim import Optimizer, _muon

from nestling.ops.newton_schulz import MUON
from nestling.optim.delta_momentum import DeltaMomentum
from nestling.optim.m3 import M3

PERIOD = 32
BEGINS = "M3, where a period begins"


def main() -> None:
    arguments = _arguments()
    torch.manual_seed(0)
    _parity()
    print(f"{arguments.layers} layers of width {arguments.width}, {arguments.device}, ", end="")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; medians of {arguments.repeats}")
    for name in arguments.comparisons or COMPARISONS:
        medians = _medians(COMPARISONS[name], arguments)
        if BEGINS in medians:
            medians[f"M3, mean of {PERIOD} steps"] = medians["M3"] + (medians[BEGINS] - medians["M3"]) / PERIOD
        first = next(iter(medians.values()))
        for row, median in medians.items():
            print(f"{name:10} {row:30} {1e3 * median:12,.1f} ms {median / first:8.3f}")


class MuonInFloat32(torch.optim.Muon):
    """torch's Muon, its iteration left in the dtype of the gradient."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with mock.patch.object(_muon, "_zeropower_via_newtonschulz", _zeropower):
            return super().step(closure)


def _zeropower(x: Tensor, triple: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """torch's code, less its cast."""
    a, b, c = triple
    tall = x.size(0) > x.size(1)
    x = x.T if tall else x
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def _m3(parameters: list[Tensor]) -> Optimizer:
    return M3(parameters, 1e-3, periods=(PERIOD,), weights=(0.5,))


def _m3_begins(parameters: list[Tensor]) -> Optimizer:
    return M3(parameters, 1e-3, periods=(1,), weights=(0.5,))


def _adamw(parameters: list[Tensor]) -> Optimizer:
    return torch.optim.AdamW(parameters, 1e-3, foreach=True)


def _delta(parameters: list[Tensor]) -> Optimizer:
    return DeltaMomentum(parameters, 1e-3, momentum=0.95, form="vector")


COMPARISONS: dict[str, dict[str, Callable[[list[Tensor]], Optimizer]]] = {
    "matrices": {
        "torch.optim.Muon": lambda parameters: torch.optim.Muon(parameters, 1e-3),
        "Muon in float32": lambda parameters: MuonInFloat32(parameters, 1e-3),
        "M3": _m3,
        BEGINS: _m3_begins,
    },
    "vectors": {
        "AdamW foreach": _adamw,
        "DeltaMomentum (vector form)": _delta,
    },
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="*", choices=[*COMPARISONS, []], help="all, unless some are named")
    for name, default in (("layers", 12), ("width", 384), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def _parity() -> None:
    """Raise unless M3 takes the steps of Muon."""
    leaves = _parameters(layers=1, width=16, device="cpu", dtype=torch.float64)
    others = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    for leaf, other in zip(leaves, others, strict=True):
        other.grad = leaf.grad
    limit = M3(leaves, 0.1, periods=(), weights=(), coefficients=MUON, adjust_lr="original", weight_decay=0.1)
    muon = MuonInFloat32(others, 0.1, weight_decay=0.1)
    for _ in range(3):
        limit.step()
        muon.step()
    for leaf, other in zip(leaves, others, strict=True):
        torch.testing.assert_close(leaf, other, rtol=1e-10, atol=1e-10)
    print("parity: M3 without slow memories is Muon to 1e-10 in float64")


def _parameters(layers: int, width: int, device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The matrices of a Transformer, each with a gradient."""
    shapes = [(width, width)] * 4 + [(4 * width, width), (width, 4 * width)]
    leaves = [
        torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for _ in range(layers) for shape in shapes
    ]
    for leaf in leaves:
        leaf.grad = torch.randn_like(leaf)
    return leaves


def _medians(rows: dict[str, Callable[[list[Tensor]], Optimizer]], arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step of each; the first step, which makes the state, is not counted."""
    optimizers = {
        name: make(_parameters(arguments.layers, arguments.width, arguments.device)) for name, make in rows.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(arguments.repeats + 1):
        for name, optimizer in optimizers.items():
            seconds[name].append(_once(optimizer, arguments.device))
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def _once(optimizer: Optimizer, device: str) -> float:
    """Seconds of one step."""
    _wait(device)
    begun = time.perf_counter()
    optimizer.step()
    _wait(device)
    return time.perf_counter() - begun


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
