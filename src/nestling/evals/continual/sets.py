"""Labelled data sets: texts and images, from the folder of NESTLING_DATA or another."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nestling.errors import UserError
from nestling.evals.continual.stream import Examples, Labelled
from nestling.train.corpora import hub, local, mnist

BANKING77 = "https://raw.githubusercontent.com/PolyAI-LDN/task-specific-datasets/master/banking_data/{part}.csv"
CIL_TEXT = "github.com/SalehMomeni/KLDA, data/"  # the splits of KLDA (AAAI 2025) and InCA (COLING 2025)
CLINC150 = "github.com/clinc/oos-eval, data/"
PARTS = ("train", "test")
Pairs = list[tuple[str, str]]  # a text and the name of its class


def labelled(train: Pairs, test: Pairs) -> Labelled:
    """Names become numbers, in alphabetical order."""
    names = sorted({name for _, name in (*train, *test)})
    places = {name: place for place, name in enumerate(names)}

    def examples(pairs: Pairs) -> Examples:
        return Examples([text for text, _ in pairs], torch.tensor([places[name] for _, name in pairs]))

    return Labelled(examples(train), examples(test), tuple(names))


def cil_text(name: str, folder: str | None = None) -> Labelled:
    """A split that papers on class-incremental text use: "clinc", "banking" or "dbpedia"; columns text and label."""

    def part(which: str) -> Pairs:
        file = ("cil_text", f"{name}_{which}.csv.gz")
        path = local(*file, folder=folder) or missing("/".join(file), f"{CIL_TEXT}{name}_{which}.csv", folder)
        return pairs(path, "text", "label")

    return labelled(part("train"), part("test"))


def banking77(folder: str | None = None) -> Labelled:
    """Banking77 (Casanueva et al., arXiv 2003.04807), the official split; columns text and category."""

    def part(which: str) -> Pairs:
        if path := local("banking77", f"{which}.csv.gz", folder=folder):
            return pairs(path, "text", "category")
        rows = hub("csv", data_files=BANKING77.format(part=which), split="train")
        return [(row["text"], row["category"]) for row in rows]

    return labelled(part("train"), part("test"))


def clinc150(folder: str | None = None) -> tuple[Labelled, list[list[int]]]:
    """CLINC150 (Larson et al., arXiv 1909.02027) without what is out of scope, the official split, and its domains as labels."""
    files = {}
    for name in ("data_full.json.gz", "domains.json"):
        path = local("clinc150", name, folder=folder)
        files[name] = path or missing(f"clinc150/{name}", CLINC150 + name.removesuffix(".gz"), folder)
    data, domains = (_json(path) for path in files.values())
    for part in PARTS:
        if part not in data:
            raise UserError(f"{files['data_full.json.gz']} has {', '.join(data)}; it needs 'train' and 'test'")
    train, test = ([(text, intent) for text, intent in data[part]] for part in PARTS)
    found = labelled(train, test)
    places = {name: place for place, name in enumerate(found.names)}
    if unknown := [intent for intents in domains.values() for intent in intents if intent not in places]:
        raise UserError(f"class {unknown[0]!r} of {files['domains.json']} has no examples; leave it out, or add some")
    return found, [[places[intent] for intent in intents] for intents in domains.values()]


def mnist_images(folder: str | None = None) -> Labelled:
    """MNIST (LeCun et al. 1998) as `[N, 784]` in [0, 1]."""
    train, test = (_images(*mnist(part, folder), 255) for part in PARTS)
    return Labelled(train, test, tuple(map(str, range(10))))


def digits(seed: int = 0, test: int = 500) -> Labelled:
    """scikit-learn's 1,797 digits as `[N, 64]` in [0, 1]: the set that needs no data. test: examples that judge."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("the digits need scikit-learn: pip install nestling[eval]") from None
    found: Any = load_digits()
    every = _images(found.images, found.target, 16).shuffled(torch.Generator().manual_seed(seed))
    learnt, judged = torch.arange(len(every)).split([len(every) - test, test])
    return Labelled(every.pick(learnt), every.pick(judged), tuple(map(str, range(10))))


def few(data: Labelled, train: int, test: int) -> Labelled:
    """The first examples of each class."""

    def cut(examples: Examples, count: int) -> Examples:
        places = [(examples.labels == label).nonzero()[:count, 0] for label in examples.labels.unique()]
        return examples.pick(torch.cat(places).sort().values)

    return Labelled(cut(data.train, train), cut(data.test, test), data.names)


def pairs(path: Path, text: str, label: str) -> Pairs:
    """Two columns of a CSV file, compressed or not. Raises UserError where one is missing, or there is no row."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = csv.DictReader(io.StringIO(content.decode("utf-8"), newline=""))
    have: Sequence[str] = rows.fieldnames or ()
    if lacking := [name for name in (text, label) if name not in have]:
        raise UserError(
            f"{path} has no column {lacking[0]!r}, only {', '.join(have) or 'none'}; it needs {text} and {label}"
        )
    if not (found := [(row[text], row[label]) for row in rows]):
        raise UserError(f"{path} has no rows; give a file with examples in it")
    return found


def missing(file: str, source: str, folder: str | None) -> Path:
    """Say what to do about a file that is not there."""
    where = f"the folder {folder}" if folder else "a folder that NESTLING_DATA names"
    raise UserError(f"{file} is not here: put {source} (compressed with gzip where the name says so) into {where}")


def _json(path: Path) -> Mapping[str, Any]:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return json.loads(content)


def _images(images: np.ndarray, labels: np.ndarray, most: int) -> Examples:
    pixels = torch.tensor(images.reshape(len(images), -1), dtype=torch.float32) / most
    return Examples(pixels, torch.tensor(labels, dtype=torch.int64))
