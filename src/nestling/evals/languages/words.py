"""Texts as tokens: a token a morpheme, one for the end of a line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nestling.evals.languages.language import AFFIXES, FUTURE, LEMMAS, PAST, PLURAL, STEMS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NAMES = ("Aru", "Beno", "Ciro", "Dosa", "Emil", "Fado")  # of languages
PAD, LINE = "<pad>", "<line>"
VOCABULARY = (
    *(PAD, LINE, ":", "=", PLURAL, PAST, FUTURE),
    *(*NAMES, *LEMMAS, *STEMS),
    *(written for syllable in AFFIXES for written in (f"{syllable}-", f"-{syllable}")),
)

NUMBERS = {token: number for number, token in enumerate(VOCABULARY)}


def tokenizer() -> PreTrainedTokenizerFast:
    """Of whitespace-separated morphemes; anything else is padding, which no document contains."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(NUMBERS, unk_token=PAD))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue] - a setter
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token=PAD, pad_token=PAD, eos_token=LINE)


def lines(text: str) -> str:
    """A text with its line ends as tokens."""
    return text.replace("\n", f" {LINE} ")


def ids(text: str) -> Tensor:
    """`[L]` int64, as `tokenizer` and `lines` would say. Raises KeyError where a morpheme is not in the vocabulary."""
    return torch.tensor([NUMBERS[token] for token in lines(text).split()])
