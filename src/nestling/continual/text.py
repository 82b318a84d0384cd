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


def token_ids(text: Text, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """`[L]` int64 of a text, of a UTF-8 file (a `Path`), or of token ids. Raises UserError where there are none."""
    if isinstance(text, str | Path):
        return encode(tokenizer, read_text(text) if isinstance(text, Path) else text)
    ids = torch.as_tensor(text)
    if ids.dim() != 1 or ids.dtype != torch.int64 or len(ids) == 0:
        raise UserError(f"token ids are {tuple(ids.shape)} {ids.dtype}; expected [L] torch.int64 with L >= 1")
    return ids


def each(text: Text | Iterable[Text], tokenizer: PreTrainedTokenizerBase) -> Iterator[Tensor]:
    """Token ids of one text, or of every one of an iterable, each turned into tokens by itself; empty strings are skipped.

    Raises UserError where there is nothing to read.
    """
    one = _is_one(text)
    items: Iterable[Any] = [text] if one else text  # pyright: ignore[reportAssignmentType] - what is iterated is no Path
    empty = True
    for item in items:
        if one or not (isinstance(item, str) and not item):
            empty = False
            yield token_ids(item, tokenizer)
    if empty:
        raise UserError("there is no text to read; give at least one that is not empty")


def _is_one(text: Text | Iterable[Text]) -> bool:
    """A sequence is token ids, unless its first item is a text."""
    if isinstance(text, Sequence) and not isinstance(text, str):
        return not (len(text) and isinstance(text[0], str | Path | Tensor))
    return isinstance(text, str | Path | Tensor)
