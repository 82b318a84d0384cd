"""Public data sets: from the folder that NESTLING_DATA names, or else from the Hugging Face hub."""

from __future__ import annotations

import gzip
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nestling.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
BABI = "https://raw.githubusercontent.com/harvardnlp/MemN2N/master/babi_data/en"
BABI_TASKS = [
    "single-supporting-fact", "two-supporting-facts", "three-supporting-facts", "two-arg-relations",
    "three-arg-relations", "yes-no-questions", "counting", "lists-sets", "simple-negation", "indefinite-knowledge",
    "basic-coreference", "conjunction", "compound-coreference", "time-reasoning", "basic-deduction",
    "basic-induction", "positional-reasoning", "size-reasoning", "path-finding", "agents-motivations",
]  # fmt: skip
MNIST_PARTS = {"train": "train", "test": "t10k"}


def local(*parts: str, folder: str | None = None) -> Path | None:
    """A file under `folder` (None: the one that NESTLING_DATA names), or None where that has no such file."""
    root = folder or os.environ.get("NESTLING_DATA")
    path = Path(root, *parts) if root else None
    return path if path is not None and path.is_file() else None


def wikitext2(part: str, folder: str | None = None) -> str:
    """WikiText-2 (Merity et al., arXiv 1609.07843), word-level text; part "train" or "valid"."""
    if path := local("wikitext2", f"{part}.txt.gz", folder=folder):
        return gzip.decompress(path.read_bytes()).decode()
    split = {"valid": "validation"}.get(part, part)
    rows = hub("Salesforce/wikitext", "wikitext-2-v1", split=split)
    return "".join(row["text"] for row in rows)


def war_and_peace(limit: int) -> str:
    """The first `limit` characters of Tolstoy's novel, in the Maude translation; from the folder of NESTLING_DATA alone."""
    path = local("haystack", "war_and_peace.txt.gz")
    if path is None:
        raise UserError(
            "War and Peace is not here: put Project Gutenberg's text 2600, compressed with gzip, into a folder as "
            "haystack/war_and_peace.txt.gz, and let NESTLING_DATA name that folder"
        )
    return gzip.decompress(path.read_bytes()).decode()[:limit]


def tiny_shakespeare(folder: str | None = None) -> str:
    """A million characters of Shakespeare's plays (Karpathy 2015, char-rnn)."""
    if path := local("tinyshakespeare", "input.txt.gz", folder=folder):
        return gzip.decompress(path.read_bytes()).decode()
    rows = hub("text", data_files=SHAKESPEARE, split="train")
    return "\n".join(row["text"] for row in rows)


def babi(number: int, part: str, folder: str | None = None) -> str:
    """A file of bAbI (Weston et al. 2015, arXiv 1502.05698), in English, 1,000 questions; number 1 to 20, part "train" or "test"."""
    name = f"qa{number}_{BABI_TASKS[number - 1]}_{part}.txt"
    if path := local("babi", "babi_en.zip", folder=folder):
        with zipfile.ZipFile(path) as archive:
            return archive.read(f"en/{name}").decode()
    rows = hub("text", data_files=f"{BABI}/{name}", split="train")
    return "\n".join(row["text"] for row in rows)


def mnist(part: str, folder: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """MNIST (LeCun et al. 1998): images `[N, 28, 28]` uint8 and labels `[N]` uint8; part "train" or "test"."""
    name = MNIST_PARTS[part]
    images = local("mnist", f"{name}-images-idx3-ubyte.gz", folder=folder)
    labels = local("mnist", f"{name}-labels-idx1-ubyte.gz", folder=folder)
    if images and labels:
        return _idx(images, header=16).reshape(-1, 28, 28), _idx(labels, header=8)
    rows = hub("ylecun/mnist", split=part)
    return np.stack([np.asarray(image) for image in rows["image"]]), np.asarray(rows["label"], dtype=np.uint8)


def _idx(path: Path, header: int) -> np.ndarray:
    """The bytes of an IDX file after its header."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8, offset=header)


def hub(name: str, *configuration: str, split: str, **options: str) -> Any:
    """A data set of the hub, or (as `data_files`) of another address; or a UserError that says what to do."""
    source = options.get("data_files", f"{name} from the hub")
    advice = f"set NESTLING_DATA to a folder that has it, or install nestling[data] to fetch {source}"
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports] - an extra
    except ImportError:
        raise UserError(f"the data set is not here: {advice}") from None
    load: Callable[..., Any] = load_dataset
    try:
        return load(name, *configuration, split=split, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{source} cannot be fetched ({str(error).splitlines()[0]}): {advice}") from None
