"""`nestling.convert`: a pretrained model becomes one that keeps learning (arXiv 2512.24695, section 7.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from nestling.levels import Level, as_levels
from nestling.models.learning import LearningModel
from nestling.models.pretrained.config import ConvertedConfig
from nestling.models.pretrained.forms import Assign
from nestling.models.pretrained.model import Converted, ConvertedForCausalLM, ConvertedModel
from nestling.models.recall import Recall


def convert(
    model: PreTrainedModel,
    levels: Sequence[Level | dict[str, Any]],
    assign: Assign = "mlp",
    form: str = "superposed",
    learning: str | None = None,
    window: int | None = None,
    outer_gradient: str = "first-order",
    recall: Recall | dict[str, Any] | None = None,
) -> Converted:
    """Give the weights of a pretrained model levels. With every learning rate 0 it says what it said, bit for bit.

    model: a decoder or an encoder of transformers. It is taken over, not copied.
    levels: `nestling.Level`s from fast to slow.
    assign: what learns: "mlp", the MLPs of all blocks; "last_quarter", those of the last quarter of the blocks; "blocks", every
        linear map of the blocks; "all", the output head too; or a list of block numbers, or of names of linear maps.
    form: "superposed" - every level is a difference on the same weights; `merge` folds what was learnt into them.
        "chain" - each MLP is followed by a member for every level but the slowest, which owns the pretrained MLP itself (with
        `lr=0.0` it stays as it is). Members begin as the identity. A chain that has learnt cannot be merged.
        "dealt" - of every k consecutive blocks, the MLP of the first is the fastest level's, that of the last the slowest's.
    recall: a `nestling.Recall`, which keeps the last predictions as they were and asks them; not of a model without a next token.
    learning: as in `nestling.HopeConfig`; None is "context" for a language model, "parameter" for any other.
    window: tokens after which attention begins anew, a multiple of the fastest period; None is all positions the model has.
        It bounds the memory of a stream.
    outer_gradient: as in `nestling.HopeConfig`.

    Raises:
        ValueError: no model of transformers, one without recognisable MLPs (the message lists what it has), a quantised one,
            or a choice that does not fit; the model is as it was.
    """
    if isinstance(model, LearningModel | Converted):
        raise ValueError(
            f"{type(model).__name__} has levels already; `merge()` gives a converted model's original back"
        )
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"{type(model).__name__} is no PreTrainedModel of transformers; convert the one inside of it, of a model of peft "
            "get_base_model(), which keeps its adapters"
        )
    found = as_levels(levels)
    if not found:
        raise ValueError("levels=[] converts nothing; give at least one nestling.Level")
    speaks = model.can_generate()
    if not speaks and learning == "context":
        raise ValueError(
            f"{type(model).__name__} predicts no next token, which learning='context' learns from; use learning='parameter'"
        )
    if recall and not speaks:
        raise ValueError(f"{type(model).__name__} predicts no next token, which a recall keeps; leave recall out")
    learning = learning or ("context" if speaks else "parameter")
    settings: dict[str, Any] = {
        "text_config": model.config,
        "attn_implementation": model.config._attn_implementation,  # left out, the original would lose its own
        "architecture": type(model).__name__,
        "levels": found,
        "assign": assign,
        "form": form,
        "learning": learning,
        "outer_gradient": outer_gradient,
        "recall": recall,
        "window": _window(window, model, found[0].period, learning) if speaks else None,
    }
    kind = ConvertedForCausalLM if speaks else ConvertedModel
    return kind(ConvertedConfig(**settings), model).train(model.training)


def _window(window: int | None, model: PreTrainedModel, period: int, learning: str) -> int:
    """Whole periods, at most as many tokens as the model has positions for."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if learning != "context":
        period = min(period, positions or period)  # an optimiser's period is no stretch of one text
    most = (positions or 2**31) // period * period
    if most == 0:
        raise ValueError(
            f"the fastest level's period, {period}, is longer than the model's {positions} positions; shorten it"
        )
    found = most if window is None else window
    if found < period or found % period or found > most:
        raise ValueError(
            f"window={found} does not fit; it must be a multiple of the fastest level's period, {period}, "
            f"and at most {most}, the model's positions"
        )
    return found
