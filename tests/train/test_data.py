"""Text as tokens: nothing is lost, windows are where the seed puts them, and what is no text raises."""

import gzip
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nestling.errors import UserError
from nestling.train import batches, byte_tokenizer, encode, english_prose, python_source, read_text, tiny_shakespeare

TOKENIZER = byte_tokenizer()


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_one_token_is_one_byte(text):
    """Byte b is token b + 3, without special tokens, for every text there is."""
    assert (encode(TOKENIZER, text) - 3).tolist() == list(text.encode())


def test_windows_are_where_the_seed_puts_them():
    """Windows of the text, the same for the same seed, at other places for another; as many as were asked for."""
    ids = torch.arange(100)
    one, again, other = (torch.stack(list(batches(ids, 3, 10, 7, seed))) for seed in (0, 0, 1))
    assert one.shape == (7, 3, 10) and torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(one.diff(dim=-1), torch.ones(7, 3, 9, dtype=torch.int64))
    assert len(one[..., 0].unique()) > 10


def test_every_token_is_in_some_window():
    """The first and the last token of a text are read as any other is."""
    seen = torch.stack(list(batches(torch.arange(12), 8, 10, 50, 0)))
    assert torch.equal(seen.unique(), torch.arange(12))


def test_texts_that_every_python_ships():
    """Two domains of their own: the same on every call, and long enough."""
    assert english_prose() == english_prose() and len(english_prose()) > 300_000
    code = python_source(50_000)
    assert len(code) == 50_000 and code.count("import ") > 5 and code == python_source(60_000)[:50_000]
    with pytest.raises(UserError, match="fewer than"):
        python_source(10**9)


def test_a_file_is_read_as_it_is(tmp_path):
    """UTF-8, whatever the locale says."""
    (tmp_path / "text").write_bytes("naïve – ∂W".encode())
    assert read_text(tmp_path / "text") == "naïve – ∂W"


FAULTS = {"does not exist": None, "is empty": b" \n", "is not UTF-8 text": b"caf\xe9"}


@pytest.mark.parametrize("message", FAULTS)
def test_a_file_that_is_no_text_raises(message, tmp_path):
    """Missing, empty, or of another encoding: one clear sentence that names the file."""
    path = tmp_path / "text"
    if FAULTS[message] is not None:
        path.write_bytes(FAULTS[message])
    with pytest.raises(UserError, match=message) as caught:
        read_text(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_is_no_text(tmp_path):
    """Named, with the reason."""
    with pytest.raises(UserError, match="cannot be read"):
        read_text(tmp_path)


def test_an_empty_text_raises():
    """There is nothing to encode."""
    with pytest.raises(UserError, match="empty"):
        encode(TOKENIZER, "")


def test_shakespeare_is_found_or_the_error_says_where_to_get_it(tmp_path, monkeypatch):
    """In the folder of data sets; without one, and without what would fetch it, one sentence."""
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare" / "input.txt.gz").write_bytes(gzip.compress(b"First Citizen:\n"))
    assert tiny_shakespeare(str(tmp_path)) == "First Citizen:\n"
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        UserError, match=r"set NESTLING_DATA .* or install nestling\[data\] to fetch https://.*input.txt"
    ):
        tiny_shakespeare(str(tmp_path / "elsewhere"))
