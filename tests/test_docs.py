"""What the documentation shows runs, and does what it says."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [pytest.param("README.md", marks=pytest.mark.slow), "docs/optimisers.md"]


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    """From top to bottom, as one program, with the assertions that the reader sees."""
    monkeypatch.chdir(tmp_path)  # where what they save goes
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    names: dict = {}
    for block in blocks:
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], str(ROOT / page), "exec"), names)
    assert blocks
