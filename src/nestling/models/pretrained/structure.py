"""The blocks of a transformers model, and the MLP in each, found by their structure and not by their names.

A decoder or an encoder is a list of like blocks. A block mixes over time in modules that ask for an attention mask, and
maps each token by itself outside of them: through a hidden width, up (`D -> H`, or `2H` where a gate is fused) and down
(`H -> D`). So the MLP is the largest such pair of maps outside of attention, whatever it is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

LINEAR = (nn.Linear, Conv1D)  # the second is GPT-2's: the same map, its weight transposed


@dataclass(frozen=True)
class Block:
    """One block of a model: its name, and the names of its linear maps.

    linear: every linear map, in order. up, down: those of the MLP.
    """

    name: str
    linear: tuple[str, ...]
    up: tuple[str, ...]
    down: str

    @property
    def mlp(self) -> tuple[str, ...]:
        """The MLP's maps, in order."""
        return (*self.up, self.down)


def matrix(module: nn.Module) -> Tensor:
    """The weight of a linear map as `[out, in]`, whatever its layout; a view of the parameter."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.T if isinstance(module, Conv1D) else weight


def find_blocks(model: PreTrainedModel) -> list[Block]:
    """The blocks of a model, first to last.

    Raises:
        ValueError: there is no list of like blocks with an MLP each, or the weights are quantised.
    """
    refuse_quantised(model)
    if model.config.is_encoder_decoder:
        raise ValueError(
            f"{type(model).__name__} is an encoder and a decoder; convert one of them: its encoder, or a decoder-only model"
        )
    width = model.get_input_embeddings().get_parameter("weight").shape[1]
    for name, modules in _lists(model):
        blocks = [_block(f"{name}.{i}", module, width) for i, module in enumerate(modules)]
        found = [block for block in blocks if block is not None]
        if len(found) == len(blocks):
            return found
    raise ValueError(
        f"{type(model).__name__} has no recognisable MLPs. Looked for a list of like blocks (nn.ModuleList), in each of them "
        f"one pair of linear maps outside of attention, from the width {width} to a hidden width and back. "
        f"Modules: {'; '.join(_inventory(model))}"
    )


def refuse_quantised(model: nn.Module) -> None:
    """Raise ValueError where a map's weight is of whole numbers, which take no gradient."""
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        weight = weight() if callable(weight) else weight  # torch's own quantised maps hand it out by a call
        if not isinstance(weight, Tensor) or (weight.is_floating_point() and not weight.is_quantized):
            continue
        raise ValueError(
            f"{name} is quantised ({type(module).__name__}, {weight.dtype}) and cannot take gradients; "
            "load the model without quantization_config, or call its dequantize() first"
        )


def _lists(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """Lists of like modules that are in no other one, the one with the most parameters first."""
    found: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, _ in found)
        if isinstance(module, nn.ModuleList) and len({type(m) for m in module}) == 1 and not inside:
            found.append((name, module))
    return sorted(found, key=lambda item: -sum(p.numel() for p in item[1].parameters()))


def adapted(model: nn.Module) -> list[str]:
    """The names of what a package of adapters put around maps: each has the map as its `base_layer`, others beside it."""
    return [name for name, module in model.named_modules() if "base_layer" in dict(module.named_children())]


def _own(name: str, around: list[str]) -> bool:
    """Whether a module is the model's own, and none of an adapter's."""
    return all(name.startswith(f"{a}.base_layer") for a in around if name.startswith(f"{a}."))


def _block(name: str, block: nn.Module, width: int) -> Block | None:
    """What a block consists of, or None where it has no MLP, or several."""
    around = adapted(block)
    linear = {n: m for n, m in block.named_modules() if isinstance(m, LINEAR) and _own(n, around)}
    mixing = [n for n, m in block.named_modules() if n and _asks_for_a_mask(m)]
    alone = {n: matrix(m).shape for n, m in linear.items() if not any(f"{n}.".startswith(f"{a}.") for a in mixing)}
    to_width = {n: shape[1] for n, shape in alone.items() if shape[0] == width}
    if not mixing or not to_width:
        return None
    hidden = max(to_width.values())
    down = [n for n, columns in to_width.items() if columns == hidden][-1]
    up = [n for n, (rows, columns) in alone.items() if n != down and columns == width and rows in (hidden, 2 * hidden)]
    several = hidden != width and sum(columns == hidden for columns in to_width.values()) > 1  # a mixture of experts
    if not up or several:
        return None
    return Block(name, tuple(f"{name}.{n}" for n in linear), tuple(f"{name}.{n}" for n in up), f"{name}.{down}")


def _asks_for_a_mask(module: nn.Module) -> bool:
    """What mixes tokens must know which are real: its forward pass takes a mask."""
    return "attention_mask" in inspect.signature(module.forward).parameters


def _inventory(model: nn.Module, limit: int = 12) -> Iterator[str]:
    """The kinds of modules that have weights of their own, with the first name and the shape of each."""
    kinds: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        for weight in module.parameters(recurse=False):
            kinds.setdefault(f"{type(module).__name__} {list(weight.shape)}", []).append(name)
            break
    for kind, names in list(kinds.items())[:limit]:
        yield f"{kind} {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    if len(kinds) > limit:
        yield f"and {len(kinds) - limit} more kinds"
