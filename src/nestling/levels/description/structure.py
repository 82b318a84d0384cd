"""What a model is made of, found by structure: blocks, what mixes tokens in them, and a role for every parameter."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from nestling.memory.part import PROJECTIONS, STARTS, Described, Part, attending

MASKS = {"attention_mask", "attn_mask"}
COUNTED = (PROJECTIONS, STARTS, "MLPs")  # roles that every block has once: how many blocks is worth saying


@dataclass(frozen=True)
class Place:
    """Where a parameter stands: its role, and the block (or "") that it is in."""

    role: str
    block: str


@dataclass(frozen=True)
class Structure:
    """What was found in a model.

    places: of every parameter, once. parts: of what mixes tokens, with the name of the layer. averages: modules that keep running
    statistics, by name. notes: what could not be told.
    """

    places: dict[Tensor, Place]
    parts: tuple[tuple[Part, str], ...]
    averages: dict[str, _NormBase]
    notes: tuple[str, ...]


def structure(model: nn.Module) -> Structure:
    """Take a model apart. Its parameters may be without memory (`torch.device("meta")`)."""
    modules = dict(model.named_modules())
    mixing = [name for name, module in modules.items() if isinstance(module, Described) or _mixes(module)]
    blocks = _blocks(modules, mixing)
    regions = _regions(modules, mixing, blocks)
    parts = {name: _parts(modules[name]) for name in regions}
    known, unknown = ([name for name, found in parts.items() if bool(found) == wanted] for wanted in (True, False))
    unknown += [n for n, m in modules.items() if isinstance(m, nn.RNNBase) and not any(_within(n, r) for r in regions)]
    starts = {p for name in known for part in parts[name] for p in part.parameters}
    roles = {name: PROJECTIONS for name in known} | {name: "weights" for name in unknown}
    return Structure(
        places=_places(modules, roles, blocks, starts),
        parts=tuple((part, name) for name in known for part in parts[name]),
        averages={n: m for n, m in modules.items() if isinstance(m, _NormBase) and m.running_mean is not None},
        notes=tuple(_notes([type(modules[name]).__name__ for name in unknown])),
    )


def _parts(module: nn.Module) -> tuple[Part, ...]:
    """What a module that mixes tokens remembers; of one that convolves or recurs as well, nothing is known."""
    if isinstance(module, Described):
        return module.parts()
    odd = any(isinstance(inner, _ConvNd | nn.RNNBase) for inner in module.modules())
    return () if odd else (attending(),)


def _notes(silent: list[str]) -> Iterator[str]:
    for kind in dict.fromkeys(silent):
        yield (
            f"{silent.count(kind)} {kind}: the weights are in the table; what it keeps of a context is not, since its structure does "
            "not tell (inherit from nestling.memory.part.Described to say it)"
        )


def _mixes(module: nn.Module) -> bool:
    """What attends must know which tokens it may see, and takes a mask; or makes queries, keys and values by one map."""
    return _takes_a_mask(type(module)) or _fused(module)


@lru_cache(maxsize=4096)
def _takes_a_mask(kind: type[nn.Module]) -> bool:
    try:
        return bool(MASKS & set(inspect.signature(kind.forward).parameters))
    except (TypeError, ValueError):  # compiled code has no signature
        return False


def _fused(module: nn.Module) -> bool:
    """Whether among its children are one map from a width to three times it, and one from that width to itself."""
    shapes = [child.get_parameter("weight").shape for child in module.children() if _linear(child)]
    return any((3 * rows, columns) in shapes for rows, columns in shapes if rows == columns)


def _linear(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 2 and not isinstance(module, nn.Embedding | nn.EmbeddingBag)


def _inside(name: str, outer: str) -> bool:
    return name != outer and (not outer or name.startswith(f"{outer}."))


def _within(name: str, outer: str) -> bool:
    return name == outer or _inside(name, outer)


def _blocks(modules: dict[str, nn.Module], mixing: list[str]) -> list[str]:
    """Items of a list or a sequence that hold something which mixes tokens, and no such item themselves."""
    lists = [name for name, module in modules.items() if isinstance(module, nn.ModuleList | nn.Sequential)]
    items = [f"{name}.{key}".removeprefix(".") for name in lists for key, _ in modules[name].named_children()]
    holding = [item for item in items if any(_inside(name, item) for name in mixing)]
    return [item for item in holding if not any(_inside(other, item) for other in holding)]


def _regions(modules: dict[str, nn.Module], mixing: list[str], blocks: list[str]) -> list[str]:
    """The modules that mix: the outermost ones in each block, and outside of blocks the innermost ones.

    What describes itself speaks for all that is in it.
    """
    described = [name for name in mixing if isinstance(modules[name], Described)]
    found = [name for name in described if not any(_inside(name, other) for other in described)]

    def taken(name: str) -> bool:
        return any(_within(name, other) or _inside(other, name) for other in found)

    for block in blocks:
        for name in mixing:
            if _inside(name, block) and not taken(name):
                found.append(name)
    around = [*found, *blocks]
    for name in mixing:
        lowest = not any(_inside(other, name) for other in mixing)
        if lowest and not any(_within(name, other) for other in around):
            found.append(name)
    return found


def _places(
    modules: dict[str, nn.Module], regions: dict[str, str], blocks: list[str], starts: set[Tensor]
) -> dict[Tensor, Place]:
    """A role for every parameter; one that two modules share is in the table once, with the roles of both.

    regions: the roles of what is in the modules that mix tokens.
    """
    tables = {m.weight.shape for m in modules.values() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    roles: dict[Tensor, dict[str, None]] = {}
    at: dict[Tensor, str] = {}
    for name, module in modules.items():
        block = next((b for b in blocks if _within(name, b)), "")
        region = next((r for r in regions if _within(name, r)), None)
        usual = _role(module, bool(block), tables) if region is None else regions[region]
        for parameter in module._parameters.values():
            if parameter is not None:
                role = STARTS if parameter in starts else usual
                roles.setdefault(parameter, {})[role] = None
                at.setdefault(parameter, (block or region or name) if role in COUNTED else "")
    return {parameter: Place(" and ".join(its), at[parameter]) for parameter, its in roles.items()}


def _role(module: nn.Module, in_block: bool, tables: set) -> str:
    """Of the parameters that a module has itself, outside of what mixes."""
    own = [p for p in module._parameters.values() if p is not None]
    leaf = not any(True for _ in module.children())
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embeddings"
    if isinstance(module, _ConvNd):
        return "convolutions"
    if leaf and all(p.dim() <= 1 for p in own):
        return "norms"
    if in_block:
        return "MLPs"
    if _linear(module) and leaf:
        return "output head" if module.weight.shape in tables else "linear maps"
    return "weights"
