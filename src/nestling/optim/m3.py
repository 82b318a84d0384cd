"""M3, multi-scale momentum Muon: orthogonal steps along a fast memory of the gradients and along slow ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from nestling.memory.part import Part, remembered
from nestling.ops import newton_schulz
from nestling.ops.newton_schulz import Triple
from nestling.optim.adamw import adamw, moments, root_mean_square, square
from nestling.optim.shell import Shell, State, at_least_zero, below_one

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

ADJUST_LR = {
    "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
}
BATCH = 2**26  # numbers in one batch, 256 MB in float32: a large model must not need a second copy of itself


class M3(Shell):
    """Multi-scale momentum Muon (arXiv 2512.24695, Algorithm 1), for the hidden matrices of a network.

        M1 <- beta1 M1 + G                                                    every step
        M2 <- beta2 M2 + (the sum of the last f gradients)                    every f steps, used from the next one
        W  <- W - lr r (NS(M1) + w NS(M2)) / (sqrt(V) + eps)                  r adjusts for the shape

    `NS` is `ops.newton_schulz`, over all matrices of one shape at once; `NS(M2)` is kept between its updates, so that a
    step costs one `NS` and a share of `1/f`. As `NS` has no scale, a decay of 1 is the paper's accumulator (`beta1` and
    `beta3` of Algorithm 1 cancel), a smaller one the exponential mean. Without slow memories it is Muon.

    Where it does not belong - embeddings, output heads, norms, biases, convolutions - AdamW does, inside: give
    those as a group with `"adamw": True` (and its own `lr`, `betas`, `eps`), or let `matrix_groups` sort a model.

        optimizer = M3(matrix_groups(model, heads=["lm_head"]), lr=1e-3)

    With `capturable`, and under `torch.compile`, nothing may depend on the count of steps, so that slow directions are
    computed in every step.

    Args:
        params: parameters of two dimensions, or groups of them; groups with `"adamw": True` hold any others.
        lr: learning rate; with the default `adjust_lr` one that suits AdamW.
        momentum: `beta1`, in [0, 1]; 1 never forgets.
        nesterov: orthogonalise `G + beta1 M1`, as Muon does, instead of `M1`.
        periods: `f` of each slow memory, all different.
        weights: `w` of each slow memory.
        slow_momentum: `beta2` of the slow memories, in [0, 1].
        second_moment: None, or the decay of `V` in (0, 1]. Below 1, `V` is Adam's, its start corrected; 1 is the
            paper's sum of squares, with which steps fall as `1 / sqrt(t)`. With any `V` the size of a step is
            inverse to that of the gradients: `lr` must be found anew when the loss is scaled.
        adjust_lr: "match_rms_adamw", `0.2 sqrt(max(rows, columns))`: entries move as much as AdamW's (Liu et al. 2025),
            and one `lr` serves all groups; or "original", `sqrt(max(1, rows / columns))` (Jordan et al. 2024).
        steps: of Newton-Schulz.
        coefficients: of Newton-Schulz, instead of its schedule; `ops.newton_schulz.MUON` for a comparison with Muon.
        weight_decay, maximize, capturable: as in `Shell`.

    Raises:
        ValueError: a setting out of range, or a parameter that is no matrix in a group that is not AdamW's.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.95,
        nesterov: bool = True,
        periods: Sequence[int] = (32,),
        weights: Sequence[float] = (0.5,),
        slow_momentum: float = 0.9,
        second_moment: float | None = None,
        adjust_lr: str = "match_rms_adamw",
        steps: int = 5,
        coefficients: Triple | None = None,
        weight_decay: float = 0.0,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        matrices = dict(
            momentum=momentum,
            nesterov=nesterov,
            periods=tuple(periods),
            weights=tuple(weights),
            slow_momentum=slow_momentum,
            second_moment=second_moment,
            adjust_lr=adjust_lr,
            steps=steps,
            coefficients=coefficients,
        )
        super().__init__(
            params, lr, weight_decay, maximize, capturable, **matrices, adamw=False, betas=(0.9, 0.999), eps=1e-8
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; raises a ValueError, and adds nothing, where a setting or a parameter is not allowed."""
        super().add_param_group(param_group)
        try:
            _check(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def parts(self, group: dict[str, Any]) -> tuple[Part, ...]:
        if group["adamw"]:
            return moments(group["betas"])
        decay, slow = group["momentum"], group["slow_momentum"]
        fast = remembered("fast momentum", ("momentum",), decay, "-<m, G>", f"M1 <- {decay:g} M1 + G")
        found = [fast, *(_slow(period, slow) for period in group["periods"])]
        if group["second_moment"] is not None:
            found.append(square("second moment", "exp_avg_sq", group["second_moment"]))
        return tuple(found)

    def rule(self, group: dict[str, Any]) -> str:
        if group["adamw"]:
            return "W <- W - lr m / (sqrt(v) + eps)"
        slow = "".join(
            f" + {w:g} NS(M2 of {period})" for period, w in zip(group["periods"], group["weights"], strict=True)
        )
        root = "" if group["second_moment"] is None else " / (sqrt(v) + eps)"
        return f"W <- W - lr r (NS(M1){slow}){root}"

    def initial_state(self, parameter: Tensor, group: dict[str, Any]) -> State:
        if group["adamw"]:
            names = ["exp_avg", "exp_avg_sq"]
        else:
            names = ["momentum", *(name for period in group["periods"] for name in _names(period))]
            if group["second_moment"] is not None:
                names.append("exp_avg_sq")
        return {name: torch.zeros_like(parameter) for name in names}

    def directions(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: dict[str, Any]
    ) -> list[Tensor]:
        def each(name: str) -> list[Tensor]:
            return [state[name] for state in states]

        traced = group["capturable"] or torch.compiler.is_compiling()
        steps = each("step") if traced else [float(step) for step in each("step")]
        if group["adamw"]:
            return adamw(gradients, each("exp_avg"), each("exp_avg_sq"), steps, group["betas"], group["eps"])
        iteration = {"steps": group["steps"], "coefficients": group["coefficients"]}
        moves = orthogonal(momentum(each("momentum"), gradients, group["momentum"], group["nesterov"]), **iteration)
        for period, weight in zip(group["periods"], group["weights"], strict=True):
            memories, kept = (each(name) for name in _names(period))
            due = [(step - 1) % period == 0 for step in steps]
            (recall_traced if traced else recall)(memories, kept, due, group["slow_momentum"], **iteration)
            torch._foreach_add_(memories, gradients)
            torch._foreach_add_(moves, kept, alpha=weight)
        if group["second_moment"] is not None:
            roots = root_mean_square(each("exp_avg_sq"), gradients, steps, group["second_moment"], group["eps"])
            torch._foreach_div_(moves, roots)
        torch._foreach_mul_(moves, [ADJUST_LR[group["adjust_lr"]](*p.shape) for p in parameters])
        return moves


def momentum(memories: list[Tensor], gradients: list[Tensor], decay: float, nesterov: bool) -> list[Tensor]:
    """`M <- decay M + G` in place; returns `M`, or with `nesterov` `G + decay M`."""
    torch._foreach_mul_(memories, decay)
    torch._foreach_add_(memories, gradients)
    return list(torch._foreach_add(gradients, memories, alpha=decay)) if nesterov else memories


def recall(memories: list[Tensor], kept: list[Tensor], due: list[bool], decay: float, **iteration: Any) -> None:
    """Where a period begins, in place: `kept <- NS(M)` and `M <- decay M`, ready for the period's gradients."""
    which = [i for i, now in enumerate(due) if now]
    for i, direction in zip(which, orthogonal([memories[i] for i in which], **iteration), strict=True):
        kept[i].copy_(direction)
        memories[i].mul_(decay)


def recall_traced(
    memories: list[Tensor], kept: list[Tensor], due: list[Tensor], decay: float, **iteration: Any
) -> None:
    """`recall` for a graph, which cannot branch: everything is computed and chosen from."""
    for memory, old, now, new in zip(memories, kept, due, orthogonal(memories, **iteration), strict=True):
        old.copy_(torch.where(now, new, old))
        memory.copy_(torch.where(now, decay * memory, memory))


def orthogonal(matrices: list[Tensor], **iteration: Any) -> list[Tensor]:
    """`newton_schulz` of every matrix, those of one shape in one batch.

    A sharded matrix (DTensor) takes one all-gather: every rank iterates on all of it and keeps its own part.
    """
    kinds: dict[tuple, list[int]] = {}
    for i, x in enumerate(matrices):
        kinds.setdefault((x.shape, x.dtype, x.device), []).append(i)
    found: dict[int, Tensor] = {}
    for (shape, *_), indices in kinds.items():
        size = max(1, BATCH // shape.numel())
        for part in (indices[k : k + size] for k in range(0, len(indices), size)):
            batch = newton_schulz(torch.stack([_whole(matrices[i]) for i in part]), **iteration)
            found |= {i: _part(x, matrices[i]) for i, x in zip(part, batch.unbind(), strict=True)}
    return [found[i] for i in range(len(matrices))]


def matrix_groups(model: nn.Module, heads: Iterable[str] = (), **adamw: Any) -> list[dict[str, Any]]:
    """A model's trainable parameters as groups for `M3`: the hidden matrices, and what AdamW should have.

    AdamW gets embeddings (and what is tied to them), output heads, and all that has not two dimensions.

    heads: names of the output layers, as in `model.named_modules()`: in shape they are like any hidden matrix.
    adamw: settings of the AdamW group, such as `lr`.

    Raises:
        ValueError: a head that the model does not have, or a model without hidden matrices.
    """
    modules = dict(model.named_modules())
    if unknown := sorted(set(heads) - modules.keys()):
        raise ValueError(f"heads={unknown} are not modules of the model; it has {sorted(modules)}")
    apart = [modules[name] for name in heads]
    apart += [module for module in modules.values() if isinstance(module, nn.Embedding | nn.EmbeddingBag)]
    vectors = {id(p) for module in apart for p in module.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    hidden = [p for p in trained if p.ndim == 2 and id(p) not in vectors]
    others = [p for p in trained if p.ndim != 2 or id(p) in vectors]
    if not hidden:
        raise ValueError("the model has no hidden matrices to train; use torch.optim.AdamW")
    return [{"params": hidden}] + ([{"params": others, "adamw": True, **adamw}] if others else [])


def _names(period: int) -> tuple[str, str]:
    """The state of one slow memory: itself, and the direction it last gave."""
    return f"slow_{period}", f"slow_direction_{period}"


def _slow(period: int, decay: float) -> Part:
    rule = f"M2 <- {decay:g} M2 + sum of {period} G"
    return remembered(f"slow momentum of {period} steps", _names(period), decay, "-<m, G>", rule, period=period)


def _check(group: dict[str, Any]) -> None:
    at_least_zero(lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"])
    if group["adamw"]:
        below_one(beta1=group["betas"][0], beta2=group["betas"][1])
        return
    for p in group["params"]:
        if p.ndim != 2:
            raise ValueError(
                f"a parameter of shape {list(p.shape)} is no matrix; put it in a group with 'adamw': True, "
                "or let matrix_groups(model) sort the model's parameters"
            )
    for name in ("momentum", "slow_momentum"):
        if not 0 <= group[name] <= 1:
            raise ValueError(f"{name}={group[name]} must be in [0, 1]; 1 never forgets")
    if group["second_moment"] is not None and not 0 < group["second_moment"] <= 1:
        raise ValueError(f"second_moment={group['second_moment']} must be None (off) or in (0, 1]; 1 never forgets")
    if group["adjust_lr"] not in ADJUST_LR:
        raise ValueError(f"adjust_lr={group['adjust_lr']!r} must be one of {', '.join(ADJUST_LR)}")
    _check_slow(group["periods"], group["weights"])
    newton_schulz(torch.zeros(1, 1), group["steps"], group["coefficients"])  # raises what it would raise in a step


def _check_slow(periods: Sequence[int], weights: Sequence[float]) -> None:
    if len(periods) != len(weights):
        raise ValueError(f"periods={periods} and weights={weights} must have one weight for each period")
    if any(period < 1 or period != int(period) for period in periods) or len(set(periods)) < len(periods):
        raise ValueError(f"periods={periods} must be different whole numbers of steps, each at least 1")
    at_least_zero(**{f"the weight of period {period}": weight for period, weight in zip(periods, weights, strict=True)})


def _whole(x: Tensor) -> Tensor:
    return x.full_tensor() if _sharded(x) else x


def _part(x: Tensor, like: Tensor) -> Tensor:
    """This rank's part of `x`, sharded as `like`; every rank has all of `x`, so nothing is sent."""
    if not _sharded(like):
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x, like.device_mesh, like.placements, src_data_rank=None)


def _sharded(x: Tensor) -> TypeGuard[DTensor]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor  # takes a second to import

    return isinstance(x, DTensor)
