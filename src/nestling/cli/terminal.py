"""What is shown: progress, tables, and one sentence for an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


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


def sentence(error: BaseException) -> str:
    """The innermost message, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
