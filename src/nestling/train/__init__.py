"""Training: text as tokens, and one visible loop."""

from nestling.settings import TrainConfig
from nestling.train.corpora import mnist, tiny_shakespeare, wikitext2
from nestling.train.data import batches, byte_tokenizer, encode, english_prose, file_tokens, python_source, read_text
from nestling.train.train import Progress, train

__all__ = [
    "Progress",
    "TrainConfig",
    "batches",
    "byte_tokenizer",
    "encode",
    "english_prose",
    "file_tokens",
    "mnist",
    "python_source",
    "read_text",
    "tiny_shakespeare",
    "train",
    "wikitext2",
]
