"""A small vision Transformer on handwritten digits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestling.errors import UserError
from nestling.evals.optimizers.problem import Make, Outcome, Recorder
from nestling.train.corpora import mnist


class VisionTransformer(nn.Module):
    """ViT (Dosovitskiy et al., arXiv 2010.11929) with mean pooling: `[B, S, S] -> [B, 10]`."""

    def __init__(self, side: int, patch: int, width: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(patch * patch, width)
        self.position = nn.Parameter(0.02 * torch.randn((side // patch) ** 2, width))
        layers = [
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, F.gelu, batch_first=True, norm_first=True)
            for _ in range(depth)
        ]
        self.blocks = nn.Sequential(*layers)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        p = self.patch
        patches = images.unfold(1, p, p).unfold(2, p, p).flatten(3).flatten(1, 2)
        return self.head(self.norm(self.blocks(self.embed(patches) + self.position)).mean(1))


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1,797 digits of 8 x 8; 1,000 to train on, 300 to tune by, the rest to judge by."""

    epochs: int = 12
    batch: int = 50
    name: str = "vit-digits"
    measure: str = "test error, %"

    def run(self, make: Make, seed: int, final: bool) -> Outcome:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise UserError(
                "vit-digits needs scikit-learn: pip install scikit-learn, or leave the problem out"
            ) from None
        digits: Any = load_digits()
        order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
        images = torch.tensor(digits.images, dtype=torch.float32)[order] / 8 - 1
        labels = torch.tensor(digits.target)[order]
        judged = slice(1300, None) if final else slice(1000, 1300)
        test = images[judged], labels[judged]
        return _train(
            VisionTransformer, (8, 2), make, seed, (images[:1000], labels[:1000]), test, self.epochs, self.batch
        )


@dataclass(frozen=True)
class Mnist:
    """MNIST: 10,000 images to train on, 5,000 more to tune by, the test set to judge by."""

    epochs: int = 1
    batch: int = 50
    train: int = 10_000
    name: str = "vit-mnist"
    measure: str = "test error, %"

    def run(self, make: Make, seed: int, final: bool) -> Outcome:
        images, labels = _tensors(*mnist("train"))
        judged = slice(self.train, self.train + 5000)
        test = _tensors(*mnist("test")) if final else (images[judged], labels[judged])
        train = images[: self.train], labels[: self.train]
        return _train(VisionTransformer, (28, 7), make, seed, train, test, self.epochs, self.batch)


def _tensors(images, labels) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    return torch.tensor(images).float() / 127.5 - 1, torch.tensor(labels).long()


def _train(
    model_class: type[nn.Module],
    shape: tuple[int, int],
    make: Make,
    seed: int,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    epochs: int,
    batch: int,
) -> Outcome:
    """Epochs over `train` with a linearly falling rate; the score is the error on `test` in per cent."""
    torch.manual_seed(seed)
    model = model_class(*shape)
    steps = epochs * (len(train[1]) // batch)
    optimizer, record = make(model), Recorder(steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(1 - step / steps, 0.02))
    for images, labels in _batches(*train, epochs, batch, seed):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if not record(loss.item()):
            return record.done(float("nan"), optimizer)
    model.eval()
    with torch.no_grad():
        wrong = torch.cat([model(part).argmax(1) for part in test[0].split(1000)]) != test[1]
    return record.done(100 * wrong.float().mean().item(), optimizer)


def _batches(images: Tensor, labels: Tensor, epochs: int, batch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for part in torch.randperm(len(labels), generator=generator).split(batch):
            if len(part) == batch:
                yield images[part], labels[part]
