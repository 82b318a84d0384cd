"""One segment: read it, take the gradient of its loss, move the levels. And what of that the outer gradient sees.

The inner gradient goes through the whole network within a segment, and stops at the segment's start. The outer gradient, that
of a loss of the logits, is one of three (`outer_gradient` of the configuration):

    second-order   exact, through the inner gradients and updates; every segment's graph is computed again in the backward
                   pass from the state it started from, so that memory is that of one segment
    first-order    an update is a constant: the initial weights are reached through every segment they serve in
    none           the weights that levels move are constants: only the others are reached
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from nestling.levels import FastWeights, Outputs, blocks, effective, gather, moment, step
from nestling.ops.ragged import real_tokens
from nestling.ops.recompute import recompute
from nestling.ops.state import tree_map

if TYPE_CHECKING:
    from nestling.models.learning import LearningModel

IGNORED = -100  # a label that teaches nothing, as in transformers
Read = tuple[Tensor, Tensor, tuple[Any, ...], FastWeights]


def learn_segment(
    model: LearningModel,
    tokens: Tensor,
    labels: Tensor,
    count: Tensor | None,
    mixers: tuple[Any, ...],
    memory: FastWeights,
) -> Read:
    """Logits `[B, P, V]` of a segment, what the head was given, the mixers' states after it, and the levels when they have ticked.

    tokens, labels: `[B, P]`, each token and what should follow it, -100 where nothing is taught.
    count: `[B]` int64 on the CPU, how many tokens of each row are judged (None: all).
    """
    outer = model.config.outer_gradient if torch.is_grad_enabled() else None
    if outer != "second-order":
        return _learn(model, tokens, labels, count, mixers, memory, outer)

    def again(state: tuple[tuple[Any, ...], FastWeights]) -> Read:
        return _learn(model, tokens, labels, count, *state, outer if torch.is_grad_enabled() else None)

    return recompute(again, (mixers, memory), list(model.parameters()))


def _learn(
    model: LearningModel,
    tokens: Tensor,
    labels: Tensor,
    count: Tensor | None,
    mixers: tuple[Any, ...],
    memory: FastWeights,
    outer: str | None,
) -> Read:
    """`outer`: as the configuration's, or None where nothing outside asks for a gradient."""
    mask = None if count is None else real_tokens(count, tokens.shape[1], tokens.device)
    exact = outer == "second-order"
    with torch.enable_grad():  # the inner gradient is wanted where the caller asked for none, too
        weights = effective(memory, model.learnable_weights())
        if outer in (None, "none"):
            weights = {name: w.detach() for name, w in weights.items()}
            mixers = mixers if outer else tree_map(Tensor.detach, mixers)
        # what the outer gradient does not reach, as weights under an adapter, has an inner gradient all the same
        weights = {name: w if w.requires_grad else w.requires_grad_() for name, w in weights.items()}
        with model.watch(mask, exact) as seen, model.listen() as said:
            lengths = None if count is None or bool((count == tokens.shape[1]).all()) else count
            logits, hidden, after = run(model, weights, tokens, mixers, lengths)
        labels = labels if mask is None else labels.masked_fill(~mask, IGNORED)
        gradients, felt = slopes(taught(logits, labels), weights, said, blocks(model.levels, model.moves), outer)
    if outer is None:
        logits, hidden, after = logits.detach(), hidden.detach(), tree_map(Tensor.detach, after)
    counted = torch.full((len(tokens),), tokens.shape[1]) if count is None else count
    with torch.set_grad_enabled(exact):
        lessons = (labels != IGNORED).sum(1)
        memory = step(model.levels, gather(memory, gradients, seen, counted.to(tokens.device), lessons, felt))
    return logits, hidden, after, memory


def taught(logits: Tensor, labels: Tensor) -> Tensor | None:
    """The sum of the losses of what is taught, in float32 or better; None where nothing is."""
    if not bool((labels != IGNORED).any()):
        return None
    exact = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.mT.to(exact), labels, ignore_index=IGNORED, reduction="none").sum()


def slopes(
    loss: Tensor | None,
    weights: dict[str, Tensor],
    said: Outputs,
    cut: Mapping[str, int | None],
    outer: str | None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of a sum of losses, and the moments of those at outputs.

    said: the outputs `[B, P, out]`, with weight names. cut: by name the width of the blocks in which their moments are kept.
    Without a loss no pass backward is made.
    """
    asked = [*weights.values(), *(output for _, output in said)]
    found: Sequence[Tensor | None] = [None] * len(asked)
    if loss is not None:
        kept, again = outer is not None, outer == "second-order"
        found = torch.autograd.grad(loss, asked, retain_graph=kept, create_graph=again, allow_unused=True)
    whole = [torch.zeros_like(x) if g is None else g for x, g in zip(asked, found, strict=True)]
    felt: dict[str, Tensor] = {}
    for (name, _), gradient in zip(said, whole[len(weights) :], strict=True):
        new = moment(gradient, cut[name])
        felt[name] = felt[name] + new if name in felt else new
    return dict(zip(weights, whole[: len(weights)], strict=True)), felt


def run(
    model: LearningModel, weights: dict[str, Tensor], ids: Tensor, mixers: tuple[Any, ...], lengths: Tensor | None
) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    """`model.run`; where gradients of gradients are wanted, with the one kernel of attention that has them."""
    if model.config.outer_gradient != "second-order":
        return model.run(weights, ids, mixers, lengths)
    with sdpa_kernel(SDPBackend.MATH):
        return model.run(weights, ids, mixers, lengths)


def weights_now(model: LearningModel, memory: FastWeights) -> dict[str, Tensor]:
    """The weights that levels move, as they stand: `W_0 + sum_l D_l`."""
    weights = effective(memory, model.learnable_weights())
    return weights if model.config.outer_gradient != "none" else tree_map(Tensor.detach, weights)
