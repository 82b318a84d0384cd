"""One quiet look for every figure, and SVG that may be inlined in a page.

Matplotlib writes standalone files; several of them in one page would share ids, carry their own style sheet and name
outside addresses. `render` keeps only the drawing, under ids of its own, with the page's fonts and colours.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, FAINT = "#2a2f38", "#707784", "#d9dde3"
# Okabe and Ito's colour-blind-safe hues, the pale ones darkened until they read on white.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#b8568f", "#b07d00", "#3b93c9")
# In the page these become CSS variables, so that one drawing serves light and dark.
VARIABLES = {INK: "--ink", MUTED: "--muted", FAINT: "--faint"} | {
    colour: f"--series-{index}" for index, colour in enumerate(SERIES, start=1)
}

LOOK = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's own font
    "text.parse_math": False,  # a name with dollar signs is a name
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def render(name: str, title: str, draw: Callable[[Figure], None], height: float = 3.5) -> str:
    """What `draw` puts on a figure, as an inline SVG with the given title; `name` keeps its ids apart from others'."""
    try:
        from matplotlib import style
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('The figures of the report need matplotlib: pip install "nestling[report]"') from error
    with style.context(["default", LOOK | {"svg.hashsalt": name}]):
        figure = Figure(figsize=(9.0, height))
        FigureCanvasSVG(figure)
        draw(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return inline(file.getvalue(), name, title)


def label(name: str) -> str:
    """A name fit for a figure: printable, and short enough not to push the drawing aside."""
    text = "".join(letter for letter in name if letter.isprintable()).strip()
    text = text if len(text) <= 40 else text[:39] + "…"
    return f" {text}" if text.startswith("_") else text  # matplotlib keeps a leading underscore out of legends


def inline(document: str, name: str, title: str) -> str:
    """A standalone SVG document made part of a page."""
    root = ElementTree.fromstring(document)
    for parent in root.iter():
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', document))
    for element in root.iter():
        _clean(element, name, used)
    for size in ("width", "height", "version"):
        del root.attrib[size]
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title"}
    heading = ElementTree.Element("title", {"id": f"{name}-title"})
    heading.text = title
    root.insert(0, heading)
    return ElementTree.tostring(root, encoding="unicode")


def _clean(element: ElementTree.Element, name: str, used: set[str]) -> None:
    """No namespaces, no ids that nothing refers to, one decimal (a seventh of a pixel), the page's font and colours."""
    element.tag = _local(element.tag)
    if element.tag != "text":
        element.text = None
    element.tail = None
    for key, value in list(element.attrib.items()):
        del element.attrib[key]
        if key != "id" or value in used:
            element.attrib[_local(key)] = _attribute(_local(key), value, name)


def _attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "style":
        return _style(value)
    if key in ("d", "x", "y", "width", "height", "transform"):
        value = re.sub(r"-?\d+\.\d+", lambda match: f"{float(match[0]):.1f}".removesuffix(".0"), value)
        value = re.sub(r"\s+", " ", value).strip()
    return value.replace("#", f"#{name}-") if key in ("href", "clip-path") else value


def _style(value: str) -> str:
    value = re.sub(r"font-family:[^;]*;?\s*", "", value)
    value = re.sub(r"font: ([\d.]+px)[^;]*", r"font-size: \1", value)  # the shorthand of older versions
    for colour, variable in VARIABLES.items():
        value = value.replace(colour, f"var({variable})")
    return value


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def standalone(drawing: str) -> str:
    """A drawing of `render` as a file of its own, on white, in the colours of a light page."""
    for colour, variable in VARIABLES.items():
        drawing = drawing.replace(f"var({variable})", colour)
    look = 'xmlns="http://www.w3.org/2000/svg" style="background: #ffffff; font-family: sans-serif"'
    return drawing.replace("<svg", f"<svg {look}", 1) + "\n"
