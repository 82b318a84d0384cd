"""Delta gradient descent: a step that also erases what a weight holds in the direction of its input.

arXiv 2512.24695, Eq. 56-57, for one input `x` and the gradient `u` at the layer's output (tokens are rows):

    W <- argmin_V  1/2 |V x + u|^2 + 1/(2 eta) |V - W|^2
       = W (I - eta' x x^T) - eta' u x^T,            eta' = eta / (1 + eta |x|^2)

With an erasure of `c`, `1/2 |V x + u|^2` becomes `<V x, u> + c/2 |V x|^2`: one is the paper's, zero is gradient descent.

    W <- W (I - c eta' x x^T) - eta' u x^T,          eta' = eta / (1 + c eta |x|^2)

A batch of `N` tokens takes the average of its tokens' steps. Each token has an `eta'` of its own, so that sums of `u x^T`
and `x x^T` do not tell it: what is summed here is `u x^T eta' / eta` (in place of the gradient) and `x x^T eta' / eta`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nestling.memory.part import Context, Part, remembered
from nestling.optim.inputs import Inputs, Layer, Reading, Watching, counts, layers_of, surprises, tokens
from nestling.optim.shell import Shell, State, at_least_zero, below_one

RULES = ("dgd", "sgd")


def share(x: Tensor, rate: Tensor | float) -> Tensor:
    """`eta' / eta` of each token: `1 / (1 + rate |x|^2)`, `[.., N]` for `x [.., N, in]` and `rate = c eta`."""
    return 1 / (1 + rate * x.square().sum(-1))


def token_sums(x: Tensor, u: Tensor, rate: Tensor | float) -> tuple[Tensor, Tensor]:
    """`sum x x^T eta'/eta [.., in, in]`, and by how much `sum u x^T eta'/eta` is below the gradient `sum u x^T [.., out, in]`.

    x: `[.., N, in]`. u: `[.., N, out]`.
    """
    part = share(x, rate)[..., None]
    return (part * x).mT @ x, ((1 - part) * u).mT @ x


def erased(weight: Tensor, seen: Tensor) -> Tensor:
    """`W A` for `A [G, in, in]`, `W` any shape of `[G out, in]`; or, where `A [V]` is diagonal, `A W`, `W [V, ..]`."""
    if seen.dim() == 1:
        return seen[:, None] * weight
    groups, width = seen.shape[:2]
    return (weight.reshape(groups, -1, width) @ seen).reshape(weight.shape)


def layer_groups(model: nn.Module, plain: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Two parameter groups: the weights of linear, embedding and convolution layers (`rule="dgd"`), and the rest ("sgd").

    plain: names of modules or parameters that take "sgd" whatever they are, e.g. a head whose weight is the embedding's.
    Raises ValueError where two layers of the first group share a weight.
    """
    named = dict(model.named_parameters())
    kept = {n: p for n, p in named.items() if not any(n == name or n.startswith(f"{name}.") for name in plain)}
    layers = layers_of(model, kept.values())
    weights = {layer.weight for layer in layers.values()}
    groups = [
        {"params": [p for p in named.values() if p in weights], "rule": "dgd"},
        {"params": [p for p in named.values() if p not in weights], "rule": "sgd"},
    ]
    return [group for group in groups if group["params"]]


