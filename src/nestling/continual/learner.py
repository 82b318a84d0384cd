"""A model that keeps learning from what it reads, for each user apart, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nestling.continual import store
from nestling.errors import UserError
from nestling.levels import FastWeights, end_context, initial
from nestling.models import HopeCache
from nestling.models.cache import Session
from nestling.models.learning import LearningModel
from nestling.models.pretrained import Converted
from nestling.models.reading import calibrate, flush, start_session
from nestling.ops.state import named_tensors, with_tensors
from nestling.train.data import encode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Observation:
    """What reading a text was like.

    losses: `[n]` nats, one for each token that had a token before it; each made before the token was learnt from.
    surprise: for each level, fast to slow, the size of its last update (0.0 when it has made none).
    updates: for each level, how many updates it has made in all. refused: how many were not finite and not made.
    """

    losses: Tensor
    surprise: list[float]
    updates: list[int]
    refused: int

    @property
    def tokens(self) -> int:
        """How many tokens were predicted."""
        return len(self.losses)

    @property
    def loss(self) -> float:
        """Mean loss in nats a token (nan when nothing was predicted)."""
        return self.losses.mean().item()


@dataclass
class _User:
    cache: HopeCache
    logits: Tensor | None = None  # [1, 1, V], what the last token read predicts


class Learner:
    """Reads, learns, answers, remembers.

        learner = nestling.Learner(model, tokenizer)
        learner.observe("What I read today ...", user="alice")
        learner.generate("In short, ", user="alice", max_new_tokens=100)
        learner.save("alice.safetensors", user="alice")

    The model needs levels and `learning="context"`. Its own weights never move: what a user's reading taught is in that
    user's memory (`nestling.levels.FastWeights`), which can be saved, loaded and forgotten. The text of one user is one
    stream, whatever the calls that deliver it, until `end_context`.

    Raises:
        ValueError: the model cannot learn while reading; the message says which setting to change.
    """

    def __init__(self, model: LearningModel, tokenizer: PreTrainedTokenizerBase) -> None:
        if not model.levels or model.config.learning != "context":
            given = f"levels={len(model.levels)}, learning={model.config.learning!r}"
            raise ValueError(f"the model has {given}; a learner needs a HopeConfig with levels and learning='context'")
        self.model, self.tokenizer = model.eval(), tokenizer
        self._users: dict[str, _User] = {}
        self._start: FastWeights | None = None

    def calibrate(self, text: str | Tensor) -> int:
        """Show the levels that retain what was seen (`RetainSeen`) a sample of what the model already knows.

        Nothing is learnt from it; new users begin with its inputs as seen. Returns the number of tokens read.
        """
        ids = self._ids(text)
        self._start = calibrate(self.model, ids[None].to(self.model.device), self._start)
        return len(ids)

    @torch.no_grad()
    def observe(self, text: str | Tensor, user: str = "default") -> Observation:
        """Read a text and learn from it. `text` may be token ids `[L]`. An empty text raises a UserError."""
        ids = self._ids(text)[None].to(self.model.device)
        state = self._user(user)
        out = self.model(ids, past_key_values=state.cache, use_cache=True)
        losses, state.logits = _losses(out.logits, ids, state.logits)
        return _observed(losses, state.cache.memory or self._at_rest())

    @torch.no_grad()
    def evaluate(self, text: str | Tensor, user: str = "default", piece: int = 1024) -> Tensor:
        """Losses `[L - 1]` in nats of a text read apart, with what the user's memory holds; nothing is learnt."""
        ids = self._ids(text)[None].to(self.model.device)
        cache, logits, found = HopeCache("off", self._memory(user)), None, []
        for part in ids.split(piece, dim=1):
            out = self.model(part, past_key_values=cache, use_cache=True)
            losses, logits = _losses(out.logits, part, logits)
            found.append(losses)
        return torch.cat(found)

    @torch.no_grad()
    def generate(self, prompt: str, user: str = "default", **options: Any) -> str:
        """Continue a prompt with what the user's memory holds; `options` are those of transformers' `generate`.

        The prompt is a context of its own, and nothing is learnt from it or from the answer: `observe` learns.
        """
        ids = self._ids(prompt)[None].to(self.model.device)
        cache = HopeCache("off", self._memory(user))
        options = {"max_new_tokens": 100, "do_sample": False, **options}
        mask = torch.ones_like(ids)
        out = self.model.generate(ids, attention_mask=mask, past_key_values=cache, **options)
        text = self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert isinstance(text, str)  # a list of them only for a batch
        return text

    def end_context(self, user: str = "default") -> None:
        """The context is over: learn its unfinished segment, and let the levels that reset go back to their start."""
        state = self._user(user)
        flush(self.model, state.cache)
        if state.cache.memory is not None:
            state.cache.memory = end_context(self.model.levels, state.cache.memory)
        state.cache.reset()
        state.logits = None

    def forget(self, user: str = "default") -> None:
        """Drop everything that was learnt for this user."""
        self._users.pop(user, None)

    def merge(self, user: str = "default") -> PreTrainedModel:
        """A plain model of the original's class with what this user's levels hold folded in: `ConvertedForCausalLM.merge`.

        Raises:
            ValueError: the model was not converted from another, or a chain has learnt.
        """
        if not isinstance(self.model, Converted):
            raise ValueError(f"{type(self.model).__name__} is no converted model; there is no original to fold into")
        return self.model.merge(self._memory(user))

    def users(self) -> list[str]:
        """Who has a memory here."""
        return sorted(self._users)

    def save(self, path: str | Path, user: str = "default") -> None:
        """Write the user's memory, and where its stream stands, to one file; whole or not at all."""
        state = self._user(user)
        tree = self._tree(state)
        columns = state.cache.get_seq_length()
        metadata = {"format": store.FORMAT, "model": store.fingerprint(self.model), "columns": str(columns)}
        store.write(path, named_tensors(tree), metadata)

    def load(self, path: str | Path, user: str = "default") -> None:
        """Take up a saved memory: the stream goes on as if nothing had happened. On an error nothing changes."""
        tensors, metadata = store.read(path, store.fingerprint(self.model))
        template = _User(self.model.new_cache())
        heads = {name.split("/")[0] for name in tensors}
        if "memory" in heads:
            template.cache.memory = self._at_rest()
        if "session" in heads:
            template.cache.session = start_session(self.model, batch=1)
        if "logits" in heads:
            template.logits = torch.zeros(1, 1, self.model.config.get_text_config().vocab_size)
        try:
            tree = with_tensors(self._tree(template), tensors)
        except KeyError as error:
            raise UserError(f"{path} lacks {error}; it was saved by another version, or is damaged") from None
        session, memory = tree["session"], tree["memory"]
        assert session is None or isinstance(session, Session)
        template.cache.session, template.cache.memory, template.logits = session, memory, tree["logits"]
        template.cache.advance(int(metadata.get("columns", 0)))
        self._users[user] = template

    def _at_rest(self) -> FastWeights:
        """Every level at zero difference."""
        return initial(self.model.levels, self.model.moves, self.model.learnable_weights(), batch=1)

    @staticmethod
    def _tree(state: _User) -> dict[str, Any]:
        return {"memory": state.cache.memory, "session": state.cache.session, "logits": state.logits}

    def _ids(self, text: str | Tensor | Sequence[int]) -> Tensor:
        if isinstance(text, str):
            return encode(self.tokenizer, text)
        ids = torch.as_tensor(text)
        if ids.dim() != 1 or ids.dtype != torch.int64 or len(ids) == 0:
            raise UserError(f"token ids are {tuple(ids.shape)} {ids.dtype}; expected [L] torch.int64 with L >= 1")
        return ids

    def _memory(self, user: str) -> FastWeights | None:
        """What a user's levels hold; looking makes no user."""
        return self._users[user].cache.memory if user in self._users else self._start

    def _user(self, user: str) -> _User:
        if user not in self._users:
            self._users[user] = _User(self.model.new_cache(self._start))
        return self._users[user]


def _observed(losses: Tensor, levels: FastWeights) -> Observation:
    return Observation(
        losses,
        surprise=[level.norm[0].item() for level in levels],
        updates=[int(level.updates[0]) for level in levels],
        refused=sum(int(level.refused[0]) for level in levels),
    )


def _losses(logits: Tensor, ids: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """Losses of the tokens `ids [1, L]`, the first one predicted by the logits `before` it, and the last logits."""
    predictions = logits if before is None else torch.cat([before.to(logits), logits], dim=1)
    targets = ids[0, 1:] if before is None else ids[0]
    exact = torch.promote_types(logits.dtype, torch.float32)
    losses = F.cross_entropy(predictions[0, : len(targets)].to(exact), targets, reduction="none")
    return losses.cpu(), logits[:, -1:]
