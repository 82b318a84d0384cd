"""What a learner reads: texts, files, token ids, or any number of them after each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nestling.errors import UserError
from nestling.train.data import encode, read_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Text = str | Path | Tensor | Sequence[int]
Labels = Tensor | Sequence[int] | int | None


def token_ids(text: Text, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """`[L]` int64 of a text, of a UTF-8 file (a `Path`), or of token ids. Raises UserError where there are none."""
    if isinstance(text, str | Path):
        return encode(tokenizer, read_text(text) if isinstance(text, Path) else text)
    ids = torch.as_tensor(text)
    if ids.dim() != 1 or ids.dtype != torch.int64 or len(ids) == 0:
        raise UserError(f"token ids are {tuple(ids.shape)} {ids.dtype}; expected [L] torch.int64 with L >= 1")
    return ids


def each(
    text: Text | Iterable[Text], labels: Labels, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids and labels, `[L]` both, of one text, or of every one of an iterable, each turned into tokens by itself; empty
    strings are skipped. `labels` are as in `nestling.Learner.observe`.

    Raises UserError where there is nothing to read, or where the labels do not fit.
    """
    one = _is_one(text)
    if not (one or labels is None or isinstance(labels, int)):
        raise UserError(
            "labels of several texts are one number for all; give a text that has labels of its own to a call of its own"
        )
    items: Iterable[Any] = [text] if one else text  # pyright: ignore[reportAssignmentType] - what is iterated is no Path
    empty = True
    for item in items:
        if one or not (isinstance(item, str) and not item):
            empty = False
            ids = token_ids(item, tokenizer)
            yield ids, _labels(labels, ids)
    if empty:
        raise UserError("there is no text to read; give at least one that is not empty")


def _labels(labels: Labels, ids: Tensor) -> Tensor:
    """What should have been predicted in the place of each of `ids [L]`."""
    given = ids if labels is None else torch.as_tensor(labels, device=ids.device)
    if given.shape not in ((), ids.shape) or given.dtype != torch.int64:
        raise UserError(
            f"labels are {tuple(given.shape)} {given.dtype}; expected one number, or {tuple(ids.shape)} torch.int64, one for "
            "each token"
        )
    return given.expand_as(ids)


def _is_one(text: Text | Iterable[Text]) -> bool:
    """A sequence is token ids, unless its first item is a text."""
    if isinstance(text, Sequence) and not isinstance(text, str):
        return not (len(text) and isinstance(text[0], str | Path | Tensor))
    return isinstance(text, str | Path | Tensor)
