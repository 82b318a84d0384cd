"""Text as tokens: files, two domains that every Python ships, and batches of windows."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nestling.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file. Raises UserError when it is missing, unreadable, not text, or empty."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the path of a text file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); convert it, or give another file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not text.strip():
        raise UserError(f"{path} is empty; give a file with text in it")
    return text


def file_tokens(path: str | Path, tokenizer: PreTrainedTokenizerBase, characters: int = 2**16) -> Iterator[Tensor]:
    """Token ids `[n]` int64 of a UTF-8 file, piece by piece, so that none is too long to be read (`model.stream`).

    characters: of a piece, at most; it ends with its last line that is whole, and is turned into tokens by itself.

    Raises:
        UserError: the file is missing, unreadable, not text, or empty; when that is found.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist; give the path of a text file")
    return _file_tokens(path, tokenizer, characters)


def _file_tokens(path: str | Path, tokenizer: PreTrainedTokenizerBase, characters: int) -> Iterator[Tensor]:
    rest, read = "", False
    try:
        with open(path, encoding="utf-8") as file:
            while piece := file.read(characters - len(rest)):
                piece, read = rest + piece, True
                end = piece.rfind("\n") + 1 or len(piece)
                rest = piece[end:]
                yield encode(tokenizer, piece[:end])
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; convert it, or give another file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not read:
        raise UserError(f"{path} is empty; give a file with text in it")
    if rest:
        yield encode(tokenizer, rest)


def up_to(pieces: Iterable[Tensor], tokens: int | None) -> Iterator[Tensor]:
    """The first `tokens` of pieces `[n]`, None for all; no piece is taken that is not needed."""
    for piece in pieces:
        yield piece if tokens is None else piece[:tokens]
        tokens = None if tokens is None else tokens - len(piece)
        if tokens is not None and tokens <= 0:
            return


def english_prose() -> str:
    """The language reference that `pydoc` shows: about 450 KB of English, in a fixed order."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def python_source(limit: int, modules: str = "*.py") -> str:
    """The first `limit` characters of the standard library's modules that match a pattern, in alphabetical order."""
    texts, size = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob(modules)):
        try:
            texts.append(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            continue
        size += len(texts[-1]) + 2
        if size >= limit:
            return "\n\n".join(texts)[:limit]
    raise UserError(
        f"{modules} of the standard library has only {size} characters of source; ask for fewer than {limit}"
    )


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """One token a byte; nothing to download. Byte b is token b + 3; 384 tokens in all."""
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """`[L]` int64, without special tokens. Raises UserError for an empty text."""
    if not text:
        raise UserError("the text is empty; give at least one character")
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.int64)


def batches(ids: Tensor, batch_size: int, length: int, steps: int, seed: int) -> Iterator[Tensor]:
    """`steps` batches `[batch_size, length]` of windows at random places of `ids [N]`."""
    if len(ids) < length:
        raise UserError(f"the text has {len(ids)} tokens; a window of {length} needs as many. Give a longer text")
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(ids) - length + 1, (batch_size, 1), generator=generator)
        yield ids[starts + torch.arange(length)]
