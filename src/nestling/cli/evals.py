"""The demonstration and the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

from nestling.cli.terminal import show
from nestling.errors import UserError
from nestling.quiet import quiet


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
    show(pages, results, report, console)


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
        report: where to write the report: HTML, or Markdown (tables alone) if it ends in .md.
        jobs: processes to run side by side, one thread each.
    """
    quiet()
    from rich.console import Console

    from nestling.evals.formal.main import formal_languages
    from nestling.report import formal as pages

    console = Console()
    results = formal_languages(languages, models, quick, out, jobs, lambda line: console.print(line, highlight=False))
    show(pages, results, report, console)


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
        report: where to write the report: HTML, or Markdown (tables alone) if it ends in .md.
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
    show(pages, results, report, console)


def eval_adaptation(
    methods: list[str] | None = None,
    architectures: list[str] | None = None,
    quick: bool = False,
    out: str = "runs/eval/adaptation",
    report: str = "adaptation-report.html",
    jobs: int = 2,
) -> None:
    """Learn a stream and keep the rest: prose, code, prose again, read by learners and by tuned baselines.

    Args:
        methods: some of frozen, SGD, AdamW, LoRA, dynamic evaluation, EWC, replay and the levels, by name; none is all of them.
        architectures: Transformer++ (what none is), Hope, or both.
        quick: small models, short texts, two settings a method: a minute or two.
        out: folder of the runs; a command that was interrupted goes on from there.
        report: where to write the report: HTML, or Markdown (tables alone) if it ends in .md.
        jobs: processes to run side by side, one thread each.
    """
    quiet()
    from rich.console import Console

    from nestling.evals.adaptation.main import adaptation
    from nestling.report import adaptation as pages

    console, size = Console(), "quick" if quick else "default"
    results = adaptation(methods, architectures, size, out, jobs, lambda line: console.print(line, highlight=False))
    show(pages, results, report, console)


def eval_continual(
    scenarios: list[str] | None = None,
    methods: list[str] | None = None,
    seeds: list[int] | None = None,
    data: str | None = None,
    quick: bool = False,
    out: str = "runs/eval/continual",
    report: str = "continual-report.html",
    jobs: int = 2,
) -> None:
    """Learn class after class and keep all of them: class-, domain- and task-incremental streams, each example seen once.

    Args:
        scenarios: some of clinc150, banking77, dbpedia70-cil, split-mnist, permuted-mnist and others by name; none is all of them.
            split-digits needs no data and no encoder.
        methods: some of the methods by name; none is all of them.
        seeds: of class orders; none is 0, 1 and 2, or 0 in a quick run.
        data: folder of the data sets; none is the one that NESTLING_DATA names.
        quick: a few examples of each class, one seed, two trials a method: a minute or two.
        out: folder of the runs and of the encoder's features; a command that was interrupted goes on from there.
        report: where to write the report: HTML, or Markdown (tables alone) if it ends in .md.
        jobs: processes to run side by side, one thread each.
    """
    quiet()
    from rich.console import Console

    from nestling.evals.continual.main import continual
    from nestling.report import continual as pages

    console, size = Console(), "quick" if quick else "default"
    results = continual(
        scenarios, methods, seeds, size, data, out, jobs, lambda line: console.print(line, highlight=False)
    )
    show(pages, results, report, console)


def eval_bodies(
    scenarios: list[str] | None = None,
    methods: list[str] | None = None,
    seeds: list[int] | None = None,
    data: str | None = None,
    quick: bool = False,
    out: str = "runs/eval/bodies",
    report: str = "bodies-report.html",
    jobs: int = 2,
) -> None:
    """Networks that learn in their body, task after task, each example seen once: what each method learns, and what it keeps.

    Args:
        scenarios: some of permuted-mnist, split-mnist-domain, permuted-digits; none is permuted-mnist. permuted-digits needs no data.
        methods: some of the methods by name; none is all of them.
        seeds: of weights, orders of pixels and examples; none is 0, 1 and 2, or 0 in a quick run.
        data: folder of the data sets; none is the one that NESTLING_DATA names.
        quick: a small network, a few examples of each class, one seed, two trials a method: a minute.
        out: folder of the runs; a command that was interrupted goes on from there.
        report: where to write the report: HTML, or Markdown (tables alone) if it ends in .md.
        jobs: processes to run side by side, one thread each.
    """
    quiet()
    from rich.console import Console

    from nestling.evals.bodies.main import bodies
    from nestling.report import bodies as pages

    console, size = Console(), "quick" if quick else "default"
    results = bodies(
        scenarios, methods, seeds, size, data, out, jobs, lambda line: console.print(line, highlight=False)
    )
    show(pages, results, report, console)


