"""Retention over what was seen: a step that changes least what a layer did with its past inputs, for any optimiser.

Generalised gradient descent (arXiv 2512.24695, Def. 5) whose retention is `1/2 tr(dW A dW^T)`, `A = a I + E[x x^T]` over the
inputs that the layer has seen, scaled to unit mean square. A step `dW` becomes

    dW P,    P = a A^-1                 whole in directions never used, small in well-trodden ones

`P` is a memory of its own (value-less, optimal L2) and a level of its own: it streams, and is factored at a period. The same
mathematics moves levels (`nestling.memory.RetainSeen`). Relatives: recursive least squares, OWM (Zeng et al. 2019), K-FAC's
input factor, online Laplace (Ritter et al. 2018), AlphaEdit's null space (Fang et al. 2025).

What is projected is the optimiser's **step**, not its gradient: an optimiser that normalises its gradients (Adam, Muon) would
partly undo a projection of them. So weight decay, which is part of the step, is held back where the layer was used, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestling.memory import RetainSeen
from nestling.memory.part import Context, Part
from nestling.optim.inputs import Inputs, Layer, Reading, Watching, counts, layers_of, tokens


def curvature(seen: Tensor, count: Tensor, damping: float) -> Tensor:
    """`A = a I + E[x x^T]` with inputs scaled to unit mean square, from the sum `seen [.., in, in]` over `count` tokens.

    A diagonal one (one-hot inputs) is `[V]`. Where nothing was seen, `A = a I`.
    """
    mean = seen / count.clamp_min(torch.finfo(seen.dtype).tiny).to(seen.dtype)
    diagonal = mean if seen.dim() == 1 else mean.diagonal(dim1=-2, dim2=-1)
    scale = diagonal.mean(-1).clamp_min(torch.finfo(seen.dtype).tiny)
    if seen.dim() == 1:
        return mean / scale + damping
    return mean / scale[..., None, None] + damping * torch.eye(seen.shape[-1], dtype=seen.dtype, device=seen.device)


def retained(change: Tensor, factor: Tensor, damping: float) -> Tensor:
    """`dW P = a dW A^-1`, for `change [.., out, in]` and the Cholesky factor of `A`; or `change [V, ..]` and a diagonal `A [V]`."""
    if factor.dim() == 1:
        return change * (damping / factor)[:, None]
    return damping * torch.cholesky_solve(change.mT, factor).mT


STATE = ("seen", "count", "factor", "fresh", "streamed")


@dataclass
class _Memory:
    """What one layer has seen, `x` followed by a 1 where the layer has a bias to protect.

    seen: `[G, in, in]`, or `[V]` for an embedding; None before the first input. count: tokens in it, float64.
    factor: of `A` as it was when it was last factored. fresh: inputs came since then. streamed: since the last step.
    """

    layer: Layer
    bias: Tensor | None
    seen: Tensor | None = None
    count: Tensor | None = None
    factor: Tensor | None = None
    fresh: bool = False
    streamed: bool = False

    def add(self, x: Tensor) -> None:
        """Take in the inputs of a forward pass, unless they are not finite: those would be remembered for ever."""
        if isinstance(self.layer, nn.Embedding):
            new = counts(self.layer, x)
            number = new.sum()
        else:
            x = tokens(self.layer, x)
            x = F.pad(x, (0, 1), value=1.0) if self.bias is not None else x
            new, number = x.mT @ x, torch.tensor(x.shape[1], device=x.device)
        finite = new.sum().isfinite()
        if self.seen is None or self.count is None:
            self.seen, self.count = torch.zeros_like(new), torch.zeros_like(number, dtype=torch.float64)
        self.seen += torch.where(finite, new, 0.0)
        self.count += torch.where(finite, number, 0)
        self.fresh = True

    def refactor(self, name: str, damping: float) -> None:
        """Factor what has been seen up to now."""
        assert self.seen is not None and self.count is not None
        factor, self.fresh = curvature(self.seen, self.count, damping), False
        if factor.dim() > 1:
            factor, failed = torch.linalg.cholesky_ex(factor)
            if failed.any():
                raise ValueError(
                    f"what {name!r} has seen cannot be inverted with damping={damping} in {factor.dtype}; use more damping"
                )
        self.factor = factor

    def forget(self, factor: float) -> None:
        """An update has passed."""
        if self.streamed and self.seen is not None and self.count is not None:
            self.seen *= factor
            self.count *= factor
        self.streamed = False

    def parameters(self) -> list[Tensor]:
        """What is protected."""
        return [self.layer.weight] if self.bias is None else [self.layer.weight, self.bias]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """`seen`, `count` and `factor` as they are, or will be: then without memory."""
        weight = self.layer.weight
        exact = torch.promote_types(weight.dtype, torch.float32)
        groups = getattr(self.layer, "groups", 1)
        width = weight[0].numel() + (self.bias is not None)
        embeds = isinstance(self.layer, nn.Embedding)
        shape = (len(weight),) if embeds else (groups, width, width)
        new = torch.empty(shape, dtype=exact, device="meta")
        count = torch.empty((), dtype=torch.float64, device="meta")
        kept = (self.seen, new), (self.count, count), (self.factor, new)
        seen, number, factor = (later if now is None else now for now, later in kept)
        return seen, number, factor

    def retain(self, before: list[Tensor], damping: float) -> None:
        """Put `W + dW P` in the place of `W + dW`; weight and bias are one matrix, whose last column is the bias."""
        assert self.factor is not None
        exact = self.factor.dtype
        changes = [p.to(exact) - old.to(exact) for p, old in zip(self.parameters(), before, strict=True)]
        if self.factor.dim() == 1:
            moves = [retained(changes[0], self.factor, damping)]
        else:
            groups = len(self.factor)
            parts = [c.reshape(groups, len(c) // groups, -1) for c in changes]
            moves = retained(torch.cat(parts, -1), self.factor, damping).split([p.shape[-1] for p in parts], -1)
        for p, old, move in zip(self.parameters(), before, moves, strict=True):
            p.copy_(old.to(exact) + move.reshape(old.shape))

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in STATE}

    def load(self, state: dict[str, Any]) -> None:
        for name in STATE:
            value = state[name]
            setattr(self, name, value.to(self.layer.weight.device, copy=True) if isinstance(value, Tensor) else value)


class Retained(Watching, torch.optim.Optimizer):
    """Any optimiser, behind a memory of what the layers have seen: what it would unlearn of that, it does not move.

        optimizer = Retained(torch.optim.AdamW(model.parameters(), lr=1e-3), model, damping=1e-2)
        with optimizer.observe():
            model(old_inputs)                    # optional: what is to be kept, of which nothing is learnt
        ...                                      # then as with any optimiser; what it learns from is seen, too

    Weights and biases of the linear, embedding and convolution layers in `model` that the optimiser moves are protected
    (`protected`; `repr` shows them), everything else takes the optimiser's own step (`unprotected`: norms, and layers outside of
    `model`). An embedding's memory is the diagonal of its counts. A convolution's is over its unfolded patches, so that the
    curvature of its weight is `I (x) A`, as in K-FAC: `in` is channels times taps. A bias is the weight of a constant 1.

    An optimiser step with its inputs `X_s` of `N_s` tokens leaves the memory `sum_s f^(t-s) X_s^T X_s / sum_s f^(t-s) N_s`.
    The inputs of a step are in the memory that restrains it, as in recursive least squares. The step holds one more copy of the
    protected weights, and each layer two matrices `[in, in]`; factoring costs `in^3 / 3` every `period` steps.

    Do not use it where the model has to *change* what it does with its usual inputs (small damping then only slows it), with
    `DistributedDataParallel` or sharded parameters, where `in` is too large for an `[in, in]`, or around an optimiser
    that keeps a copy of the weights. In bfloat16 the optimiser's step is rounded before it is projected.

    Args:
        optimizer: any torch optimiser whose `step` needs no closure. Groups, state and defaults stay its own.
        model: the layers to protect; a part of a model protects that part.
        damping: `a > 0`. Large is plastic (the bare optimiser in the limit), small is persistent.
        forgetting: `f` in (0, 1], at each step; 1 never forgets.
        period: steps between two factorisations, at least 1.

    Raises:
        ValueError: a setting out of range; no layer to protect; a weight that two layers share; a layer that ran twice
            before a backward pass; at a step, a weight whose inputs were never seen, or too little damping for its precision.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        damping: float = 1e-2,
        forgetting: float = 1.0,
        period: int = 1,
    ) -> None:
        RetainSeen(damping, forgetting)  # its limits are ours
        if period < 1:
            raise ValueError(f"period={period} must be at least 1 step")
        self.optimizer, self.model = optimizer, model
        self.damping, self.forgetting, self.period = damping, forgetting, period
        self.__setstate__(
            {"defaults": optimizer.defaults}
        )  # as unpickling does: torch's hooks, and no groups of its own
        self._memories: dict[str, _Memory] = {}
        self._inputs: list[Inputs] = []
        self._steps = 0
        self._protect()
        if not self._memories:
            raise ValueError(
                "the optimiser moves no linear, embedding or convolution layer of this model; give one that it moves"
            )

    def _protect(self) -> None:
        """Take up the layers that the optimiser moves."""
        moved = {p for group in self.param_groups for p in group["params"]}
        layers = {name: layer for name, layer in layers_of(self.model, moved).items() if name not in self._memories}
        for name, layer in layers.items():
            bias = getattr(layer, "bias", None)
            self._memories[name] = _Memory(layer, bias if bias in moved else None)
        self._inputs.append(Inputs(layers, self._learnt, self._observed))

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The optimiser's."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The optimiser's."""
        return self.optimizer.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As the optimiser's; its layers are protected from now on."""
        self.optimizer.add_param_group(param_group)
        self._protect()

    @property
    def protected(self) -> list[str]:
        """Names of the parameters whose layers' past is kept."""
        kept = {p for memory in self._memories.values() for p in memory.parameters()}
        return [name for name, p in self.model.named_parameters() if p in kept]

    @property
    def unprotected(self) -> list[str]:
        """Names of the parameters of the model that the optimiser moves freely."""
        moved = {p for group in self.param_groups for p in group["params"]}
        return [name for name, p in self.model.named_parameters() if p in moved and name not in set(self.protected)]

    def __repr__(self) -> str:
        settings = f"damping={self.damping}, forgetting={self.forgetting}, period={self.period}"
        moved = f"    protected: {', '.join(self.protected)}\n    unprotected: {', '.join(self.unprotected) or 'none'}"
        return f"Retained({settings}\n{moved}\n{self.optimizer!r})"

    def parts(self) -> tuple[Part, ...]:
        """For each layer what it has seen, and the factor by which its steps are held back."""
        context = Context.fading(self.forgetting, "steps")
        found = []
        for memory in self._memories.values():
            seen, count, factor = memory.tensors()
            kept = {"parameters": tuple(memory.parameters()), "item": seen.shape[-1], "context": context}
            what = ("inputs seen", "1/2 tr(dW A dW^T)")
            found.append(Part(*what, f"A <- {self.forgetting:g} A + x^T x", state=(seen, count), **kept))
            rule, needs = "A <- a I + A / mean(A)", ("inputs seen",)
            found.append(
                Part("factor of what was seen", what[1], rule, self.period, needs=needs, state=(factor,), **kept)
            )
        return tuple(found)

    @contextmanager
    def _all(self, mode: Callable[[Inputs], AbstractContextManager[None]]) -> Iterator[None]:
        with ExitStack() as stack:
            for inputs in self._inputs:
                stack.enter_context(mode(inputs))
            yield

    def observe(self) -> AbstractContextManager[None]:
        """A context in which every forward pass, with or without gradients, is remembered as something to keep."""
        return self._all(Inputs.observe)

    def pause(self) -> AbstractContextManager[None]:
        """A context in which nothing is remembered; steps are held back by what is."""
        return self._all(Inputs.pause)

    def remove(self) -> None:
        """Take the hooks away: from now on nothing is remembered, and steps are held back by what is."""
        for inputs in self._inputs:
            inputs.remove()

    def __enter__(self) -> Retained:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    @torch.no_grad()
    def _learnt(self, name: str, reading: Reading, gradient: Tensor) -> None:
        if reading.new:
            self._memories[name].add(reading.input)
            self._memories[name].streamed = True

    @torch.no_grad()
    def _observed(self, name: str, x: Tensor) -> None:
        self._memories[name].add(x)
        self._memories[name].factor = None  # do not wait for the period

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step of the optimiser, held back; returns what the closure returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        due = self._steps % self.period == 0
        for name, memory in self._memories.items():
            if memory.fresh and (due or memory.factor is None):
                memory.refactor(name, self.damping)
        moving = {name: m for name, m in self._memories.items() if any(p.grad is not None for p in m.parameters())}
        if unseen := [name for name, memory in moving.items() if memory.factor is None]:
            raise ValueError(
                f"layers {unseen} have gradients and their inputs were never seen; run what is to be kept inside "
                "`with optimizer.observe():`, and use a layer's weight through the layer"
            )
        before = {name: [p.clone() for p in memory.parameters()] for name, memory in moving.items()}
        self.optimizer.step()
        for name, memory in moving.items():
            memory.retain(before[name], self.damping)
        for memory in self._memories.values():
            memory.forget(self.forgetting)
        self._steps += 1
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's, and under `"retained"` what the layers have seen."""
        memories = {name: memory.state() for name, memory in self._memories.items()}
        return {**self.optimizer.state_dict(), "retained": {"steps": self._steps, "memories": memories}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`, for a model of the same layers; a ValueError leaves everything as it was."""
        if "retained" not in state_dict:
            raise ValueError("this state is of an optimiser without Retained around it; load it into `.optimizer`")
        memories = state_dict["retained"]["memories"]
        if set(memories) != set(self._memories):
            raise ValueError(f"this state protects {sorted(memories)}, and this optimiser {sorted(self._memories)}")
        self.optimizer.load_state_dict({name: value for name, value in state_dict.items() if name != "retained"})
        self._steps = state_dict["retained"]["steps"]
        for name, memory in self._memories.items():
            memory.load(memories[name])
