"""From a converted model back to a plain one."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nestling.levels import FastWeights, effective
from nestling.models.pretrained.forms import Chain
from nestling.models.pretrained.structure import matrix


@torch.no_grad()
def merge(inner: PreTrainedModel, maps: Mapping[str, nn.Module], memory: FastWeights | None) -> PreTrainedModel:
    """A copy of the original, `W_0 + sum_l D_l` in place of `W_0`; a model of transformers that runs without nestling.

    memory: what the levels hold for one sequence, resetting levels included: end the context first to leave them out.
        None folds nothing in: in the parameter regime the weights have been moved already. Levels that moved nothing
        give the original's weights back bit for bit. A head that learnt is no longer tied to the embedding.

    Raises:
        ValueError: the memory is of several sequences, or a chain has learnt: it is no MLP of the original's shape.
    """
    if memory is not None and len(memory[0].gathered) != 1:
        raise ValueError(
            f"the memory is of {len(memory[0].gathered)} sequences, which share no weights; give one row of it, "
            "`tuple(level.select(torch.tensor([0])) for level in memory)`"
        )
    plain = copy.deepcopy(inner)
    names = {id(module): name for name, module in inner.named_modules()}
    weights = effective(memory or (), {name: matrix(module) for name, module in maps.items()})
    for name, weight in weights.items():
        module = plain.get_submodule(names[id(maps[name])])
        if not torch.equal(weight[0], matrix(module)):
            _put(plain, module, weight[0])
    for name, chain in [(n, m) for n, m in plain.named_modules() if isinstance(m, Chain)]:
        if not chain.is_identity():
            raise ValueError(
                f"{name} is a chain whose members have learnt, and a chain cannot be folded into one MLP; "
                "keep the converted model, or convert with form='superposed'"
            )
        plain.set_submodule(name, chain.pretrained)
    return plain


def _put(plain: PreTrainedModel, module: nn.Module, weight: Tensor) -> None:
    """Give a map its new weight. A head that has become another matrix than the embedding is untied from it."""
    own = module.get_parameter("weight")
    own_layout = weight.T if isinstance(module, Conv1D) else weight
    if own is getattr(plain.get_input_embeddings(), "weight", None):
        plain.config.tie_word_embeddings = False
        plain.config.get_text_config().tie_word_embeddings = False
        plain.all_tied_weights_keys = {}
    module.weight = nn.Parameter(own_layout.contiguous(), requires_grad=own.requires_grad)