class DGD(Watching, Shell):
    """Delta gradient descent (Eq. 56-57) with momentum, for the weights of linear, embedding and convolution layers.

        optimizer = DGD(layer_groups(model), model, lr=0.1, momentum=0.9)

    A group says which rule moves it, and `repr` shows it:

        "dgd"   W <- W - lr (m + c W A),   m <- momentum m + g
                g: the gradient, A: the mean of `x x^T` over the batch's tokens, each token with its share `eta'/eta`
        "sgd"   p <- p - lr m,             m <- momentum m + g           biases, norms, and whatever else has no inputs

    The momentum gathers writes and not erasures, as everywhere in this library. An embedding's inputs are one-hot: each row
    decays by how often it was looked up. A convolution's are its unfolded patches. Hooks collect them in every backward pass,
    as sums of the weights' size and `[in, in]`, over as many passes as a step takes; `remove()` ends that.

    **What a token is, and how the loss sums them up.** A token's own gradient `u` is that of its own loss, and the loss
    of the batch is taken to be the mean of the tokens' losses (`reduction="mean"`), as for SGD: the gradient then is already
    the average, and only the erasure is divided by the number of tokens. For a sum of losses divide it by that number
    yourself; in gradient accumulation divide each loss by the number of passes. Padding counts as tokens. Where layers see
    more tokens than there are losses (the patches of an image), `A` is the mean over all that the layer saw.

    Do not use it where a layer's inputs are not centred and large (the erasure shrinks the weight towards zero along them at
    every step; set `erasure` below 1), with `DistributedDataParallel` or sharded parameters (sums are not reduced over
    processes), or on a weight that is also used outside of its layer.

    Args:
        params: parameters or groups; a plain list is one group with `rule="dgd"`, and every parameter must be a layer's.
        model: where the layers are.
        lr: `eta`. Read in the backward pass: change it between a step and the next backward pass.
        erasure: `c`, at least 0.
        momentum: in [0, 1).
        weight_decay, maximize: as in `Shell`.

    Raises:
        ValueError: a setting out of range; a group of rule "dgd" with a parameter that is no layer's weight, or one that two
            layers share; a layer that ran twice before a backward pass; at a step, a weight whose inputs were not seen.
    """

    def __init__(
        self,
        params: Iterable[Any],
        model: nn.Module,
        lr: float | Tensor,
        erasure: float = 1.0,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
    ) -> None:
        self._model, self._inputs = model, list[Inputs]()
        self._layers: dict[str, Layer] = {}
        self._places: dict[Tensor, int] = {}  # the group of each watched weight
        self._rates: dict[Tensor, Any] = {}  # the learning rate of its last backward pass
        super().__init__(params, lr, weight_decay, maximize, erasure=erasure, momentum=momentum, rule="dgd")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; the layers of a group of rule "dgd" are watched from now on."""
        super().add_param_group(param_group)
        try:
            self._watch(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def _watch(self, group: dict[str, Any]) -> None:
        if group.get("capturable"):
            raise ValueError("capturable=True is not offered: hooks are not captured in a CUDA graph; leave it out")
        at_least_zero(erasure=group["erasure"])
        below_one(momentum=group["momentum"])
        if group["rule"] not in RULES:
            raise ValueError(f"rule={group['rule']!r} of a group is unknown; choose {' or '.join(map(repr, RULES))}")
        if group["rule"] == "sgd":
            return
        layers = layers_of(self._model, group["params"])
        weights = {layer.weight for layer in layers.values()}
        if missing := [n for n, p in self._named(group["params"]) if p not in weights]:
            raise ValueError(
                f"{missing} are no weights of linear, embedding or convolution layers of the model, and have no inputs; put "
                'them into a group with rule="sgd", as nestling.optim.layer_groups(model) does'
            )
        self._layers.update(layers)
        self._places.update(dict.fromkeys(weights, len(self.param_groups) - 1))
        self._inputs.append(Inputs(layers, self._learnt))

    def _named(self, parameters: list[Tensor]) -> list[tuple[str, Tensor]]:
        names: dict[Tensor, str] = {p: name for name, p in self._model.named_parameters()}
        return [(names.get(p, f"a parameter {tuple(p.shape)} that is not the model's"), p) for p in parameters]

    def remove(self) -> None:
        """Take the hooks away. The optimiser makes no further step of rule "dgd"."""
        for inputs in self._inputs:
            inputs.remove()

    def __enter__(self) -> DGD:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    @torch.no_grad()
    def _learnt(self, name: str, reading: Reading, gradient: Tensor) -> Tensor | None:
        """Add a backward pass of a layer to its sums; returns the gradient in which each token has its share."""
        layer = self._layers[name]
        group = self.param_groups[self._places[layer.weight]]
        self._rates[layer.weight] = group["lr"]
        if not group["erasure"] or gradient.is_sparse:  # a sparse one is refused at the step
            return None
        seen, number, less = _sums(layer, reading, gradient, group["erasure"] * group["lr"])
        state = self._state(layer.weight, group)
        if "seen" not in state or layer.weight.grad is None:  # the sums are those of the gradient they belong to
            state["seen"], state["tokens"] = torch.zeros_like(seen), torch.zeros_like(number)
        if reading.new:
            state["seen"] += seen
            state["tokens"] += number
        return (gradient - less.reshape(gradient.shape)).to(gradient.dtype)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's, and forgets the inputs that belonged to the gradients."""
        super().zero_grad(set_to_none)
        _clear(self.state[weight] for weight in self._places if weight in self.state)
        self._rates.clear()

    def _step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        if group["rule"] == "dgd":
            for name, p in self._named(parameters):
                self._check(name, self._rates.pop(p, None), group["lr"])
        super()._step(parameters, group)

    @staticmethod
    def _check(name: str, rate: Any, lr: Any) -> None:
        if rate is None:
            raise ValueError(
                f"{name} has a gradient, and its layer's inputs were not seen since the last step: run the layer itself, "
                'and backward(), before every step; a weight that is used otherwise goes into a group with rule="sgd"'
            )
        if not isinstance(lr, Tensor) and rate != lr:
            raise ValueError(
                f"lr was {rate} in the backward pass and is {lr} now; change it after step(), as schedulers do"
            )

    def parts(self, group: dict[str, Any]) -> tuple[Part, ...]:
        decay, step = group["momentum"], Context("gradients", 1.0, 1)
        return (
            remembered("momentum", ("momentum",), decay, "-<m, G>", f"m <- {decay:g} m + G"),
            Part("inputs of the step", "1/2 |W x|^2", "A <- mean of x x^T", context=step, keys=("seen", "tokens")),
        )

    def rule(self, group: dict[str, Any]) -> str:
        m = "m" if group["momentum"] else "G"
        return f"W <- W - lr ({m} + {group['erasure']:g} W A)" if group["rule"] == "dgd" else f"W <- W - lr {m}"

    def initial_state(self, parameter: Tensor, group: dict[str, Any]) -> State:
        return {"momentum": torch.zeros_like(parameter)} if group["momentum"] else {}

    def directions(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: dict[str, Any]
    ) -> list[Tensor]:
        moves = gradients
        if group["momentum"]:
            moves = [state["momentum"] for state in states]
            torch._foreach_mul_(moves, group["momentum"])
            torch._foreach_add_(moves, gradients)
        if group["rule"] == "sgd" or not group["erasure"]:
            return moves
        decays = [erased(p, s["seen"]) / s["tokens"] for p, s in zip(parameters, states, strict=True)]
        _clear(states)
        return list(torch._foreach_add(moves, decays, alpha=group["erasure"]))


def _sums(layer: Layer, reading: Reading, gradient: Tensor, rate: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """`sum x x^T eta'/eta` over the tokens of a pass, their number, and what the gradient loses where each has its share."""
    if isinstance(layer, nn.Embedding):
        found, part = counts(layer, reading.input), 1 / (1 + rate)  # one-hot: |x|^2 = 1
        return part * found, found.sum(), (1 - part) * gradient
    x = tokens(layer, reading.input)
    seen, less = token_sums(x, surprises(layer, reading.surprise), rate)
    return seen, torch.tensor(float(x.shape[1]), device=x.device), less


def _clear(states: Iterable[State]) -> None:
    for state in states:
        for name in {"seen", "tokens"} & set(state):
            state[name].zero_()
