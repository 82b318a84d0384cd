"""What a stream can be made of: token ids one by one or in chunks of any size, none of them kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nestling.errors import UserError

Chunk = Tensor | np.ndarray | Sequence[int]
Tokens = Tensor | np.ndarray | Iterable[int | Chunk]
WIDEST = (
    2**16
)  # tokens of a chunk; of a longer array, as one that is mapped into memory, so many are looked at together


def chunks(tokens: Tokens, vocabulary: int) -> Iterator[Tensor]:
    """Chunks `[n]` int64, 1 <= n <= `WIDEST`, of what `nestling.HopeForCausalLM.stream` takes.

    Raises:
        UserError: something that is no token, or one outside of the vocabulary; when it is reached.
    """
    if isinstance(tokens, str | bytes) or not isinstance(tokens, Iterable):
        raise UserError(
            f"a stream is made of token ids, and {type(tokens).__name__} was given; for a text give the ids that its tokenizer makes, "
            "for a file nestling.train.file_tokens(path, tokenizer)"
        )
    return _chunks([tokens] if isinstance(tokens, Tensor | np.ndarray) else tokens, vocabulary)


def _chunks(items: Iterable[Any], vocabulary: int) -> Iterator[Tensor]:
    single: list[Any] = []
    for item in items:
        if isinstance(item, int | np.integer) or (isinstance(item, Tensor | np.ndarray) and item.ndim == 0):
            single.append(item)
            if len(single) < WIDEST // 64:
                continue
            item, single = single, []
        elif single:
            yield _ids(single, vocabulary)
            single = []
        for start in range(0, _length(item), WIDEST):
            yield _ids(item[start : start + WIDEST], vocabulary)
    if single:
        yield _ids(single, vocabulary)


def _length(item: Any) -> int:
    if isinstance(item, str | bytes) or not hasattr(item, "__len__"):
        raise UserError(f"a stream is made of token ids or chunks of them; it holds a {type(item).__name__}")
    return len(item)


def _ids(chunk: Any, vocabulary: int) -> Tensor:
    try:
        ids = chunk if isinstance(chunk, Tensor) else torch.as_tensor(np.asarray(chunk))
    except (TypeError, ValueError):
        raise UserError("a chunk of the stream is no array of token ids; give integers, one dimension") from None
    if ids.dim() != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise UserError(f"a chunk of the stream is {tuple(ids.shape)} {ids.dtype}; give integers, one dimension")
    ids = ids.to("cpu", torch.int64)
    if bool(((ids < 0) | (ids >= vocabulary)).any()):
        wrong = ids[(ids < 0) | (ids >= vocabulary)][0].item()
        raise UserError(f"the stream holds token {wrong}; the model's are 0 to {vocabulary - 1}: use its own tokenizer")
    return ids
