"""The results as one HTML page: no script, no outside address, readable offline and for years."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from string import Template

from nestling.report import content, figures
from nestling.report.schema import Results, check
from nestling.report.style import CSS

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>$css</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")

# One sentence each, on how to read it.
FIGURES: tuple[tuple[Callable[[Results], str], str, str], ...] = (
    (
        figures.stream,
        "Reading the stream",
        "Bits per byte of the new domain, each chunk measured before it is learnt, so lower is better and a line that "
        "falls below its frozen model has learnt; with several seeds the band is one standard deviation.",
    ),
    (
        figures.gain,
        "What learning changed",
        "The same stream as a difference to the same model frozen, which cancels how hard each passage is: below zero "
        "has learnt, and a line that still falls is still learning.",
    ),
    (
        figures.frontier,
        "New domain against old",
        "Further left has learnt more of the new domain, further down has kept more of the old one, and a learner "
        "below and left of a sweep does what no step of that sweep does (numbers beside a sweep are its steps).",
    ),
    (
        figures.forgetting,
        "What it cost the old domain",
        "Change in bits per byte of the old domain from before the stream to after it: a longer bar to the right has "
        "forgotten more; with several seeds each has a fine tick.",
    ),
    (
        figures.updates,
        "How far each level moves",
        "The norm of every update on a logarithmic scale: slow levels update rarely, and a level whose curve sinks is "
        "settling.",
    ),
    (
        figures.training,
        "Training on the old domain",
        "Bits per byte while the models were trained on the old domain: lower is better; with several seeds the band "
        "is one standard deviation.",
    ),
)


def html(results: Results) -> str:
    """The whole page. Raises ValueError when the results do not have the schema this version reads."""
    check(results)
    parts = (
        _head(results),
        _table(content.targets(results)),
        _table(content.learners(results)),
        _table(content.models(results)),
        *(_figure(results, *figure) for figure in FIGURES),
        _section("After a restart", f"<p>{escape(content.restart(results))}</p>") if content.restart(results) else "",
        _section("How this was run", _facts(results)),
        _samples(results),
    )
    body = "\n".join(part for part in parts if part)
    return PAGE.substitute(title=escape(results["title"]), css=CSS, body=body)


def _head(results: Results) -> str:
    lines = [f"<li><strong>{escape(name)}</strong>: {escape(said)}</li>" for name, said in content.headlines(results)]
    found = f'<p class="found">{escape(content.HEADLINE)}</p><ul>{"".join(lines)}</ul>' if lines else ""
    about = f"{results['date']} · {content.spread_note(results)}"
    return f'<header><h1>{escape(results["title"])}</h1><p class="note">{escape(about)}</p>{found}</header>'


def _section(heading: str, inner: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{inner}</section>"


def _table(table: content.Table | None) -> str:
    if table is None:
        return ""
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in table.headings)
    rows = "".join(f"<tr>{_cell(row[0], name=True)}{''.join(map(_cell, row[1:]))}</tr>" for row in table.rows)
    scroll = f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(table.title)}">'
    body = f"{scroll}<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    return _section(table.title, f'<p class="note">{escape(table.note)}</p>{body}')


def _cell(cell: content.Cell, name: bool = False) -> str:
    note = f" <small>{escape(cell.note)}</small>" if cell.note else ""
    text = escape(cell.text) + note
    return f'<th scope="row">{text}</th>' if name else f"<td>{text}</td>"


def _figure(results: Results, draw: Callable[[Results], str], heading: str, caption: str) -> str:
    drawing = draw(results)
    if not drawing:
        return ""
    return _section(
        heading,
        f'<figure><div class="scroll" role="region" tabindex="0" aria-label="{escape(heading)}">{drawing}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>",
    )


def _facts(results: Results) -> str:
    rows = (f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in content.facts(results))
    return f"<dl>{''.join(rows)}</dl>"


def _samples(results: Results) -> str:
    samples = results.get("samples")
    if not samples:
        return ""
    return _section("Samples", "".join(map(_sample, samples)))


def _sample(sample: Results) -> str:
    text = f"<b>{escape(sample['prompt'])}</b>{escape(sample['text'])}"
    return f"<h3>{escape(sample['name'])}</h3><pre>{text}</pre>"
