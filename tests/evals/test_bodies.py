"""Networks that learn in their body: the streams are what they say, and a run goes all the way."""

import json
from pathlib import Path

import pytest
import torch

from nestling.errors import UserError
from nestling.evals.bodies import main
from nestling.evals.bodies.methods import METHODS, Problem
from nestling.evals.continual import Examples, Labelled
from nestling.evals.continual.scenarios import paired, permuted
from nestling.report import bodies as pages

X = torch.arange(480.0).view(60, 8)
DATA = Labelled(Examples(X, torch.arange(60) % 6), Examples(X[:12], torch.arange(12) % 6), tuple("abcdef"))


def test_permuted_domains_share_labels_and_nothing_comes_twice():
    """As many as asked for, of each image once a domain, its label its own, its pixels in the domain's order."""
    stream = permuted(DATA, 4, torch.Generator().manual_seed(1), train=50)
    orders = set()
    for experience in stream.experiences:
        images = experience.train.inputs.sort(-1).values
        assert len(experience.train) == 50 and len(images.unique(dim=0)) == 50
        assert torch.equal((images[:, 0] / 8).long() % 6, experience.train.labels)
        ranks = experience.train.inputs.argsort(-1).unique(dim=0)
        assert len(ranks) == 1 and experience.classes == (0, 1, 2, 3, 4, 5)
        orders.add(tuple(ranks[0].tolist()))
    assert len(orders) == 4


def test_pairs_ask_for_the_first_or_the_second():
    """Every class is in one pair, and the two answers are the same for all of them."""
    stream = paired(DATA, 3, torch.Generator().manual_seed(1))
    met = []
    for experience in stream.experiences:
        classes = {answer: {int(x[0] / 8) % 6 for x in experience.train.of([answer]).inputs} for answer in (0, 1)}
        assert [len(found) for found in classes.values()] == [1, 1] and len(experience.train) == 20
        met += [*classes[0], *classes[1]]
    assert sorted(met) == [0, 1, 2, 3, 4, 5] and stream.chance() == [0.5] * 3


def test_what_tunes_is_not_what_judges():
    """The validation stream judges by training examples, which it does not learn."""
    kept = main.held_out(DATA)
    learnt, judged = ({tuple(x.tolist()) for x in part.inputs} for part in (kept.train, kept.test))
    assert len(learnt) == 50 and len(judged) == 10 and not learnt & judged


def test_replay_has_the_bytes_of_ours():
    """One retaining level, within a period; the buffers fill what it stores."""
    problem = Problem((20, 16, 16, 4), 1000, 0)
    made = {
        name: METHODS[name].make(problem, METHODS[name].settings[0])
        for name in ("retention", "replay, equal bytes", "DER++, equal bytes")
    }
    draws = torch.Generator().manual_seed(0)
    for body in made.values():
        for _ in range(7):
            body.observe(torch.rand(16, 20, generator=draws), torch.arange(16) % 4)
    ours = made.pop("retention")
    assert problem.bytes_of_ours() <= ours.bytes() < 1.05 * problem.bytes_of_ours()
    for body in made.values():
        assert 0.98 * problem.bytes_of_ours() < body.bytes() <= problem.bytes_of_ours()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"jobs": 0}, "jobs=0 must be at least 1"),
        ({"seeds": [100]}, "which is tuned on"),
        ({"scenarios": ["rotated-mnist"]}, "unknown scenario rotated-mnist; choose from permuted-mnist"),
        ({"methods": ["magic"]}, "unknown method magic"),
    ],
    ids=["jobs", "seeds", "scenario", "method"],
)
def test_what_cannot_be_run_is_told(tmp_path, change, told):
    """In a sentence, before anything runs."""
    given = {"scenarios": ["permuted-digits"], "methods": None, "seeds": None, "size_name": "quick", "data": None}
    with pytest.raises(UserError, match=told):
        main.bodies(**(given | {"out": str(tmp_path), "jobs": 1, "say": print} | change))


def test_a_run_goes_all_the_way_and_nothing_runs_twice(tmp_path, monkeypatch):
    """From scikit-learn's digits to the page; a second command takes every number from disk."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(main, "side_by_side", lambda f, tasks, jobs: ((task, f(*task)) for task in tasks))
    said: list[str] = []
    methods = ["SGD", "retention", "retention, 4 levels", "joint, 3 passes"]
    given = (["permuted-digits"], methods, [3], "quick", None, str(tmp_path), 1)
    results = main.bodies(*given, said.append)
    page = pages.html(results)
    assert "retention *" in page and page.count("<svg") == 3 and "(taken" in pages.markdown(results)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")}
    assert json.dumps(main.bodies(*given, said.append)) == json.dumps(results)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")} == files


RESULTS = Path(__file__).parents[2] / "docs" / "results" / "permuted-mnist.json"


def test_the_page_is_what_was_measured():
    """The tables in the documentation are those that the data beside them give."""
    results = json.loads(RESULTS.read_text())
    assert RESULTS.with_suffix(".md").read_text() == pages.markdown(results)
