"""What `nestling demo` measured, as one offline HTML page and as tables for the terminal.

Everything here is a pure function of a results dictionary (schema 1, plain JSON, checked by `schema.py`): nothing is
measured, nothing is read from disk, and the same results always give the same bytes.

    page = nestling.report.html(results)            # needs matplotlib: pip install "nestling[report]"
    rich.print(nestling.report.tables(results))
"""

from nestling.report.page import html
from nestling.report.terminal import tables
from nestling.report.values import summary

__all__ = ["html", "summary", "tables"]
