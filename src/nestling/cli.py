"""The command line: thin. Every command imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from nestling.errors import UserError
from nestling.quiet import quiet
from nestling.settings import LevelSettings, ModelSettings, TrainConfig, two_levels

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from nestling.models import LearningModel

EXAMPLES = {
    "learn": "nestling learn --model model --text '[\"notes.txt\"]' --memory me.safetensors",
    "generate": "nestling generate --model model --memory me.safetensors --prompt 'In short, '",
    "convert": "nestling convert --model llama --out model --assign blocks "
    '--levels \'[{"period": 256, "lr": 0.1, "reset": "context", "clip": 0.5}]\'',
    "merge": "nestling merge --model model --memory me.safetensors --out plain",
}
FLAGS = {
    "quick": "much smaller: a minute or a few",
    "full": "much larger; it can be interrupted and goes on",
    "end_context": "end the context after reading, so that levels which reset do",
}


def train(
    text: list[str],
    out: str,
    model: ModelSettings = ModelSettings(),  # noqa: B008 - frozen
    training: TrainConfig = TrainConfig(),  # noqa: B008
) -> None:
    """Train a byte-level model on text files and save it.

    Args:
        text: UTF-8 text files, read in this order.
        out: folder for the model and its tokenizer.
        model: the model.
        training: how to train.
    """
    quiet()
    import torch

    from nestling.models import HopeConfig, HopeForCausalLM
    from nestling.train import byte_tokenizer, encode, read_text
    from nestling.train import train as run

    if Path(out).exists() and not Path(out).is_dir():
        raise UserError(f"{out} is a file; give a folder for the model")
    tokenizer = byte_tokenizer()
    ids = encode(tokenizer, "\n\n".join(read_text(path) for path in text))
    torch.manual_seed(training.seed)
    config = HopeConfig(**model.to_dict())
    network = HopeForCausalLM(config)
    # what the levels learn while reading is not part of pre-training: the weights under them are
    network.config.learning = "off"
    with _progress("training", training.steps) as bar:
        history = run(
            network, ids, training, lambda p: bar(1, f"loss {p.loss:.3f} nats, {p.tokens_per_s:,.0f} tokens/s")
        )
    network.config.learning = "context" if network.levels else "off"
    network.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"trained on {history[-1].tokens:,} tokens, last loss {history[-1].loss:.3f} nats a byte; saved in {out}")


def learn(model: str, text: list[str], memory: str, calibrate: str | None = None, end_context: bool = False) -> None:
    """Read text files, learn from them, and save the memory. An existing memory is taken up and goes on.

    Args:
        model: folder of a model with levels.
        text: UTF-8 text files, read in this order as one stream.
        memory: the memory file; replaced only when everything was read.
        calibrate: a text of the kind that the model was trained on, to be protected from what is learnt.
        end_context: end the context after reading, so that levels which reset do.
    """
    quiet()
    from nestling.continual import Learner
    from nestling.train import encode, read_text

    texts = [read_text(path) for path in text]
    network, tokenizer = _load_learning(model)
    learner = Learner(network, tokenizer)
    if Path(memory).exists():
        learner.load(memory)
    elif calibrate:
        learner.calibrate(read_text(calibrate))
    period = network.levels[0].period
    pieces = encode(tokenizer, "\n\n".join(texts)).split(period)
    seen, total = 0, 0.0
    with _progress("learning", len(pieces)) as bar:
        for piece in pieces:
            observation = learner.observe(piece)
            seen, total = seen + observation.tokens, total + observation.losses.sum().item()
            sizes = ", ".join(f"{size:.3g}" for size in observation.surprise)
            bar(1, f"{total / max(seen, 1) / 0.6931:.3f} bits a byte; last updates {sizes}")
    if end_context:
        learner.end_context()
    learner.save(memory)
    print(f"read {seen:,} tokens at {total / max(seen, 1):.3f} nats each; memory saved in {memory}")


def convert(
    model: str,
    out: str,
    levels: list[LevelSettings] | None = None,
    assign: str | list[int] | list[str] = "mlp",
    form: str = "superposed",
    window: int | None = None,
) -> None:
    """Make a pretrained transformers model one that keeps learning, and save it.

    Args:
        model: folder of a model of transformers, with its tokenizer.
        out: folder for the converted model; it must not exist yet, or be empty.
        levels: from fast to slow; none is a fast level that resets over a slow one that protects what was seen.
        assign: what learns: mlp, last_quarter, blocks, all, a list of block numbers, or of names of linear maps.
        form: superposed, chain or dealt; see nestling.convert.
        window: tokens after which attention begins anew; none is all positions that the model has.
    """
    quiet()
    from nestling import models

    _empty(out)
    network, tokenizer = _load(model)
    given = [level.to_dict() for level in (two_levels() if levels is None else levels)]
    converted = models.convert(network, given, assign, form, window=window)
    converted.save_pretrained(out)
    tokenizer.save_pretrained(out)
    moved = sum(weight.numel() for weight in converted.learnable_weights().values())
    share = moved / sum(weight.numel() for weight in converted.parameters())
    print(f"{len(given)} levels over {moved:,} weights, {share:.0%} of {type(network).__name__}; saved in {out}")


def merge(model: str, out: str, memory: str | None = None) -> None:
    """Fold what a memory holds into a converted model, and save it as a plain model that runs without nestling.

    Args:
        model: folder of a converted model.
        out: folder for the plain model; it must not exist yet, or be empty.
        memory: a memory file; without one the original model comes back.
    """
    quiet()
    from nestling.continual import Learner
    from nestling.models.pretrained import Converted, ConvertedForCausalLM

    _empty(out)
    network, tokenizer = _load(model)
    if not isinstance(network, Converted):
        raise UserError(
            f"{model} is no converted model, so there is nothing to fold into; `nestling convert` makes one"
        )
    if memory is None:
        plain = network.merge()
    elif isinstance(network, ConvertedForCausalLM):
        learner = Learner(network, tokenizer)
        learner.load(memory)
        plain = learner.merge()
    else:
        raise UserError(f"{model} predicts no next token and keeps no memory; leave --memory out")
    plain.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"a plain {type(plain).__name__}; saved in {out}")


def generate(
    model: str,
    prompt: str,
    memory: str | None = None,
    max_new_tokens: int = 200,
    temperature: float = 0.0,
    seed: int = 0,
) -> None:
    """Continue a prompt, with what a memory holds.

    Args:
        model: folder of a model.
        prompt: the text to continue.
        memory: a memory file; without one the model answers as it was trained.
        max_new_tokens: how much to write.
        temperature: 0 always takes the likeliest token.
        seed: for temperatures above 0.
    """
    quiet()
    import torch

    from nestling.continual import Learner
    from nestling.models import LearningModel
    from nestling.train import encode

    network, tokenizer = _load(model)
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    )
    torch.manual_seed(seed)
    if isinstance(network, LearningModel) and network.levels:
        learner = Learner(network, tokenizer)
        if memory:
            learner.load(memory)
        print(prompt + learner.generate(prompt, max_new_tokens=max_new_tokens, **sampling))
        return
    if memory:
        raise UserError(f"{model} has no levels and keeps no memory; leave --memory out")
    if not network.can_generate():
        raise UserError(
            f"{model} holds a {type(network).__name__}, which predicts no next token; give a language model"
        )
    ids = encode(tokenizer, prompt)[None]
    speaking: Any = network  # whether it generates was asked above
    out = speaking.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, **sampling)
    print(prompt + tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def demo(
    quick: bool = False,
    full: bool = False,
    text: str | None = None,
    out: str | None = None,
    report: str = "demo-report.html",
    jobs: int = 2,
) -> None:
    """Train small models, let them read another kind of text, and see what they learn, keep and forget.

    Args:
        quick: less text, one seed: a minute.
        full: more text, three seeds: up to an hour. It can be interrupted and goes on.
        text: your own text as the new domain, instead of Python source.
        out: folder for models and results; none is runs/demo, by size.
        report: where to write the report: HTML, or Markdown (tables alone) if it ends in .md.
        jobs: processes to run side by side, one thread each.
    """
    quiet()
    from rich.console import Console

    from nestling.evals.demo import run
    from nestling.report import html, tables

    if quick and full:
        raise UserError("--quick and --full exclude each other; give one, or none for the size between")
    Path(report).parent.mkdir(parents=True, exist_ok=True)
    results = run("quick" if quick else "full" if full else "default", text, out, jobs)
    Path(report).write_text(html(results), encoding="utf-8")
    Console().print(tables(results))
    print(f"the report is {report}")


def eval_optimizers(
    problems: list[str] | None = None,
    optimizers: list[str] | None = None,
    quick: bool = False,
    out: str = "runs/eval/optimizers",
    report: str = "optimizers-report.html",
    jobs: int = 2,
) -> None:
    """Compare optimisers: tuned alike, three seeds, on toy problems, vision Transformers and language models.

    Args:
        problems: some of psi, orthogonal, editing, quadratic, vit-digits, vit-mnist, lm-transformer, lm-hope; none is all of them.
        optimizers: some of the optimisers by name; none is all of them.
        quick: two small problems: a few minutes.
        out: folder of the runs; a command that was interrupted goes on from there.
        report: where to write the report: HTML, or Markdown (tables alone) if it ends in .md.
        jobs: processes to run side by side, one thread each.
    """
    quiet()
    from rich.console import Console

    from nestling.evals.optimizers.main import run
    from nestling.report import optimizers as pages

    console = Console()
    results = run(problems, optimizers, quick, out, jobs, lambda line: console.print(line, highlight=False))
    page = pages.markdown(results) if report.endswith(".md") else pages.html(results)
    _show(page, report, pages.tables(results), console)


def eval_formal_languages(
    languages: list[str] | None = None,
    models: list[str] | None = None,
    quick: bool = False,
    out: str = "runs/eval/formal-languages",
    report: str = "formal-languages-report.html",
    jobs: int = 2,
) -> None:
    """Who can follow a state? Formal languages and word problems, at lengths learnt from and beyond.

    Args:
        languages: some of parity, (aa)*, (abab)*, a^n b^n, a^n b^n c^n, shuffle-2, addition mod 5, S5; none is all of them.
        models: some of the models by name; none is all of them.
        quick: fewer steps and words: a few minutes.
        out: folder of the runs; a command that was interrupted goes on from there.
        report: where to write the HTML report.
        jobs: processes to run side by side, one thread each.
    """
    quiet()
    from rich.console import Console

    from nestling.evals.formal.main import formal_languages
    from nestling.report import formal as pages

    console = Console()
    results = formal_languages(languages, models, quick, out, jobs, lambda line: console.print(line, highlight=False))
    _show(pages.html(results), report, pages.tables(results), console)


def eval_ablation(
    rows: list[str] | None = None,
    quick: bool = False,
    full: bool = False,
    out: str = "runs/eval/ablation",
    report: str = "ablation-report.html",
    jobs: int = 2,
) -> None:
    """What does each part of Hope give? Byte-level language models on WikiText-2, each without one part.

    Args:
        rows: some of the rows by name; none is all of them.
        quick: much less text, small models, one seed.
        full: more text and larger models, for a GPU.
        out: folder of the runs; a command that was interrupted goes on from there.
        report: where to write the HTML report.
        jobs: processes to run side by side, one thread each.
    """
    quiet()
    from rich.console import Console

    from nestling.evals.ablation.main import ablation
    from nestling.report import ablation as pages

    if quick and full:
        raise UserError("--quick and --full exclude each other; give one, or none for the size between")
    console = Console()
    size = "quick" if quick else "full" if full else "default"
    results = ablation(rows, size, out, jobs, lambda line: console.print(line, highlight=False))
    _show(pages.html(results), report, pages.tables(results), console)


def _show(page: str, report: str, tables: Any, console: Any) -> None:
    """The page in its file, the tables on the terminal."""
    Path(report).write_text(page, encoding="utf-8")
    console.print(tables)
    print(f"the report is {report}")


def _load(folder: str) -> tuple[PreTrainedModel, Any]:
    """A saved model, Hope or converted or another, and its tokenizer; a UserError says what is wrong with the folder."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

    import nestling.models  # noqa: F401 - registers its models

    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{folder} holds no model (no config.json); give a folder that a model was saved in")
    if not any((Path(folder) / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json")):
        raise UserError(
            f"{folder} holds no tokenizer; save the model's tokenizer there: tokenizer.save_pretrained({folder!r})"
        )
    try:
        config = AutoConfig.from_pretrained(folder)
        speaking = AutoModelForCausalLM._model_mapping.get(type(config), None)  # BERT can, but was seldom saved so
        saved = config.architectures or []
        kind = AutoModelForCausalLM if getattr(speaking, "__name__", None) in saved else AutoModel
        return kind.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    except (OSError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be loaded: {_sentence(error)}") from None


def _load_learning(folder: str) -> tuple[LearningModel, Any]:
    """A saved model with levels."""
    from nestling.models import LearningModel

    network, tokenizer = _load(folder)
    if not isinstance(network, LearningModel):
        raise UserError(
            f"{folder} holds a {type(network).__name__}, which has no levels; `nestling convert` gives it some"
        )
    return network, tokenizer


def _empty(folder: str) -> None:
    """Raise where something would be overwritten."""
    if Path(folder).is_dir() and not any(Path(folder).iterdir()):
        return
    if Path(folder).exists():
        raise UserError(f"{folder} exists already; give a folder that is new or empty")


class _progress:
    """A progress bar on the terminal: `with _progress(name, total) as advance: advance(1, note)`."""

    def __init__(self, name: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
        self.task = self.bar.add_task(name, total=total, note="")

    def __enter__(self) -> Callable[[int, str], None]:
        self.bar.start()
        return lambda steps, note: self.bar.update(self.task, advance=steps, note=note)

    def __exit__(self, *error: object) -> None:
        self.bar.stop()


def _sentence(error: BaseException) -> str:
    """The innermost message, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


def _parser() -> ArgumentParser:
    """One subcommand a function; its booleans are flags."""
    parser = ArgumentParser(prog="nestling", description="Language models that keep learning.", parser_mode="toml")
    commands = parser.add_subcommands(dest="command")
    for function in (demo, train, learn, generate, convert, merge):
        commands.add_subcommand(function.__name__, _arguments(function), help=_summary(function))
    evaluation = ArgumentParser(parser_mode="toml")
    commands.add_subcommand("eval", evaluation, help="Run a benchmark.")
    benchmarks = evaluation.add_subcommands(dest="benchmark")
    for name, function in EVALS.items():
        benchmarks.add_subcommand(name, _arguments(function), help=_summary(function))
    return parser


def _arguments(function: Callable[..., None]) -> ArgumentParser:
    """A function's arguments as options, its booleans as flags."""
    example = EXAMPLES.get(function.__name__)
    parser = ArgumentParser(parser_mode="toml", epilog=example and f"example: {example}")
    parser.add_argument("--config", action="config", help="a TOML file with any of these settings")
    flags = [name for name, hint in function.__annotations__.items() if hint == "bool"]
    parser.add_function_arguments(function, skip=set(flags))
    for flag in flags:
        parser.add_argument(f"--{flag}", action="store_true", help=FLAGS[flag])
    return parser


def _summary(function: Callable[..., None]) -> str:
    return (function.__doc__ or "").strip().splitlines()[0]


EVALS = {"ablation": eval_ablation, "formal-languages": eval_formal_languages, "optimizers": eval_optimizers}


def main() -> None:
    """Run a command. Bad input ends with one sentence and exit status 2 (NESTLING_TRACEBACK=1 shows the traceback)."""
    parser = _parser()
    given = parser.instantiate(parser.parse_args())
    command, function = given[given.command], globals().get(given.command)
    if given.command == "eval":
        command, function = command[command.benchmark], EVALS[command.benchmark]
    assert function is not None
    arguments = {key: value for key, value in vars(command).items() if key != "config"}
    try:
        function(**arguments)
    except KeyboardInterrupt:
        sys.exit("nestling: stopped")
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("NESTLING_TRACEBACK"):
            raise
        print(f"nestling: {_sentence(error)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
