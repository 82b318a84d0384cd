"""AdEMAMix: Adam with a second, much longer memory of the gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from nestling.memory.part import Part
from nestling.optim.adamw import mean, moments, root_mean_square
from nestling.optim.shell import Shell, State, at_least_zero, below_one

NAMES = ("exp_avg", "exp_avg_slow", "exp_avg_sq")


class AdEMAMix(Shell):
    """AdEMAMix (Pagliardini, Ablin and Grangier 2024, arXiv 2409.03137):

        m1 <- beta1 m1 + (1 - beta1) G              m1hat = m1 / (1 - beta1^t)
        m2 <- beta3(t) m2 + (1 - beta3(t)) G        not corrected: it is to come in slowly
        v  <- beta2 v + (1 - beta2) G^2             vhat = v / (1 - beta2^t)
        W  <- W - lr (m1hat + alpha(t) m2) / (sqrt(vhat) + eps)

    A long memory from the first step on can diverge, so both schedules warm up over the first steps: `alpha(t)` goes from 0
    to `alpha` in equal steps, and the half-life of `m2` from that of `beta1` to that of `beta3` (`beta3` itself would be
    long almost at once). The paper has both last for the whole training. `alpha=0` is `torch.optim.AdamW`.

    Not for runs that are short against `1 / (1 - beta3)`: in a thousand steps `beta3=0.9999` gathers a tenth of the mean
    gradient. A further state of the size of the model is needed.

    Args:
        params: parameters or groups.
        lr: learning rate, one that suits AdamW.
        betas: `beta1, beta2, beta3`, each in [0, 1).
        alpha: weight of the slow memory, at least 0.
        alpha_warmup: steps until `alpha(t) = alpha`; 0 is at once.
        beta3_warmup: steps until `beta3(t) = beta3`; 0 is at once.
        eps: added to the root.
        weight_decay, maximize, capturable: as in `Shell`.

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        alpha_warmup: int = 0,
        beta3_warmup: int = 0,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        warmup = {"alpha_warmup": alpha_warmup, "beta3_warmup": beta3_warmup}
        settings = {"betas": tuple(betas), "alpha": alpha, **warmup, "eps": eps}
        super().__init__(params, lr, weight_decay, maximize, capturable, **settings)

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        if len(group["betas"]) != 3:
            raise ValueError(
                f"betas={group['betas']} must be three: of the fast mean, of the squares, of the slow mean"
            )
        below_one(**{f"betas[{i}]": beta for i, beta in enumerate(group["betas"])})
        at_least_zero(**{name: group[name] for name in ("alpha", "alpha_warmup", "beta3_warmup", "eps")})

    def parts(self, group: dict[str, Any]) -> tuple[Part, ...]:
        first, second, slow = group["betas"]
        return (*moments((first, second)), mean("slow first moment", "exp_avg_slow", slow))

    def rule(self, group: dict[str, Any]) -> str:
        return f"W <- W - lr (m1 + {group['alpha']:g} m2) / (sqrt(v) + eps)"

    def initial_state(self, parameter: Tensor, group: dict[str, Any]) -> State:
        return {name: torch.zeros_like(parameter) for name in NAMES}

    def directions(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: dict[str, Any]
    ) -> list[Tensor]:
        fast, slow, squares = ([state[name] for state in states] for name in NAMES)
        steps = [state["step"] for state in states]
        beta1, beta2, beta3 = group["betas"]
        decays = [slow_decay(t, beta1, beta3, group["beta3_warmup"]) for t in steps]
        torch._foreach_lerp_(fast, gradients, 1 - beta1)
        torch._foreach_mul_(slow, decays)
        torch._foreach_add_(slow, torch._foreach_mul(gradients, [1 - decay for decay in decays]))
        moves = torch._foreach_div(fast, [1 - beta1**t for t in steps])
        torch._foreach_add_(
            moves, torch._foreach_mul(slow, [group["alpha"] * ramp(t, group["alpha_warmup"]) for t in steps])
        )
        torch._foreach_div_(moves, root_mean_square(squares, gradients, steps, beta2, group["eps"]))
        return list(moves)


def ramp(step: Tensor, warmup: float) -> Tensor:
    """From 0 to 1 over the first `warmup` steps, then 1."""
    return (step / warmup).clamp(max=1.0) if warmup else torch.ones_like(step)


def slow_decay(step: Tensor, start: float, end: float, warmup: float) -> Tensor:
    """The decay whose half-life is on its way from that of `start` to that of `end`."""
    done = ramp(step, warmup)
    return 0.5 ** (1 / ((1 - done) * half_life(start) + done * half_life(end)))


def half_life(decay: float) -> float:
    """Steps in which a memory halves."""
    return math.log(0.5) / math.log(decay) if decay else 0.0
