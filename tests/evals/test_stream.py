"""The stream's evaluation: a process is killed and goes on to the same state, and the report says what the logs hold."""

import gzip
import json
import math
import re
from pathlib import Path

import pytest

from nestling.errors import UserError
from nestling.evals.stream import main, needles
from nestling.evals.stream.setup import SIZES, Size, config
from nestling.levels import Level
from nestling.models import HopeForCausalLM
from nestling.report import stream as pages
from tests.tiny import config as model_config

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A short book in the place of the novel, and of WikiText."""
    book = " ".join(f"the {n}th day" for n in range(2_000))
    for place in ("haystack/war_and_peace.txt.gz", "wikitext2/train.txt.gz"):
        path = tmp_path / "data" / place
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress(book.encode()))
    monkeypatch.setenv("NESTLING_DATA", str(tmp_path / "data"))


def line(process, position, seconds, memory=100, **more):
    return {
        "process": process,
        "position": position,
        "seconds": seconds,
        "processor": seconds / 2,
        "resident": memory,
        "peak": memory,
        **more,
    }


def small():
    """A model that reads quickly."""
    return model_config("hope-attention", vocab_size=384, levels=[Level(64, lr=0.1)], sliding_window=8)


LOG = [
    line(1, 0, 0.0, begins=True),
    line(1, 50_000, 10.0, 90, digest="a"),
    line(1, 100_000, 20.0, 100, digest="b"),
    line(2, 100_000, 5.0, 40, begins=True),
    line(2, 150_000, 25.0, 104, digest="c"),
    line(2, 200_000, 35.0, 103, digest="d", ends=True),
]


def test_a_speed_is_that_of_stretches_between_checkpoints_of_one_process():
    """What a kill made be read twice, and starting a process, are no part of it."""
    assert pages.rate(LOG, (0, 200_000), "seconds") == 200_000 / (20 + 30)
    assert pages.rate(LOG, (100_000, 200_000), "processor") == 100_000 / 15
    assert math.isnan(pages.rate(LOG, (0, 10), "seconds"))
    assert [place["process"] for place in pages.ends(LOG)] == [1, 2]


def test_memory_is_compared_with_that_after_the_first_hundred_thousand_tokens():
    """A process that has just begun has not read yet."""
    assert pages.memory(LOG)[0] == ["resident", "100 bytes", "104 bytes", "+4.0 %"]
    assert pages.memory(LOG[:2]) == []


@pytest.mark.parametrize("other", ["c", "x"])
def test_a_kill_that_changes_something_would_show(other):
    """Only checkpoints that both readings have are compared."""
    prefix = [line(3, 0, 0.0, begins=True), line(3, 100_000, 9.0, digest="b"), line(3, 150_000, 9.0, digest=other)]
    rows = dict(pages.kills({"stream": LOG, "prefix": prefix}))
    assert rows["checkpoints compared"] == "2, to 150,000 tokens, 1 kill before the last"
    assert rows["of them the same, bit for bit"] == ("2" if other == "c" else "1")


def test_needles_are_where_they_are_said_to_be():
    """Written over the text, which is as long as before, and not twice in one place; no name that is asked for was learnt."""
    text = "x" * 10_000
    found = needles.hidden(text)
    assert len(found) == len(text) and not set(needles.ASKED) & set(needles.LEARNT)
    for name, value in needles.values().items():
        place = found.index(f"{needles.question(name)}{value}.\n")
        assert place == len(text) - needles.ASKED[name] and len(value) == 5 and value.isdigit()


def test_in_lessons_numbers_return():
    """A name that is told again within the last few has the number it had; otherwise numbers are new."""
    told = re.findall(r"\nThe number of the (\w+) is (\d{5})\.\n", needles.lessons(20_000))
    names = [name for name, _ in told]
    again = [(i, names[max(0, i - 4) : i].count(name)) for i, name in enumerate(names)]
    for i, before in again:
        if before:
            assert told[i] in told[i - 4 : i] if i >= 4 else told[i] in told[:i]
    assert len(told) > 150 and 0.5 < sum(before > 0 for _, before in again) / len(told) < 0.9
    assert {name for name, _ in told} <= set(needles.LEARNT)


@pytest.mark.slow
def test_a_killed_reading_ends_as_one_that_was_not(tmp_path, data, monkeypatch):
    """The whole way, in processes: every checkpoint of the beginning is the same in both, and the report is written."""
    monkeypatch.setitem(main.SIZES, "quick", Size(40_960, 8_192, 1, 16_384))
    monkeypatch.setattr(main, "LATEST", 0.1)
    monkeypatch.setattr(main, "config", small)
    said = []
    results = main.stream("quick", str(tmp_path), said.append)
    rows = dict(pages.kills(results))
    assert any("killed" in told for told in said) and int(rows["processes"]) >= 2
    compared = int(rows["checkpoints compared"].split(",")[0])
    assert compared >= 1 and rows["of them the same, bit for bit"] == str(compared)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert "<svg" in pages.html(results) and pages.tables(results)
    assert main.stream("quick", str(tmp_path), said.append)["stream"] == results["stream"]  # nothing is read again


def test_what_is_missing_is_told_before_anything_is_read(tmp_path, data):
    with pytest.raises(UserError, match="bytes, and 10000000 are read"):
        main.text_of(SIZES["default"], tmp_path)


def test_the_model_has_a_million_parameters():
    """Between one and three, as is claimed; and memories that do not fade to nothing."""
    count = sum(p.numel() for p in HopeForCausalLM(config()).parameters())
    assert 1_000_000 <= count <= 3_000_000 and config().memory_retention == "initial"


def test_the_page_in_the_documentation_is_the_results():
    """Made from the JSON beside it; and there kills changed nothing and memory stayed."""
    results = json.loads((RESULTS / "stream.json").read_text(encoding="utf-8"))
    assert (RESULTS / "stream.md").read_text(encoding="utf-8") == pages.markdown(results)
    rows = dict(pages.kills(results))
    assert rows["checkpoints compared"].split(",")[0] == rows["of them the same, bit for bit"]
    assert float(pages.memory(results["stream"])[0][-1].split()[0]) < 5