def eval_horizons(
    settings: list[str] | None = None,
    quick: bool = False,
    out: str = "runs/eval/horizons",
    report: str = "horizons-report.html",
    jobs: int = 2,
) -> None:
    """How many levels, and how slow the slowest? Long documents read, and facts told early in them asked at the end.

    Args:
        settings: some of frozen, 64 alone, and 1 to 4 levels with a slowest period of 512, 2048 or 8192, as "2 levels, 512".
        quick: a small model, short documents, a slowest period of 512: a minute.
        out: folder of the runs; a command that was interrupted goes on from there.
        report: where to write the report: HTML, or Markdown (tables alone) if it ends in .md.
        jobs: processes to run side by side, one thread each.
    """
    quiet()
    from rich.console import Console

    from nestling.evals.horizons.main import horizons
    from nestling.report import horizons as pages

    console, size = Console(), "quick" if quick else "default"
    results = horizons(settings, size, out, jobs, lambda line: console.print(line, highlight=False))
    show(pages, results, report, console)


def eval_languages(
    methods: list[str] | None = None,
    seeds: list[int] | None = None,
    quick: bool = False,
    out: str = "runs/eval/languages",
    report: str = "languages-report.html",
    jobs: int = 2,
) -> None:
    """Languages that nobody speaks, learnt one after the other from their documents and translated: what is left of the first?

    Args:
        methods: some of the methods by name; none is all of them.
        seeds: of the languages; none is 0, 1 and 2, or 0 in a quick run.
        quick: a small backbone hardly trained, short documents, one setting a method: a minute.
        out: folder of the backbone and the runs; a command that was interrupted goes on from there.
        report: where to write the report: HTML, or Markdown (tables alone) if it ends in .md.
        jobs: processes to run side by side, one thread each.
    """
    quiet()
    from rich.console import Console

    from nestling.evals.languages.main import languages
    from nestling.report import languages as pages

    console, size = Console(), "quick" if quick else "default"
    results = languages(methods, seeds, size, out, jobs, lambda line: console.print(line, highlight=False))
    show(pages, results, report, console)


def eval_meta_learning(
    arms: list[str] | None = None,
    quick: bool = False,
    out: str = "runs/eval/meta-learning",
    report: str = "meta-learning-report.html",
    jobs: int = 2,
) -> None:
    """Do initial weights that were trained through their own learning learn better than plain ones, at equal compute?

    Args:
        arms: some of the ways to train by name; none is all of them.
        quick: small models, short texts, one setting an arm: a minute.
        out: folder of the runs; a command that was interrupted goes on from there.
        report: where to write the report: HTML, or Markdown (tables alone) if it ends in .md.
        jobs: processes to run side by side, one thread each.
    """
    quiet()
    from rich.console import Console

    from nestling.evals.meta_learning.main import meta_learning
    from nestling.report import meta_learning as pages

    console, size = Console(), "quick" if quick else "default"
    results = meta_learning(arms, size, out, jobs, lambda line: console.print(line, highlight=False))
    show(pages, results, report, console)


def eval_sleep(
    quick: bool = False, out: str = "runs/eval/sleep", report: str = "sleep-report.html", jobs: int = 2
) -> None:
    """What is kept when a context ends, with and without a sleep over stored texts or dreams, and what becomes of the old?

    Args:
        quick: a small model, short texts: a minute.
        out: folder of the runs; a command that was interrupted goes on from there.
        report: where to write the report: HTML, or Markdown (tables alone) if it ends in .md.
        jobs: processes to run side by side, one thread each.
    """
    quiet()
    from rich.console import Console

    from nestling.evals.sleep.main import sleep
    from nestling.report import sleep as pages

    console = Console()
    results = sleep("quick" if quick else "default", out, jobs, lambda line: console.print(line, highlight=False))
    show(pages, results, report, console)


def eval_stream(quick: bool = False, out: str = "runs/eval/stream", report: str = "stream-report.html") -> None:
    """Does memory grow, does speed fall, does a kill change anything? Ten million bytes read as one stream.

    Args:
        quick: 65,536 bytes and one kill: a minute.
        out: folder of the text, checkpoints and logs; a command that was interrupted goes on from there.
        report: where to write the report: HTML, or Markdown (tables alone) if it ends in .md.
    """
    quiet()
    from rich.console import Console

    from nestling.evals.stream.main import stream
    from nestling.report import stream as pages

    console = Console()
    results = stream("quick" if quick else "default", out, lambda line: console.print(line, highlight=False))
    show(pages, results, report, console)


