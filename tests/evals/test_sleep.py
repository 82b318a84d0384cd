"""Sleep as an evaluation: nights differ in their texts alone, nothing runs twice, the page says what the numbers say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nestling.errors import UserError
from nestling.evals.demo import setup as demo
from nestling.evals.sleep import main
from nestling.evals.sleep.setup import PIECE, SIZES, WAKE, Size
from nestling.report import sleep as pages

TINY = Size(
    replace(SIZES["quick"].adaptation, models=demo.Size((0, 1), 4_096, 512, 300, 900, 512), first=100, again=100),
    ((24, 2),),
)
RESULTS = Path(__file__).parents[2] / "docs" / "results" / "sleep.json"


def test_a_run_goes_all_the_way_and_nothing_runs_twice(tmp_path, monkeypatch):
    """Every seed and night; a second command reads what the first one wrote."""
    monkeypatch.setitem(main.SIZES, "quick", TINY)
    monkeypatch.setattr(main, "side_by_side", lambda function, tasks, _: ((task, function(*task)) for task in tasks))
    said: list[str] = []
    results = main.sleep("quick", str(tmp_path), 1, said.append)
    names = [night["name"] for night in results["nights"]]
    assert names[0] == WAKE and len(names) == len(set(names)) == 4 and len(results["runs"]) == 2
    for run in results["runs"]:
        awake_only, *slept = run["nights"]
        assert not awake_only["distances"]
        assert all(len(night["distances"]["new"]) == len(night["distances"]["old"]) == 2 for night in slept)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    monkeypatch.setattr(main, "nights", None)
    again = main.sleep("quick", str(tmp_path), 1, said.append)
    assert again["runs"] == results["runs"]
    page = pages.html(results)
    assert page.count("<svg") == 1 and all(page.count(f">{name}<") >= 1 for name in names)


def test_pieces_are_of_the_text_and_none_comes_twice():
    text = torch.arange(5 * PIECE + 3)
    pieces = main._pieces(text, 3 * PIECE, seed=0)
    assert sum(map(len, pieces)) >= 2 * PIECE + 3 and len(torch.cat(pieces).unique()) == sum(map(len, pieces))
    assert all(torch.equal(piece, text[piece[0] : piece[-1] + 1]) for piece in pieces)


def test_changes_are_against_the_same_model():
    """Paired: two models that start apart and gain alike have no spread in the change."""

    def run(start):
        return {"frozen": {"old": start, "later": 2 * start}, "awake": {"old": start, "later": start, "seconds": 3.0, "stream": 1.0},
                "nights": [{"old": 1.1 * start, "later": 1.5 * start, "seconds": 2.0, "distances": {}}]}  # fmt: skip

    nights = [{"name": "stored", "tokens": 4096, "passes": 2, "stored": 8192}]
    results = {"title": "T", "about": "A", "seeds": [0, 1], "read": 100, "nights": nights, "runs": [run(1.0), run(2.0)]}
    row = pages.rows(results)[-1]
    assert row[1] == "4,096 x 2" and row[3] == "−25.0 ± 0.0" and row[5] == "+10.0 ± 0.0" and row[6] == "8.2 kB"


def test_the_page_is_what_was_measured():
    """The tables in the documentation are those that the data beside them give."""
    results = json.loads(RESULTS.read_text())
    assert pages.markdown(results) == RESULTS.with_suffix(".md").read_text()
    assert len(results["runs"]) == 3


def test_bad_input_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="jobs=0 must be at least 1"):
        main.sleep("quick", str(tmp_path), 0, print)
