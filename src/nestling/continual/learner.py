"""A model that keeps learning from what it reads, for each user apart, without labels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nestling.continual.observation import Observation, Standing, observed, standing
from nestling.continual.sleep import Night, consolidate, dream, resetting, rested
from nestling.continual.text import Labels, Text, each, token_ids
from nestling.continual.user import User, check_snapshot_name, from_tensors
from nestling.errors import UserError
from nestling.levels import FastWeights, LevelState, at_rest, end_context, initial
from nestling.models import HopeCache, store
from nestling.models.learning import LearningModel
from nestling.models.losses import next_token_losses
from nestling.models.pretrained import Converted
from nestling.models.reading import calibrate, flush
from nestling.ops.state import named_tensors, nbytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOG = logging.getLogger(__name__)
TOKENS = 2048  # in one call of the model, about: it bounds the logits, and what is learnt does not depend on it


class Learner:
    """Reads, learns, answers, remembers.

        learner = nestling.Learner(model, tokenizer)
        learner.observe("What I read today ...", user="alice")
        learner.generate("In short, ", user="alice", max_new_tokens=100)
        learner.save("alice.safetensors", user="alice")
        learner.sleep("alice")  # the context ends, and what was learnt in it stays

        before = learner.snapshot("alice")  # later: learner.rollback("alice", before)
        learner.fork("alice", "bob")  # two users from here on
        learner.freeze(1, "alice")  # level 1 stands still; learner.unfreeze(1, "alice") lets it go on
        learner.reset(0, "alice")  # what level 0 learnt is gone

    The model needs levels and `learning="context"`. Its own weights never move: what a user's reading taught is in that
    user's memory (`nestling.levels.FastWeights`), which can be saved, loaded and forgotten. The text of one user is one
    stream, whatever the calls that deliver it, until `end_context`. Every call does all of what it says, or raises and leaves
    the user as before; levels are numbered from 0, the fastest.

    Raises:
        ValueError: the model cannot learn while reading; the message says which setting to change.
    """

    def __init__(self, model: LearningModel, tokenizer: PreTrainedTokenizerBase) -> None:
        if not model.levels or model.config.learning != "context":
            given = f"levels={len(model.levels)}, learning={model.config.learning!r}"
            raise ValueError(f"the model has {given}; a learner needs a HopeConfig with levels and learning='context'")
        self.model, self.tokenizer = model.eval(), tokenizer
        self._users: dict[str, User] = {}
        self._start: FastWeights | None = None

    def calibrate(self, text: Text) -> int:
        """Show the levels that retain (`RetainSeen`, `RetainPredictions`) a sample of what the model already knows.

        Nothing is learnt from it; new users begin with what it shows as seen. Returns the number of tokens read.
        """
        ids = token_ids(text, self.tokenizer)
        self._start = calibrate(self.model, ids[None].to(self.model.device), self._start)
        return len(ids)

    @torch.no_grad()
    def observe(self, text: Text | Iterable[Text], user: str = "default", labels: Labels = None) -> Observation:
        """Read and learn: a string, a file (a `pathlib.Path`, UTF-8), token ids `[L]`, or an iterable of any of these.

        The items of an iterable follow each other in the stream, none of them kept. Where one of them cannot be read
        nothing of the others has been learnt. What reading was like is also logged (`nestling.continual.learner`, INFO).

        labels: what to learn, `[L]` int64 aligned with the text's tokens: what should have been predicted in each token's place
            from the tokens before it, -100 where nothing is to be learnt. Or one number for all of the text: -100 reads it and
            learns nothing. None: the tokens themselves. The losses that are returned are those of the tokens, always.

        Raises:
            UserError: an empty text, a file that is missing or no UTF-8 text, ids that are none, or labels of another length.
            ValueError: labels that are not in the vocabulary.
        """
        state, losses = self._user(user, enter=False).copy(), []
        period = self.model.levels[0].period
        learns = state.cache.learning == "context"  # with every rate 0 a converted model's cache does not
        for pair in each(text, labels, self.tokenizer):
            both = torch.stack(pair)[:, None].to(self.model.device)
            for part, lessons in both.split(max(2, TOKENS // period) * period, dim=2):
                taught = {"lessons": lessons} if learns else {}
                out = self.model(part, past_key_values=state.cache, use_cache=True, **taught)
                found, state.logits = next_token_losses(out.logits, part, state.logits)
                losses.append(found)
        self._users[user] = state
        observation = observed(losses, state.cache.memory or self._at_rest())
        LOG.info("observed for %r: %s", user, observation.record())
        return observation

    @torch.no_grad()
    def evaluate(self, text: Text, user: str = "default", piece: int = 1024, recall: bool = True) -> Tensor:
        """Losses `[L - 1]` in nats of a text read apart, with what the user's memory holds; nothing is learnt.

        recall: whether a model that has one may recall what came before in this text.
        """
        ids = token_ids(text, self.tokenizer)[None].to(self.model.device)
        cache, logits, found = HopeCache("off", self.memory(user), recalls=recall), None, []
        for part in ids.split(piece, dim=1):
            out = self.model(part, past_key_values=cache, use_cache=True)
            losses, logits = next_token_losses(out.logits, part, logits)
            found.append(losses)
        return torch.cat(found)

    @torch.no_grad()
    def generate(self, prompt: str, user: str = "default", apart: bool = True, **options: Any) -> str:
        """Continue a prompt with what the user's memory holds; `options` are those of transformers' `generate`.

        apart: whether the prompt is a context of its own. False goes on from where the user's stream stands, with what is attended to
            and recalled there.

        Nothing is kept of the prompt and of the answer: `observe` learns.
        """
        ids = token_ids(prompt, self.tokenizer)[None].to(self.model.device)
        going_on = not apart and user in self._users
        cache = self._users[user].cache.copy(columns=0) if going_on else HopeCache("off", self.memory(user))
        options = {"max_new_tokens": 100, "do_sample": False, **options}
        mask = torch.ones_like(ids)
        out = self.model.generate(ids, attention_mask=mask, past_key_values=cache, **options)
        text = self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert isinstance(text, str)  # a list of them only for a batch
        return text

    @torch.no_grad()
    def end_context(self, user: str = "default") -> None:
        """The context is over: learn its unfinished segment, and let the levels that reset go back to their start."""
        state = self._user(user).copy()
        flush(self.model, state.cache)
        if state.cache.memory is not None:
            state.cache.memory = end_context(self.model.levels, state.cache.memory)
        state.cache.reset()
        state.logits = None
        self._users[user] = state

    @torch.no_grad()
    def sleep(
        self,
        user: str = "default",
        new: Text | Iterable[Text] | None = None,
        old: Text | Iterable[Text] | None = None,
        passes: int = 1,
        begin: Text | None = None,
        tokens: int = 8192,
        seed: int = 0,
    ) -> Night:
        """Teach the levels that stay what those that are about to reset hold, and end the context (`nestling.continual.sleep`).

        new: texts like those that were read; the levels that stay learn to predict them as all levels do now. old: texts like
            those that were known before; they learn to go on predicting them as they would have without the others. Each text, as of
            `observe`, is a context of its own. None: the model writes them itself, `tokens` of each kind, each after `begin`
            (None: its token for the beginning of a text).
        passes: over all texts. seed: of what the model writes.

        Raises:
            UserError: an empty text, fewer than one pass or token, a user who has read nothing, or a model that needs `begin`.
            ValueError: no level resets when a context ends, or none stays.
        """
        if passes < 1 or tokens < 1:
            raise UserError(f"passes={passes} and tokens={tokens} must be at least 1")
        state = self._user(user, enter=False).copy()
        flush(self.model, state.cache)
        memory = state.cache.memory
        if memory is None:
            raise UserError(f"{user!r} has read nothing yet, so that there is nothing to sleep over")
        fast = resetting(self.model.levels, memory)

        def texts(given: Text | Iterable[Text] | None, awake: FastWeights) -> list[Tensor]:
            if given is None:
                return dream(self.model, awake, self._beginning(begin), tokens, seed)
            return [ids for ids, _ in each(given, None, self.tokenizer)]

        both = texts(new, memory), texts(old, rested(self.model.levels, memory, fast))
        memory, night = consolidate(self.model, memory, fast, *both, passes=passes)
        state.cache.memory = memory
        self._users[user] = state
        self.end_context(user)
        return night

    def snapshot(self, user: str = "default", name: str | None = None) -> str:
        """Keep the user's memory, and where their stream stands, under a name; without one it is the next free number.

        Snapshots are saved and loaded with the user, and rolling back drops none of them.
        """
        state = self._user(user)
        free = (str(n) for n in range(1, len(state.snapshots) + 2) if str(n) not in state.snapshots)
        name = check_snapshot_name(next(free) if name is None else name, state.snapshots)
        state.snapshots[name] = User(state.cache.copy(), state.logits)
        return name

    def snapshots(self, user: str = "default") -> list[str]:
        """Names of the user's snapshots."""
        return sorted(self._users[user].snapshots) if user in self._users else []

    def rollback(self, user: str, snapshot: str) -> None:
        """Back to a snapshot: what was read since then has not been learnt. Levels are frozen as they were then."""
        if snapshot not in self.snapshots(user):
            known = ", ".join(map(repr, self.snapshots(user))) or "none"
            raise UserError(f"{user!r} has no snapshot {snapshot!r}; there are: {known}")
        state = self._users[user]
        self._users[user] = replace(state.snapshots[snapshot].copy(), snapshots=state.snapshots)

    def fork(self, user: str, new_user: str) -> None:
        """A new user who knows what `user` knows, snapshots included; from here on each learns by themselves."""
        if user not in self._users:
            raise UserError(f"there is no user {user!r}; there are: {', '.join(map(repr, self.users())) or 'none'}")
        if new_user in self._users:
            raise UserError(f"{new_user!r} has a memory already; forget it first, or give another name")
        self._users[new_user] = self._users[user].copy()

    def freeze(self, level: int, user: str = "default") -> None:
        """The level stands still for this user: it is read with, gathers nothing, and no end of a period or context resets it."""
        self._change(level, user, lambda state: replace(state, frozen=torch.ones_like(state.frozen)))

    def unfreeze(self, level: int, user: str = "default") -> None:
        """The level goes on where it stood."""
        self._change(level, user, lambda state: replace(state, frozen=torch.zeros_like(state.frozen)))

    def reset(self, level: int, user: str = "default") -> None:
        """The level goes back to its initial state. Its counters stay, and what its rule retains does."""
        self._change(level, user, lambda state: at_rest(self.model.levels[level], state))

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
        return self.model.merge(self.memory(user))

    def standing(self, user: str = "default") -> list[Standing]:
        """Where each level stands, fast to slow: its updates, their sizes, whether it is frozen."""
        pairs = zip(self.model.levels, self.memory(user) or self._at_rest(), strict=True)
        return [standing(level, state) for level, state in pairs]

    def memory(self, user: str = "default") -> FastWeights | None:
        """What a user's levels hold, for a cache of one's own, `model.new_cache(learner.memory("alice"))`; None before anything.
        Looking makes no user.
        """
        return self._users[user].cache.memory if user in self._users else self._start

    def memory_bytes(self, user: str = "default") -> int:
        """Bytes of what the levels hold for a user: differences, gathered gradients, what was seen, counters."""
        return nbytes(self.memory(user))

    def users(self) -> list[str]:
        """Who has a memory here."""
        return sorted(self._users)

    def save(self, path: str | Path, user: str = "default") -> None:
        """Write the user's memory, where their stream stands, and their snapshots to one file; whole or not at all."""
        metadata = {"format": store.FORMAT, "model": store.fingerprint(self.model)}
        store.write(path, named_tensors(self._user(user).tree()), metadata)

    def load(self, path: str | Path, user: str = "default") -> None:
        """Take up a saved memory: the stream goes on as if nothing had happened. On an error nothing changes."""
        tensors = store.read(path, store.fingerprint(self.model))
        try:
            self._users[user] = from_tensors(self.model, tensors)
        except KeyError as error:
            raise UserError(f"{path} lacks {error}; it was saved by another version, or is damaged") from None

    def _change(self, level: int, user: str, change: Callable[[LevelState], LevelState]) -> None:
        """Put another state of one level in the place of a user's."""
        if level not in range(len(self.model.levels)):
            raise UserError(f"there is no level {level}; levels are 0, the fastest, to {len(self.model.levels) - 1}")
        cache = self._user(user).cache
        memory = list(cache.memory or self._at_rest())
        memory[level] = change(memory[level])
        cache.memory = tuple(memory)

    def _beginning(self, text: Text | None) -> Tensor:
        """The tokens of a text, or the model's token for the beginning of one."""
        if text is not None:
            return token_ids(text, self.tokenizer)
        begin = self.model.generation_config.bos_token_id if self.model.generation_config else None
        if begin is None:
            raise UserError(
                "the model has no bos_token_id to begin a text with; give begin, as '\\n', or the texts to sleep over, new and old"
            )
        return torch.tensor([begin])

    def _at_rest(self) -> FastWeights:
        """Every level at zero difference."""
        return initial(self.model.levels, self.model.moves, self.model.learnable_weights(), batch=1)

    def _user(self, user: str, enter: bool = True) -> User:
        """The state of a user, a new one if there is none; `enter` says whether that one is kept."""
        found = self._users.get(user) or User(self.model.new_cache(self._start))
        if enter:
            self._users[user] = found
        return found