def eval_harness(
    model: str,
    tasks: list[str],
    reset: str = "doc",
    batch_size: int = 1,
    include_path: str | None = None,
    limit: int | None = None,
    device: str | None = None,
    out: str = "runs/eval/lm-eval/results.json",
) -> None:
    """Run tasks of lm-eval's harness, with or without a memory that is carried from document to document.

    Args:
        model: folder of a model, Hope or converted, and its tokenizer.
        tasks: names of tasks: wikitext, lambada_openai, piqa, hellaswag, ..
        reset: doc (every document is read from the checkpoint's state), task (what is learnt carries over within one) or never.
        batch_size: requests read together; where memory is carried, of one document.
        include_path: folder of tasks of one's own.
        limit: documents of each task; none is all of them.
        device: cpu, or cuda.
        out: where to write the results, as JSON.
    """
    import os

    os.environ.setdefault("HF_HUB_OFFLINE", "0")  # tasks come from the hub
    quiet()
    from nestling.evals.runs import write

    try:
        from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports] - an extra
        from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports] - an extra
        from lm_eval.utils import handle_non_serializable, make_table  # pyright: ignore[reportMissingImports] - an extra
    except ImportError as error:
        raise UserError(f"lm-eval is not installed ({error}): pip install 'nestling[eval]'") from None
    from nestling.evals.harness import NestlingLM

    manager = TaskManager(include_path=include_path)
    if unknown := [task for task in tasks if not manager.match_tasks([task])]:
        raise UserError(
            f"unknown task {', '.join(unknown)}; `lm_eval ls tasks` lists them, and --include_path adds some"
        )
    reader = NestlingLM(model, reset, batch_size, device=device)
    found = simple_evaluate(reader, tasks=list(tasks), task_manager=manager, limit=limit, log_samples=False)
    assert found is not None  # None only beside another process
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    found["config"] |= {"model": model, "reset": reset}
    write(Path(out), json.loads(json.dumps(found, default=handle_non_serializable)))
    print(f"{make_table(found)}\nreset={reset}; results are in {out}")


def eval_exams(
    exams: list[str] | None = None,
    models: list[str] | None = None,
    seeds: list[int] | None = None,
    quick: bool = False,
    full: bool = False,
    out: str = "runs/eval/exams",
    report: str = "exams-report.html",
    jobs: int = 2,
) -> None:
    """Who can recall, copy, compress and memorise? MAD, MQAR, needles in a haystack, BABILong.

    Args:
        exams: some of compression, in-context recall, fuzzy recall, noisy recall, selective copying, memorisation, MQAR 64, MQAR 128,
            MQAR 256 and regression (none is all of these), S-NIAH-1 to 3, MK-NIAH-1 to 3, MV-NIAH, MQ-NIAH, BABILong qa1 to qa5.
        models: some of Hope, Titans, Gated DeltaNet and Transformer++ (none is these), and "Transformer++, window".
        seeds: of models and examples; none is 0, 1 and 2, or 0 in a quick run.
        quick: a few steps, to see that all of it runs: a minute or two.
        full: as long as mad-lab trains, for a GPU.
        out: folder of the runs; a command that was interrupted goes on from there.
        report: where to write the report: HTML, or Markdown (tables alone) if it ends in .md.
        jobs: processes to run side by side, one thread each.
    """
    quiet()
    from rich.console import Console

    from nestling.evals.exams.main import exams as run
    from nestling.report import exams as pages

    if quick and full:
        raise UserError("--quick and --full exclude each other; give one, or none for the size between")
    console = Console()
    size = "quick" if quick else "full" if full else "default"
    results = run(exams, models, seeds, size, out, jobs, lambda line: console.print(line, highlight=False))
    show(pages, results, report, console)


EVALS = {
    "ablation": eval_ablation,
    "adaptation": eval_adaptation,
    "bodies": eval_bodies,
    "continual": eval_continual,
    "exams": eval_exams,
    "formal-languages": eval_formal_languages,
    "horizons": eval_horizons,
    "languages": eval_languages,
    "lm-eval": eval_harness,
    "meta-learning": eval_meta_learning,
    "optimizers": eval_optimizers,
    "sleep": eval_sleep,
    "stream": eval_stream,
}
