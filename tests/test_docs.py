"""What the documentation shows runs, and does what it says."""

import re
from pathlib import Path

import pytest

from nestling.train import byte_tokenizer
from tests.families import decoder

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    pytest.param("README.md", marks=pytest.mark.slow),
    "docs/class-incremental.md",
    "docs/continuum.md",
    "docs/convert.md",
    "docs/exams.md",
    "docs/frequency-response.md",
    "docs/learner.md",
    "docs/levels.md",
    "docs/long-streams.md",
    "docs/memory.md",
    "docs/models.md",
    "docs/optimisers.md",
    "docs/scan.md",
    "docs/stability.md",
    "docs/titans.md",
    "docs/training.md",
    "docs/transfer.md",
]


@pytest.fixture
def readers_folder(tmp_path, monkeypatch):
    """What a reader has: a transformers model with its tokenizer, and a text; what the examples save goes there too."""
    size = {"vocab_size": 384, "max_position_embeddings": 512, "eos_token_id": None}
    decoder("llama", **size).save_pretrained(tmp_path / "llama")
    byte_tokenizer().save_pretrained(tmp_path / "llama")
    (tmp_path / "notes.txt").write_text("All that is gold does not glitter. " * 30)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("readers_folder")
@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run(page):
    """From top to bottom, as one program, with the assertions that the reader sees."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    names: dict = {}
    for block in blocks:
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], str(ROOT / page), "exec"), names)
    assert blocks
