# pyright: reportMissingImports=false
"""lm-eval's harness with a memory: its tasks, unchanged, read by a model that may keep what it learns (EleutherAI, lm-evaluation-harness).

    python -m nestling.evals.harness run --model nestling --model_args pretrained=FOLDER,reset=doc --tasks lambada_openai

is lm-eval's own command with the model "nestling" registered; `nestling eval lm-eval` is a shorter one. What carries over:

    reset=doc     nothing: every request is read from the state of the checkpoint, as by a plain forward pass
    reset=task    within a task a document is learnt from when it has been scored, and the next one is read with that memory
    reset=never   as "task", over all tasks of the run, in their order

What is learnt of a document is its text (a perplexity), or else the context of its first request: never an answer, not even
where the harness knows it. Then the context ends, as `nestling.Learner.end_context` does it: a memory carries over, attention does
not. Where memory is carried documents are read one after the other, and a batch is the requests of one document.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, cast

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, StoppingCriteriaList

from nestling.continual import Learner
from nestling.errors import UserError
from nestling.models import HopeCache, LearningModel

RESETS = ("doc", "task", "never")
PIECE = 1024  # tokens of a call: it bounds the logits, and changes no score
USER = "lm-eval"
Scored = tuple[Tensor, Tensor]


@register_model("nestling")
class NestlingLM(TemplateLM):
    """A saved model, Hope or converted, for lm-eval.

    Args:
        pretrained: folder that the model and its tokenizer were saved in; or a model, with `tokenizer`.
        reset: "doc", "task" or "never": when what was learnt is forgotten.
        batch_size: requests read together; where memory is carried, of one document.
        max_gen_toks: tokens of an answer whose task does not say how many.
        device: where to read.

    Raises:
        UserError: a folder without a model that learns, a policy or batch size that does not exist, or memory to be carried by
            a model that has none.
    """

    def __init__(
        self,
        pretrained: str | LearningModel,
        reset: str = "doc",
        batch_size: int | str = 1,
        max_gen_toks: int = 256,
        device: str | None = None,
        tokenizer: Any = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if reset not in RESETS:
            raise UserError(f"reset={reset!r} is unknown; choose {', '.join(RESETS)}")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"batch_size={batch_size!r} must be a number from 1 on")
        if isinstance(pretrained, str):
            pretrained, tokenizer = _saved(pretrained)
        self.model, self.tokenizer = pretrained.to(device or "cpu").eval(), tokenizer  # pyright: ignore[reportArgumentType]
        self.reset, self.batch_size, self.max_gen_toks = reset, int(batch_size), max_gen_toks
        self._device = self.model.device
        self.learner: Learner | None = None
        if reset != "doc":
            try:
                self.learner = Learner(self.model, self.tokenizer)
            except ValueError as error:
                raise UserError(f"reset={reset!r} carries a memory, and {error}; or use reset='doc'") from None
        self._task: str | None = None

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        found = self.tokenizer.eos_token_id
        if found is None:
            raise UserError(
                "the tokenizer has no end-of-text token, which stands before a text that has no context; set one"
            )
        return found

    @property
    def prefix_token_id(self) -> int:
        """What the first token of a text is predicted from."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else begin

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer, for lm-eval's caches of requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids, without special tokens unless they are asked for."""
        return self.tokenizer(string, add_special_tokens=bool(add_special_tokens))["input_ids"]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the tokenizer's template writes it."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of every continuation after its context, and whether each of its tokens is the likeliest."""
        found: list[tuple[float, bool]] = []
        for group in self._groups(requests):
            found += super().loglikelihood(group, disable_tqdm=True)
            self._learn(group[0].args[0])
        return found

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = []
        for batch in _batches(requests, self.batch_size):
            scored = self._score([context + continuation for _, context, continuation in batch])
            for (_, _, continuation), (log_likelihood, likeliest) in zip(batch, scored, strict=True):
                count = len(continuation)
                found.append((log_likelihood[-count:].double().sum().item(), bool(likeliest[-count:].all())))
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of every text, all of it read as one stream whatever its length."""
        found: list[float] = []
        for group in self._groups(requests):
            for batch in _batches(group, self.batch_size):
                rows = [[self.prefix_token_id, *self.tok_encode(request.args[0])] for request in batch]
                found += [log_likelihood.double().sum().item() for log_likelihood, _ in self._score(rows)]
            self._learn(group[0].args[0])
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """An answer to every context, one after the other, up to the first of its stop sequences."""
        found: list[str] = []
        for group in self._groups(requests):
            found += [self._answer(*request.args) for request in group]
            self._learn(group[0].args[0])
        return found

    @torch.no_grad()
    def _answer(self, context: str, options: dict[str, Any]) -> str:
        given: dict[str, Any] = dict(normalize_gen_kwargs(options, self.max_gen_toks))
        until = handle_stop_sequences(given.pop("until", None), eos=None)
        length = given.pop("max_gen_toks")
        if not given.get("do_sample"):
            given = {**given, "do_sample": False, "temperature": None}
        ids = torch.tensor([self.tok_encode(context) or [self.prefix_token_id]], device=self.device)
        stops = StoppingCriteriaList([_Until(self.tokenizer, until, ids.shape[1])])
        generated = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), past_key_values=self._cache(), max_new_tokens=length,
            stopping_criteria=stops, **given,
        )  # fmt: skip
        text = self.tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True)
        return postprocess_generated_text(text, until, None)

    def _groups(self, requests: Sequence[Instance]) -> Iterable[list[Instance]]:
        """Requests that are read with the same memory: those of a document; where none is carried, all of them."""
        if self.learner is None:
            yield list(requests)
            return
        for (task, _), group in groupby(requests, key=lambda request: (request.task_name, request.doc_id)):
            if self.reset == "task" and task != self._task:
                self.learner.forget(USER)
            self._task = task
            yield list(group)
        self._task = None if self.reset == "task" else self._task

    def _learn(self, text: str) -> None:
        """A document has been scored: where memory is carried, read it and learn."""
        ids = self.tok_encode(text) if self.learner is not None else []
        if self.learner is not None and ids:
            self.learner.observe(torch.tensor(ids), user=USER)
            self.learner.end_context(USER)

    def _cache(self) -> HopeCache:
        """Nothing read, with what the memory holds."""
        return self.model.new_cache(None if self.learner is None else self.learner.memory(USER))

    @torch.no_grad()
    def _score(self, rows: list[list[int]]) -> list[Scored]:
        """Of every row of token ids the log-likelihood of each but the first, `[n - 1]`, and whether it is the likeliest."""
        lengths = torch.tensor([len(row) - 1 for row in rows])
        ids = torch.zeros(len(rows), int(lengths.max()) + 1, dtype=torch.int64)
        for row, given in zip(ids, rows, strict=True):
            row[: len(given)] = torch.tensor(given)
        ids, mask = ids.to(self.device), (torch.arange(ids.shape[1] - 1) < lengths[:, None]).long().to(self.device)
        cache, parts = self._cache(), []
        pieces = zip(*(tokens.split(PIECE, dim=1) for tokens in (ids[:, :-1], ids[:, 1:], mask)), strict=True)
        for read, following, seen in pieces:
            out = self.model(read, attention_mask=seen, past_key_values=cache, use_cache=True)
            logits = out.logits.to(torch.promote_types(out.logits.dtype, torch.float32))
            chosen = logits.log_softmax(-1).gather(-1, following[..., None])[..., 0]
            parts.append((chosen.cpu(), (logits.argmax(-1) == following).cpu()))
        scores, likeliest = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        return [(s[:n], like[:n]) for s, like, n in zip(scores, likeliest, lengths.tolist(), strict=True)]


class _Until(StoppingCriteria):
    """Stop where one of the strings has been written after the first `start` tokens."""

    def __init__(self, tokenizer: Any, until: list[str], start: int) -> None:
        self.tokenizer, self.until, self.start = tokenizer, [term for term in until if term], start

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        text = self.tokenizer.decode(input_ids[0, self.start :], skip_special_tokens=True)
        return torch.tensor([any(term in text for term in self.until)], device=input_ids.device)


def _batches(requests: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (requests[start : start + size] for start in range(0, len(requests), size))


def _saved(folder: str) -> tuple[LearningModel, Any]:
    """A model that learns, and its tokenizer."""
    try:
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} cannot be loaded ({str(error).splitlines()[0]}); give a folder that a model and its tokenizer were saved in"
        ) from None
    if not isinstance(model, LearningModel):
        raise UserError(
            f"{folder} holds a {type(model).__name__}; convert it (`nestling convert`), or use lm-eval's model hf"
        )
    return cast(LearningModel, model), tokenizer


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
