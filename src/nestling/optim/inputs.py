"""What goes into a model's layers, watched by hooks: for optimisers that need more than gradients.

`G` groups of a convolution (1 elsewhere), `N` tokens (rows of a linear layer's input, patches of a convolution's),
`in`, `out` widths of one group. An embedding is a linear layer on one-hot tokens: its second moment is diagonal, `[V]`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Layer = nn.Linear | nn.Embedding | Convolution


def layers_of(model: nn.Module, weights: Iterable[Tensor]) -> dict[str, Layer]:
    """The layers of `model` that carry one of `weights` and can be watched, by name.

    The projections inside `nn.MultiheadAttention` are none of them: it never calls them as layers.

    Raises:
        ValueError: two layers share a weight, and so have no input of their own.
    """
    unused = {
        child for module in model.modules() if isinstance(module, nn.MultiheadAttention) for child in module.modules()
    }
    wanted, owners, found = set(weights), {}, {}
    for name, layer in model.named_modules():
        if not isinstance(layer, Layer) or layer in unused or layer.weight not in wanted:
            continue
        if layer.weight in owners:
            raise ValueError(
                f"layers {owners[layer.weight]!r} and {name!r} share one weight, and a weight may have one layer's inputs: "
                'give each its own, or leave the weight out (DGD: in a group with rule="sgd"; Retained: give it the part of '
                "the model that has but one of them)"
            )
        owners[layer.weight], found[name] = name, layer
    return found


class Watching:
    """What has hooks in a model cannot be copied: they watch one model."""

    def __copy__(self) -> NoReturn:
        name = type(self).__name__
        raise ValueError(
            f"{name} cannot be copied: it watches one model; make another for a copy of the model, and load_state_dict"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        self.__copy__()


def tokens(layer: nn.Linear | Convolution, x: Tensor) -> Tensor:
    """The inputs that a weight multiplies, `[G, N, in]`, of a linear layer or a convolution; float32 or better."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x.reshape(1, -1, x.shape[-1]) if isinstance(layer, nn.Linear) else _patches(layer, x)


def surprises(layer: nn.Linear | Convolution, gradient: Tensor) -> Tensor:
    """The gradient at a layer's output as `[G, N, out]`, in the order of `tokens`; float32 or better."""
    gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    if isinstance(layer, nn.Linear):
        return gradient.reshape(1, -1, gradient.shape[-1])
    channels_last = gradient.movedim(-1 - _places(layer), -1).flatten(0, -2)
    return channels_last.unflatten(-1, (layer.groups, -1)).movedim(1, 0)


def counts(layer: nn.Embedding, ids: Tensor) -> Tensor:
    """How often each row was looked up, `[V]` in float32 or better; padding never was."""
    ids = ids.flatten() if layer.padding_idx is None else ids[ids != layer.padding_idx]
    found = torch.bincount(ids, minlength=layer.num_embeddings)
    return found.to(torch.promote_types(layer.weight.dtype, torch.float32))


def _places(conv: Convolution) -> int:
    """Number of spatial dimensions."""
    return len(conv.kernel_size)


