"""Reading without an end: any iterable of tokens, in bounded memory, saved on the way and taken up at any token.

A stream is read in blocks that end at multiples of `block` tokens, wherever its chunks end and however often it is stopped:
tokens after the last whole block are kept as they are until theirs is full. So what is computed depends on the tokens alone,
and a reading that was interrupted ends with the same numbers as one that was not, bit for bit.
"""

from __future__ import annotations

import ctypes
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nestling.errors import UserError
from nestling.memory.attention import SoftmaxAttention
from nestling.models import store
from nestling.models.cache import HopeCache
from nestling.models.losses import next_token_losses
from nestling.models.saved import below, cache_from, cache_tree
from nestling.models.tokens import Tokens, chunks
from nestling.ops.state import named_tensors

if TYPE_CHECKING:
    from nestling.models.learning import LearningModel

BLOCK = 8192  # tokens of a call, about: fewer where logits are wide, more where a period is longer
LOGITS = 2**25  # numbers that a call's logits have, about


@dataclass(frozen=True)
class Progress:
    """position: tokens read so far, in all. loss: mean in nats of those read since the progress before."""

    position: int
    loss: float


@dataclass(frozen=True)
class Standing:
    """Where a stream stands.

    cache, logits: after the last whole block; what its last token predicts, `[1, 1, V]`. whole: tokens up to there.
    pending: `[n]` int64, the tokens since, fewer than a block. checksum: CRC-32 of all tokens. loss: of the whole blocks, the sum in nats.
    """

    cache: HopeCache
    logits: Tensor | None
    whole: int
    pending: Tensor
    checksum: int
    loss: float

    @property
    def position(self) -> int:
        """Tokens read."""
        return self.whole + len(self.pending)

    def with_more(self, ids: Tensor) -> Standing:
        """With more tokens pending."""
        return replace(self, pending=torch.cat([self.pending, ids]), checksum=checksum(ids, self.checksum))


