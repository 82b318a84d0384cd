"""Who takes part, with which rates, and which one setting besides the rate is tuned: as many trials for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nestling import optim
from nestling.optim import layer_groups, matrix_groups
from nestling.optim.preconditioned_momentum import Kronecker


@dataclass(frozen=True)
class Contender:
    """make: an optimiser from a model, a learning rate and the value of `knob`, the one other setting that is tuned."""

    make: Callable[[nn.Module, float, float], torch.optim.Optimizer]
    rates: tuple[float, ...]
    knob: str
    knobs: tuple[float, ...]


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


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` for the hidden matrices and `torch.optim.AdamW` for the rest, as Muon is used, as one optimiser."""

    def __init__(self, model: nn.Module, lr: float, momentum: float) -> None:
        sorted_groups = groups(model)
        matrices = [g["params"] for g in sorted_groups if not g.get("adamw")]
        others = [g["params"] for g in sorted_groups if g.get("adamw")]
        super().__init__([{"params": params} for params in matrices + others], {"lr": lr})
        rates: dict[str, Any] = dict(lr=lr, weight_decay=0.0)
        muon = torch.optim.Muon(matrices[0], momentum=momentum, adjust_lr_fn="match_rms_adamw", **rates)
        self.parts: list[torch.optim.Optimizer] = [muon]
        self.parts += [torch.optim.AdamW(params, **rates) for params in others]

    def step(self, closure: Any = None) -> None:
        """One step of each; the rate is the schedule's."""
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.param_groups[0]["lr"] = group["lr"]
            part.step()
        for part in self.parts:
            self.state.update(part.state)


ADAPTIVE = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
PLAIN = (0.01, 0.03, 0.1, 0.3, 1.0)
DECAYS = (0.9, 0.95, 0.8)
WARMUP = {"alpha_warmup": 100, "beta3_warmup": 100}  # half of the shortest run here

CONTENDERS: dict[str, Contender] = {
    "SGD, momentum": Contender(
        lambda m, lr, beta: torch.optim.SGD(m.parameters(), lr=lr, momentum=beta), PLAIN, "momentum", DECAYS
    ),
    "AdamW": Contender(
        lambda m, lr, beta: torch.optim.AdamW(m.parameters(), lr=lr, betas=(0.9, beta), weight_decay=0.0),
        ADAPTIVE, "beta2", (0.99, 0.999, 0.95),
    ),
    "Muon": Contender(lambda m, lr, beta: MuonWithAdamW(m, lr, beta), ADAPTIVE, "momentum", (0.95, 0.9, 0.8)),
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
    ),
    "deep momentum": Contender(
        lambda m, lr, rate: optim.DeepMomentum(m.parameters(), lr=lr, rate=rate), ADAPTIVE, "inner rate", (1.0, 0.3, 0.1)
    ),
}  # fmt: skip