def _patches(conv: Convolution, x: Tensor) -> Tensor:
    """What the kernel of a convolution lies on at every place, laid out as its weight is: `[G, N, in]`."""
    places = _places(conv)
    x = x.reshape(-1, *x.shape[-1 - places :])  # an input without a batch gets one
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    for axis, (size, stride, dilation) in enumerate(zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)):
        x = x.unfold(2 + axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    x = x.unflatten(1, (conv.groups, -1))  # [B, G, C / G, *places, *kernel]
    x = x.movedim((1, 2), (0, 2 + places))  # [G, B, *places, C / G, *kernel]
    return x.reshape(conv.groups, -1, conv.weight[0].numel())


class Reading:
    """One forward pass of a layer: its input, and in a backward pass the gradient at its output.

    It lives as long as the graph that it is part of. new: no backward pass has reached the weight through it yet.
    backward: the number of the backward pass that it was last part of.
    """

    def __init__(self, x: Tensor, arrive: Callable[[Reading], None]) -> None:
        self.input, self.surprise, self.new, self.backward = x, x.new_empty(0), True, -1
        self._arrive = arrive

    def __call__(self, gradient: Tensor) -> None:
        self.surprise, self.backward = gradient.detach(), torch._C._current_graph_task_id()
        self._arrive(self)


Learnt = Callable[[str, Reading, Tensor], Tensor | None]
Observed = Callable[[str, Tensor], None]


class Inputs:
    """Hooks that show the inputs of layers to the optimiser that owns it.

    `learnt(name, reading, gradient)` is called in the backward pass, when the gradient of a layer's weight is known and
    before it is added to `.grad`; what it returns (unless None) is added instead. A forward pass that no backward pass
    follows counts for nothing, and inputs are kept no longer than the graph would keep them anyway.
    Inside `observe()` it is the other way round: every forward pass calls `observed(name, x)`, and no backward pass counts.

    The hooks go with `remove()`, or when the owner is dropped: its two methods are held weakly.

    Raises:
        ValueError: (in the backward pass) a layer ran more than once in what is differentiated.
    """

    def __init__(self, layers: Mapping[str, Layer], learnt: Learnt, observed: Observed | None = None) -> None:
        self._weights = {name: layer.weight for name, layer in layers.items()}
        self._layers = dict(layers)
        self._learnt = weakref.WeakMethod(learnt)
        self._observed = weakref.WeakMethod(observed) if observed else None
        self._arrived: dict[str, set[Reading]] = {name: set() for name in layers}
        self._mode: Literal["learn", "observe", "pause"] = "learn"
        me: weakref.ref[Inputs] = weakref.ref(self)
        handles = []
        for name, layer in layers.items():
            handles.append(layer.register_forward_hook(partial(_forward, me, name), with_kwargs=True))
            if layer.weight.requires_grad:
                handles.append(layer.weight.register_hook(partial(_backward, me, name)))
        self.remove = weakref.finalize(self, _remove, handles)

    def observe(self) -> AbstractContextManager[None]:
        """A context in which forward passes are seen, with or without gradients, and nothing is learnt."""
        return self._in("observe")

    def pause(self) -> AbstractContextManager[None]:
        """A context in which nothing is seen."""
        return self._in("pause")

    @contextmanager
    def _in(self, mode: Literal["observe", "pause"]) -> Iterator[None]:
        before, self._mode = self._mode, mode
        try:
            yield
        finally:
            self._mode = before

    def forward(self, name: str, layer: nn.Module, x: Tensor, output: Tensor) -> None:
        """A layer ran."""
        copied = layer is not self._layers[name]  # deepcopy of a model takes hooks along
        replaced = layer.weight is not self._weights[name]  # functional_call puts other weights in
        if copied or replaced or self._mode == "pause":
            return
        if self._mode == "observe":
            observed = self._observed and self._observed()
            assert observed is not None
            observed(name, x)
        elif output.requires_grad and layer.weight.requires_grad:
            output.register_hook(Reading(x, self._arrived[name].add))

    def backward(self, name: str, gradient: Tensor) -> Tensor | None:
        """The gradient of a layer's weight is known, and so are all readings that it came through."""
        now, learnt = torch._C._current_graph_task_id(), self._learnt()
        readings = [r for r in self._arrived[name] if r.backward == now]  # others are of passes that broke off
        self._arrived[name].clear()
        if len(readings) > 1:
            raise ValueError(
                f"layer {name!r} ran {len(readings)} times in one step, and may run once: join its inputs into one pass, call "
                "backward() after each pass, or give each use a layer of its own"
            )
        if not readings or learnt is None:  # the weight was used outside of its layer
            return None
        changed = learnt(name, readings[0], gradient)
        readings[0].new, readings[0].surprise = False, gradient.new_empty(0)
        return changed


def _forward(
    inputs: weakref.ref[Inputs], name: str, layer: nn.Module, args: tuple, kwargs: dict, output: Tensor
) -> None:
    watching = inputs()
    if watching is not None:
        watching.forward(name, layer, (args[0] if args else kwargs["input"]).detach(), output)


def _backward(inputs: weakref.ref[Inputs], name: str, gradient: Tensor) -> Tensor | None:
    watching = inputs()
    return None if watching is None else watching.backward(name, gradient)


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