class Stream:
    """A reading of tokens by a model, made by `LearningModel.stream`. Iterating reads on, a block at a time.

    What raises leaves it where it was, and iterating once more goes on from there.
    """

    def __init__(
        self,
        model: LearningModel,
        tokens: Tokens,
        checkpoint: str | Path | None = None,
        every: int = 100_000,
        block: int | None = None,
    ) -> None:
        check_bounded(model)
        if every < 1:
            raise UserError(f"every={every} must be at least 1: the tokens between two checkpoints")
        vocabulary = model.config.get_text_config().vocab_size
        self.model, self.every, self.block = model.eval(), every, block_of(model, vocabulary, block)
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self._fingerprint: str | None = None
        nothing = torch.zeros(0, dtype=torch.int64)
        at = Standing(model.new_cache(), None, 0, nothing, 0, 0.0)
        if self.checkpoint is not None and self.checkpoint.exists():
            at = self._load(self.checkpoint)
        # where it stands and what is left of the last chunk, which change together whatever interrupts
        self._at: tuple[Standing, Tensor] = at, nothing
        self._ahead: tuple[Standing | None, Standing] = None, at  # where it stood, and after its pending tokens
        self._chunks, self._to_skip = chunks(tokens, vocabulary), at.position

    @property
    def _standing(self) -> Standing:
        return self._at[0]

    @property
    def position(self) -> int:
        """Tokens read."""
        return self._standing.position

    @property
    def loss(self) -> float:
        """Mean loss of everything read, in nats a token; nan before there were two."""
        return self._now().loss / (self.position - 1) if self.position > 1 else float("nan")

    @property
    def logits(self) -> Tensor | None:
        """`[1, 1, V]`, what the last token read predicts."""
        return self._now().logits

    @property
    def cache(self) -> HopeCache:
        """A cache that has read everything so far, to go on with by itself: `model.generate(question, past_key_values=cache)`.

        It counts no columns, as if nothing had been read: `generate` would make a mask as long as the stream.
        """
        return self._now().cache.copy(columns=0)

    def read(self) -> Stream:
        """Read to the end."""
        for _ in self:
            pass
        return self

    def __iter__(self) -> Iterator[Progress]:
        """Read on; a checkpoint, where there is one, is written about every `every` tokens and at the end."""
        self._skip()
        while self._fill():
            before, room = self._standing, self.block - len(self._standing.pending)
            rest = self._at[1]
            now = before.with_more(rest[:room])
            if len(now.pending) == self.block:
                now = self._read(now)
            self._at = now, rest[room:]
            if not len(now.pending):
                if now.position // self.every > before.whole // self.every:
                    self._keep()
                give_back()
                yield _progress(before, now)
        if self.checkpoint is None or self._standing.pending.numel() or not self.checkpoint.exists():
            self._keep()
            give_back()
        if len(self._standing.pending):
            yield _progress(self._standing, self._now())

    def save(self, path: str | Path) -> None:
        """Write where the stream stands, whole or not at all: a checkpoint, which is also a user's memory for `nestling.Learner`."""
        at, now = self._standing, self._now()
        own: dict[str, Any] = {"cache": cache_tree(at.cache), "logits": at.logits, "pending": at.pending}
        own |= {name: torch.tensor(value) for name, value in (("block", self.block), ("whole", at.whole))}
        own |= {"checksum": torch.tensor(at.checksum), "loss": torch.tensor(at.loss, dtype=torch.float64)}
        tree = cache_tree(now.cache.copy(columns=0)) | {"logits": now.logits, "stream": own}
        store.write(path, named_tensors(tree), {"format": store.FORMAT, "model": self._model()})

    def _keep(self) -> None:
        if self.checkpoint is not None:
            self.save(self.checkpoint)

    def _load(self, path: Path) -> Standing:
        found = store.read(path, self._model())
        own = below(found, "stream")
        if not own:
            raise UserError(
                f"{path} is a memory, and no checkpoint of a stream; give the path of one, or of a new file"
            )
        try:
            block, whole, loss = (own[name].item() for name in ("block", "whole", "loss"))
            cache, pending, check = cache_from(self.model, below(own, "cache")), own["pending"], int(own["checksum"])
        except KeyError as error:
            raise UserError(f"{path} lacks {error}; it was saved by another version, or is damaged") from None
        if block != self.block:
            raise UserError(f"{path} was read in blocks of {block} tokens and not of {self.block}; give block={block}")
        logits = own["logits"].to(self.model.device) if "logits" in own else None
        return Standing(cache, logits, int(whole), pending, check, float(loss))

    def _model(self) -> str:
        """The model's fingerprint, computed once: its weights do not move while a stream is read."""
        self._fingerprint = self._fingerprint or store.fingerprint(self.model)
        return self._fingerprint

    def _fill(self) -> bool:
        """Take the next chunk where none is left; False where there is none."""
        at, rest = self._at
        if not len(rest):
            self._at = at, next(self._chunks, rest)
        return len(self._at[1]) > 0

    def _skip(self) -> None:
        """Pass over what was read before the checkpoint, which has to be the same tokens."""
        if not self._to_skip:
            return
        check, position = 0, self.position
        while self._to_skip:
            if not self._fill():
                raise UserError(
                    f"the stream ends after {position - self._to_skip:,} tokens, and {self.checkpoint} had read {position:,}; give the "
                    "same tokens from their beginning, or another checkpoint"
                )
            at, rest = self._at
            part, self._at = rest[: self._to_skip], (at, rest[self._to_skip :])
            check, self._to_skip = checksum(part, check), self._to_skip - len(part)
        if check != self._standing.checksum:
            self._to_skip = position  # what was passed over is gone: this stream cannot be read
            raise UserError(
                f"the first {position:,} tokens are not those that {self.checkpoint} had read; give the same tokens from their "
                "beginning, or another checkpoint"
            )

    def _now(self) -> Standing:
        """With the pending tokens read, which changes nothing: their block is read anew when it is full."""
        if self._ahead[0] is not self._standing:
            at = self._standing
            self._ahead = at, self._read(at) if len(at.pending) else at
        return self._ahead[1]

    @torch.no_grad()
    def _read(self, at: Standing) -> Standing:
        """After the pending tokens, in one call."""
        cache, ids = at.cache.copy(), at.pending[None].to(self.model.device)
        out = self.model(ids, past_key_values=cache, use_cache=True)
        losses, logits = next_token_losses(out.logits, ids, at.logits)
        whole, none = at.position, at.pending[:0]
        return Standing(cache, logits.clone(), whole, none, at.checksum, at.loss + losses.double().sum().item())


def checksum(ids: Tensor, before: int = 0) -> int:
    """CRC-32 of tokens `[n]` int64 after others; the same however they are cut into chunks."""
    return zlib.crc32(ids.contiguous().numpy().astype("<i8", copy=False).tobytes(), before)


def give_back() -> None:
    """Hand what is free to the system, where the allocator (glibc's) would keep it in pieces that grow for a long time."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def check_bounded(model: LearningModel) -> None:
    """Raise ValueError where the model's state grows with every token."""
    for name, module in model.named_modules():
        if isinstance(module, SoftmaxAttention) and module.window is None:
            raise ValueError(
                f"{name} keeps every token it has read, so that no memory would be enough for a stream; give the configuration a "
                "sliding_window, or another mixer"
            )


def block_of(model: LearningModel, vocabulary: int, wanted: int | None) -> int:
    """Tokens of a call: whole periods of the fastest level, since one that a call leaves unfinished is read twice."""
    if wanted is not None and wanted < 1:
        raise UserError(f"block={wanted} must be at least 1: the tokens of a call")
    period = model.levels[0].period if model.levels else 1
    return wanted or max(2, min(BLOCK, LOGITS // vocabulary) // period) * period


def _progress(before: Standing, now: Standing) -> Progress:
    count = now.position - max(before.whole, 1)
    return Progress(now.position, (now.loss - before.loss) / count if count else float("nan"))
