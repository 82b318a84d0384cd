"""Pretrained models: into one that keeps learning, and back."""

from __future__ import annotations

from nestling.cli.folders import load, refuse_to_overwrite
from nestling.errors import UserError
from nestling.quiet import quiet
from nestling.settings import LevelSettings, two_levels


def convert(
    model: str,
    out: str,
    levels: list[LevelSettings] | None = None,
    assign: str | list[int] | list[str] = "mlp",
    form: str = "superposed",
    window: int | None = None,
    recall: int | None = None,
) -> None:
    """Make a pretrained transformers model one that keeps learning, and save it.

    Args:
        model: folder of a model of transformers, with its tokenizer.
        out: folder for the converted model; it must not exist yet, or be empty.
        levels: from fast to slow; none is a fast level that resets over a slow one that protects what was seen.
        assign: what learns: mlp, last_quarter, blocks, all, a list of block numbers, or of names of linear maps.
        form: superposed, chain or dealt; see nestling.convert.
        window: tokens after which attention begins anew; none is all positions that the model has.
        recall: how many of the last predictions are kept as they were, beside what levels learn, and asked; none keeps none.
    """
    quiet()
    from nestling import models

    refuse_to_overwrite(out)
    network, tokenizer = load(model)
    given = [level.to_dict() for level in (two_levels() if levels is None else levels)]
    kept = None if recall is None else models.Recall(window=recall)
    converted = models.convert(network, given, assign, form, window=window, recall=kept)
    converted.save_pretrained(out)
    tokenizer.save_pretrained(out)
    moved = sum(weight.numel() for weight in converted.learnable_weights().values())
    share = moved / sum(weight.numel() for weight in converted.parameters())
    print(f"{len(given)} levels over {moved:,} weights, {share:.0%} of {type(network).__name__}; saved in {out}")


def merge(model: str, out: str, memory: str | None = None) -> None:
    """Fold what a memory holds into a converted model, and save it as a plain model that runs without nestling.

    Args:
        model: folder of a converted model.
        out: folder for the plain model; it must not exist yet, or be empty.
        memory: a memory file; without one the original model comes back.
    """
    quiet()
    from nestling.continual import Learner
    from nestling.models.pretrained import Converted, ConvertedForCausalLM

    refuse_to_overwrite(out)
    network, tokenizer = load(model)
    if not isinstance(network, Converted):
        raise UserError(
            f"{model} is no converted model, so there is nothing to fold into; `nestling convert` makes one"
        )
    if memory is None:
        plain = network.merge()
    elif isinstance(network, ConvertedForCausalLM):
        learner = Learner(network, tokenizer)
        learner.load(memory)
        plain = learner.merge()
    else:
        raise UserError(f"{model} predicts no next token and keeps no memory; leave --memory out")
    plain.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"a plain {type(plain).__name__}; saved in {out}")
