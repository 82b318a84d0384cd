"""The results as tables for a terminal of 100 columns: the page's content, in another form."""

from __future__ import annotations

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from nestling.report import content
from nestling.report.schema import Results, check

NUMBER = 14  # characters: what is longer is a sentence, and may fold


def tables(results: Results) -> Group:
    """Everything the page says in tables and sentences. Raises ValueError when the results have another schema."""
    check(results)
    parts = [_table(content.models(results)), _table(content.learners(results))]
    wanted = content.targets(results)
    if wanted is not None:
        parts.append(_table(wanted))
    said = [f"  {name}: {found}" for name, found in content.headlines(results)]
    lines = [content.HEADLINE, *said] if said else []
    lines += [content.restart(results)] if content.restart(results) else []
    return Group(*parts, *(Text(line) for line in lines))


def _table(table: content.Table) -> Table:
    made = Table(
        box=box.SIMPLE_HEAD,
        title=Text(table.title, style="bold"),
        title_justify="left",
        caption=Text(table.note, style="dim"),
        caption_justify="left",
        pad_edge=False,
        collapse_padding=True,
    )
    made.add_column(Text(table.headings[0]), overflow="fold", min_width=18 if len(table.headings) < 6 else None)
    for index, heading in enumerate(table.headings[1:], start=1):
        made.add_column(Text(heading), justify="right", width=_width(heading, [row[index] for row in table.rows]))
    for row in table.rows:
        made.add_row(*map(_cell, row))
    return made


def _width(heading: str, cells: list[content.Cell]) -> int | None:
    """As narrow as the numbers and the longest word above them allow; names and sentences share the room that is left."""
    lines = [*heading.split(), *(cell.text for cell in cells), *(cell.note for cell in cells)]
    width = max(map(len, lines))
    return width if width <= NUMBER else None


def _cell(cell: content.Cell) -> Text:
    """As Text, never markup: a name with square brackets is a name."""
    return Text.assemble(cell.text, *([("\n" + cell.note, "dim")] if cell.note else []))
