"""Who takes part, with which rates, and which one setting besides the rate is tuned: as many trials for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nestling import optim
from nestling.ops.newton_schulz import MUON
from nestling.optim import layer_groups, matrix_groups
from nestling.optim.preconditioned_momentum import Kronecker


@dataclass(frozen=True)
class Contender:
    """make: an optimiser from a model, a learning rate and the value of `knob`, the one other setting that is tuned.
    without: problems that it does not take part in.
    """

    make: Callable[[nn.Module, float, float], torch.optim.Optimizer]
    rates: tuple[float, ...]
    knob: str
    knobs: tuple[float, ...]
    without: tuple[str, ...] = ()


def heads(model: nn.Module) -> list[str]:
    """Names of a model's output layers."""
    return [name for name, _ in model.named_modules() if name.split(".")[-1] in ("head", "lm_head")]


def plain(model: nn.Module) -> list[str]:
    """Layers that share a weight, as a tied head and its embedding do."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return sorted({name.rpartition(".")[0] for pair in tied.items() for name in pair})


def groups(model: nn.Module, **adamw: Any) -> list[dict[str, Any]]:
    """Matrices for a matrix optimiser, the rest for AdamW; a model of one matrix is all matrix."""
    return matrix_groups(model, heads(model), **adamw)


def muon(model: nn.Module, lr: float, momentum: float) -> torch.optim.Optimizer:
    """`torch.optim.Muon` for the hidden matrices and AdamW for the rest, as Muon is used: M3 without slow memories.

    Step for step the same (a test of M3), but in float32: torch's iterates in bfloat16, which a CPU without
    instructions for it does ten times as slowly.
    """
    return optim.M3(groups(model), lr=lr, momentum=momentum, periods=(), weights=(), coefficients=MUON)


ADAPTIVE = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
PLAIN = (0.01, 0.03, 0.1, 0.3, 1.0)
DECAYS = (0.9, 0.95, 0.8)
WARMUP: dict[str, Any] = {"alpha_warmup": 100, "beta3_warmup": 100}  # half of the shortest run here

CONTENDERS: dict[str, Contender] = {
    "SGD, momentum": Contender(
        lambda m, lr, beta: torch.optim.SGD(m.parameters(), lr=lr, momentum=beta), PLAIN, "momentum", DECAYS
    ),
    "AdamW": Contender(
        lambda m, lr, beta: torch.optim.AdamW(m.parameters(), lr=lr, betas=(0.9, beta), weight_decay=0.0),
        ADAPTIVE, "beta2", (0.99, 0.999, 0.95),
    ),
    "Muon": Contender(muon, ADAPTIVE, "momentum", (0.95, 0.9, 0.8)),
    "AdEMAMix": Contender(
        lambda m, lr, alpha: optim.AdEMAMix(m.parameters(), lr=lr, betas=(0.9, 0.99, 0.99), alpha=alpha, **WARMUP),
        ADAPTIVE, "alpha", (2.0, 5.0, 1.0),
    ),
    "M3": Contender(
        lambda m, lr, weight: optim.M3(groups(m), lr=lr, weights=(weight,)), ADAPTIVE, "slow weight", (0.5, 0.2, 1.0)
    ),
    "DGD": Contender(
        lambda m, lr, erasure: optim.DGD(layer_groups(m, plain(m)), m, lr=lr, momentum=0.9, erasure=erasure),
        PLAIN, "erasure", (1e-3, 1e-2, 1e-1),
    ),
    "delta momentum": Contender(
        lambda m, lr, delta: optim.DeltaMomentum(m.parameters(), lr=lr, delta=delta), PLAIN, "delta", (0.3, 0.1, 1.0)
    ),
    "preconditioned": Contender(
        lambda m, lr, power: optim.PreconditionedMomentum(m.parameters(), lr=lr, preconditioner=Kronecker(exponent=power)),
        ADAPTIVE, "exponent", (0.25, 0.375, 0.5),
        without=("lm-hope",),  # a stack of memories is one matrix for it, of 6,400 columns: minutes for every decomposition
    ),
    "deep momentum": Contender(
        lambda m, lr, rate: optim.DeepMomentum(m.parameters(), lr=lr, rate=rate), ADAPTIVE, "inner rate", (0.5, 0.2, 1.0)
    ),
}  # fmt: skip
