"""What is shown: progress, tables, and one sentence for an error."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

# Lines of jsonargparse that say where it was, and not what is wrong.
AROUND = (
    "Does not validate",
    "Subtypes:",
    "Errors:",
    "Problem with given",
    "Expected a <class 'NoneType'>",
    "Given value type",
)


class Arguments(ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say it on standard error, and exit with status 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        command = self.prog.replace(" [options]", "")
        print(f"nestling: {complaint(message)}; {command} --help says more", file=sys.stderr)
        self.exit(2)


class progress:
    """A progress bar on the terminal: `with progress(name, total) as advance: advance(1, note)`."""

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


def show(pages: Any, results: dict[str, Any], report: str, console: Any) -> None:
    """Results as a page in a file, Markdown or HTML by its name, and as tables on the terminal; `pages` draws them."""
    page = pages.markdown(results) if report.endswith(".md") else pages.html(results)
    Path(report).write_text(page, encoding="utf-8")
    console.print(pages.tables(results))
    print(f"the report is {report}")


def complaint(message: str) -> str:
    """What jsonargparse says over many lines, on one line."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    text = " ".join(line for line in lines if not line.startswith(AROUND) and "Namespace(" not in line)
    for pattern, words in (
        (r'Parser key "([^"]+)":', r"\1:"),
        (r"Expected a <class '([\w.]+)'>", r"Expected \1"),
        (r"\. Got value: ", ", got "),
        (r" Given value: ", "; given was "),
    ):
        text = re.sub(pattern, words, text)
    return text.rstrip(".")


def sentence(error: BaseException) -> str:
    """The innermost message, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
