"""Continual learning: metrics are their definitions, a stream is what it says, and a run goes all the way."""

from __future__ import annotations

import csv
import gzip
import json
import math
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nestling.continual.heads import Classifier, NearestClassMean, OnFeatures
from nestling.errors import UserError
from nestling.evals.continual import (
    Examples,
    Experience,
    Labelled,
    Stream,
    final_accuracy,
    learn,
    main,
    run,
    sets,
    validation,
)
from nestling.evals.continual import metrics as m
from nestling.evals.continual.contenders import CONTENDERS, Problem
from nestling.evals.continual.encoder import table
from nestling.evals.continual.protocol import squared_error
from nestling.evals.continual.scenarios import SCENARIOS, permuted
from nestling.report import continual as pages

# three experiences, in a domain-incremental setting: everything can be judged from the start
DOMAIN = [[0.9, 0.3, 0.2], [0.7, 0.8, 0.4], [0.5, 0.9, 0.6]]
CLASS = [[0.9, None, None], [0.7, 0.8, None], [0.5, 0.9, 0.6]]


def test_metrics_by_hand():
    """Each on one matrix, with pencil and paper."""
    assert m.seen_accuracy(CLASS, [10, 30, 60]) == pytest.approx([0.9, (7 + 24) / 40, (5 + 27 + 36) / 100])
    assert m.last_accuracy(CLASS, [10, 30, 60]) == pytest.approx(0.68)
    assert m.average_incremental_accuracy(CLASS, [10, 30, 60]) == pytest.approx((0.9 + 0.775 + 0.68) / 3)
    assert m.average_accuracy(CLASS) == pytest.approx(2 / 3)
    assert m.forgetting(CLASS) == pytest.approx(((0.9 - 0.5) + (0.8 - 0.9)) / 2)
    assert m.backward_transfer(CLASS) == pytest.approx(((0.5 - 0.9) + (0.9 - 0.8)) / 2)
    assert m.forward_transfer(DOMAIN, [0.1, 0.1, 0.3]) == pytest.approx(((0.3 - 0.1) + (0.4 - 0.3)) / 2)
    assert math.isnan(m.forward_transfer(CLASS, [0.1] * 3))
    assert m.anytime_accuracy([(10, 1.0), (20, 0.5), (60, 0.25)]) == pytest.approx((10 + 5 + 10) / 60)
    assert m.macro_accuracy([0, 0, 0, 1], [0, 0, 1, 1]) == pytest.approx((2 / 3 + 1) / 2)
    assert m.forgetting_so_far(CLASS) == pytest.approx([0.0, 0.2, 0.15])
    with pytest.raises(ValueError, match="judge all that came before"):
        m.forgetting([[None, None], [0.1, 0.2]])


def test_forgetting_is_since_the_best_not_since_the_first():
    """An experience that got better before it was lost; backward transfer counts from the first."""
    matrix = [[0.5, None, None], [0.9, 0.5, None], [0.4, 0.5, 0.5]]
    assert m.forgetting([[0.2, 0.7], [0.1, 0.5]]) == pytest.approx(0.1)
    assert m.forgetting(matrix) == pytest.approx(0.25) and m.backward_transfer(matrix) == pytest.approx(-0.05)


matrices = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.floats(0, 1), min_size=n, max_size=n), min_size=n, max_size=n)
)


@given(matrices, st.data())
def test_metrics_hold_for_every_matrix(matrix, data):
    """Bounds, and what follows from one metric for another."""
    sizes = data.draw(st.lists(st.integers(1, 50), min_size=len(matrix), max_size=len(matrix)))
    lost, back = m.forgetting(matrix), m.backward_transfer(matrix)
    assert -1 <= -lost <= back + 1e-12 and abs(back) <= 1  # the best was at least as good as the first
    assert 0 <= m.last_accuracy(matrix, sizes) <= 1 and 0 <= m.average_incremental_accuracy(matrix, sizes) <= 1
    assert m.last_accuracy(matrix, [7] * len(matrix)) == pytest.approx(m.average_accuracy(matrix))
    diagonal = [matrix[j][j] for j in range(len(matrix))]
    if len(matrix) > 1:  # learning accuracy, what came back, and the last one make the average accuracy
        rest = fmean(diagonal[:-1]) + back
        assert m.average_accuracy(matrix) == pytest.approx((rest * (len(matrix) - 1) + diagonal[-1]) / len(matrix))
    frozen = [matrix[0]] * len(matrix)
    assert m.forgetting(frozen) == m.backward_transfer(frozen) == 0
    lower = [[value if j <= i else None for j, value in enumerate(row)] for i, row in enumerate(matrix)]
    assert (
        m.forgetting(lower) <= lost and m.backward_transfer(lower) == back
    )  # the best may be from before it was learnt
    assert m.seen_accuracy(lower, sizes) == m.seen_accuracy(matrix, sizes)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_macro_is_micro_where_classes_are_alike(pairs):
    """Every class repeated to the same size; and nothing is changed by repeating an example list."""
    labels, predicted = zip(*pairs, strict=True)
    macro = m.macro_accuracy(labels, predicted)
    assert macro == pytest.approx(m.macro_accuracy(labels * 3, predicted * 3)) and 0 <= macro <= 1
    sizes = {label: labels.count(label) for label in labels}
    whole = math.lcm(*sizes.values())
    alike = [pair for pair in pairs for _ in range(whole // sizes[pair[0]])]
    assert macro == pytest.approx(fmean(a == b for a, b in alike))


def test_metrics_against_avalanche():
    """Their backward and forward transfer on the same matrix; their forgetting counts from the first judgement, not the best."""
    other = pytest.importorskip("avalanche.evaluation.metrics", reason="a cross-check that needs avalanche-lib")
    lost, back, forward = other.Forgetting(), other.BWT(), other.ForwardTransfer()
    for j in range(3):
        for metric in (lost, back):
            metric.update(j, DOMAIN[j][j], initial=True)
            if j < 2:  # after the last experience, of those before it
                metric.update(j, DOMAIN[2][j])
        forward.update(j, 0.1, initial=True)
        if j:
            forward.update(j, DOMAIN[j - 1][j])
    assert m.backward_transfer(DOMAIN) == pytest.approx(fmean(back.result().values()))
    assert m.forward_transfer(DOMAIN, [0.1] * 3) == pytest.approx(fmean(forward.result().values()))
    never_better = [[0.9, 0.0, 0.0], [0.7, 0.8, 0.0], [0.5, 0.3, 0.6]]
    for j in range(2):
        lost.update(j, never_better[j][j], initial=True)
        lost.update(j, never_better[2][j])
    assert m.forgetting(never_better) == pytest.approx(fmean(lost.result().values()))


def examples(labels: list[int], width: int = 3) -> Examples:
    """Each at the corner of its class, nearly."""
    draws = torch.Generator().manual_seed(len(labels))
    y = torch.tensor(labels)
    return Examples(torch.eye(max(width, 8))[y] + 0.01 * torch.randn(len(y), max(width, 8), generator=draws), y)


DATA = Labelled(examples([0, 1, 2, 3] * 25), examples([0, 1, 2, 3] * 5), ("zero", "one", "two", "three"))


class Spy(Classifier):
    """Remembers what it was given; answers with the label that it met last, of those that are allowed."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.asked: list[tuple[int, list[int] | None]] = []
        self.ends: list[int] = []

    def observe(self, inputs: Any, labels: Tensor) -> None:
        self.batches.append(labels.tolist())

    def predict(self, inputs: Any, among: Tensor | None = None) -> Tensor:
        self.asked.append((len(inputs), None if among is None else among.tolist()))
        return torch.full((len(inputs),), self.batches[-1][-1])

    def end_experience(self) -> None:
        self.ends.append(len(self.batches))

    def stored(self) -> list[Tensor]:
        return [torch.zeros(3)]

    def parameters(self) -> int:
        return 3


@pytest.mark.parametrize("passes", [1, 3])
def test_every_example_comes_once_a_pass_and_nothing_of_another_experience(passes):
    """In batches, in an order of its own each pass; the end of an experience is told."""
    spy, stream = Spy(), DATA.split("class", [[2, 0], [3, 1]])
    met = run(spy, stream, batch=16, passes=passes)
    first, second = spy.batches[: spy.ends[0]], spy.batches[spy.ends[0] :]
    assert sorted(chain.from_iterable(first)) == sorted([0, 2] * 25 * passes)
    assert set(chain.from_iterable(second)) == {1, 3}
    assert max(map(len, spy.batches)) == 16 and spy.ends == [4 * passes, 8 * passes]
    assert len(met["anytime"]) == 8 and met["anytime"][-1][0] == 100 * passes
    assert met["bytes"] == 12 and met["parameters"] == 3
    assert met == run(Spy(), stream, batch=16, passes=passes) | {key: met[key] for key in ("seconds", "judging")}


@pytest.mark.parametrize("kind", ["class", "domain", "task"])
def test_who_is_told_what_at_test(kind):
    """The task, where it is one; and only in a domain-incremental stream can what comes be judged before."""
    groups = [[0, 1]] * 2 if kind == "domain" else [[0, 1], [2, 3]]
    data = DATA if kind != "domain" else Labelled(DATA.train.of([0, 1]), DATA.test.of([0, 1]), DATA.names)
    spy = Spy()
    met = run(spy, data.split(kind, groups), judgements=0)
    told = [among for _, among in spy.asked]
    assert told == {"class": [None] * 3, "domain": [None] * 4, "task": [[0, 1], [0, 1], [2, 3]]}[kind]
    assert (met["matrix"][0][1] is None) == (kind != "domain")
    assert met["chance"] == [0.25 if kind == "class" else 0.5] * 2 and met["anytime"] == []


def test_a_run_measures_what_happened():
    """A head that makes no mistake here; and the last accuracy and the squared error apart from a run."""
    method = OnFeatures(lambda x: x, NearestClassMean(8))
    stream = DATA.split("class", [[2, 0], [3, 1]])
    met = run(method, stream)
    assert met["matrix"] == [[1.0, None], [1.0, 1.0]] and met["sizes"] == [10, 10] and met["macro"] == [1.0, 1.0]
    assert all(accuracy == 1.0 for _, accuracy in met["anytime"]) and met["seconds"] > 0 and met["judging"] > 0
    other = OnFeatures(lambda x: x, NearestClassMean(8))
    learn(other, stream)
    assert final_accuracy(other, stream) == 1.0
    scores = other.scores(DATA.test.inputs)
    codes = (DATA.test.labels[:, None] == other.head.met.labels).double()
    assert squared_error(other, stream) == pytest.approx((scores - codes).square().mean().item())


def test_a_stream_to_tune_on_has_no_test_example():
    """A fifth of each class judges, the rest is learnt, less where there is a limit; what there is one of does both."""
    train = Labelled(examples([0] * 50 + [1] * 10 + [2]), examples([0, 1, 2]), DATA.names)
    stream = train.split("class", [[0], [1, 2]])
    tuning = validation(stream, seed=0, limit=10_000)
    counts = [[part.labels.bincount(minlength=3).tolist() for part in (e.train, e.test)] for e in tuning.experiences]
    assert counts == [[[40, 0, 0], [10, 0, 0]], [[0, 8, 1], [0, 2, 1]]]
    rows = {tuple(row) for e in stream.experiences for row in e.train.inputs.tolist()}
    assert all(
        tuple(row) in rows for e in tuning.experiences for row in (*e.train.inputs.tolist(), *e.test.inputs.tolist())
    )
    small = validation(stream, seed=0, limit=30)
    assert sum(len(e.train) + len(e.test) for e in small.experiences) < 35
    assert [e.classes for e in small.experiences] == [(0,), (1, 2)]


def stream_of(*classes: tuple[int, ...], kind: str = "class", train: Examples = DATA.train, test: Examples = DATA.test):
    return Stream(kind, DATA.names, tuple(Experience(c, train.of(c), test.of(c)) for c in classes))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: stream_of((0, 1), (2, 1)), "class 'one' is in experiences 1 and 2; give each class to one"),
        (lambda: stream_of((0, 1, 0), kind="domain"), "class 'zero' is in experiences 1 and 1"),
        (lambda: stream_of((0, 1), train=DATA.train.of([0])), "class 'one' of experience 1 has no training examples"),
        (lambda: stream_of((0, 1), test=DATA.test.of([0])), "class 'one' of experience 1 has no test examples"),
        (
            lambda: Stream("class", DATA.names, (Experience((0,), DATA.train.of([0]), DATA.test.of([0, 3])),)),
            "class 'three' is tested in experience 1 but never trained",
        ),
        (lambda: DATA.split("class", [[0, 1], [2]]), "class 'three' is tested but never trained"),
        (lambda: DATA.split("blurry", [[0, 1, 2, 3]]), "kind='blurry' is unknown; choose 'class', 'domain' or 'task'"),
    ],
)
def test_a_stream_that_cannot_be_is_told(make, told):
    """One sentence each."""
    with pytest.raises(UserError, match=told):
        make()


def save(path: Path, rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", newline="") as file:
        csv.writer(file).writerows(rows)


def clinc(folder: Path, train: list, test: list, domains: dict) -> None:
    (folder / "clinc150").mkdir(parents=True)
    (folder / "clinc150" / "data_full.json.gz").write_bytes(
        gzip.compress(json.dumps({"train": train, "test": test}).encode())
    )
    (folder / "clinc150" / "domains.json").write_text(json.dumps(domains))


def test_data_folders_are_read_as_they_are(tmp_path):
    """Texts with commas and lines, labels by name, domains as groups; another folder than NESTLING_DATA's."""
    rows = [["text", "category"], ["how, and\nwhen?", "time"], ["why", "reason"]]
    for part in ("train", "test"):
        save(tmp_path / "banking77" / f"{part}.csv.gz", rows)
    data = sets.banking77(str(tmp_path))
    assert data.names == ("reason", "time") and data.train.inputs == ["how, and\nwhen?", "why"]
    assert data.train.labels.tolist() == [1, 0]
    pairs = [["a", "x"], ["b", "y"], ["c", "z"]]
    clinc(tmp_path, pairs, pairs, {"one": ["z", "x"], "two": ["y"]})
    found, groups = SCENARIOS["clinc150"].data(str(tmp_path), quick=False)
    assert groups == [[2, 0], [1]]
    orders = {
        tuple(e.classes for e in SCENARIOS["clinc150"].stream(found, groups, seed).experiences) for seed in range(6)
    }
    assert orders == {((2, 0), (1,)), ((1,), (2, 0))}


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (
            [["text", "intent"], ["why", "reason"]],
            "has no column 'category', only text, intent; it needs text and category",
        ),
        ([["text", "category"]], "has no rows"),
        ([], "has no column 'text', only none"),
    ],
)
def test_a_file_that_cannot_be_used_is_told(tmp_path, rows, told):
    """By its name, with what it lacks."""
    for part in ("train", "test"):
        save(tmp_path / "banking77" / f"{part}.csv.gz", rows)
    with pytest.raises(UserError, match=f"train.csv.gz {told}"):
        sets.banking77(str(tmp_path))


@pytest.mark.parametrize(
    ("train", "test", "domains", "told"),
    [
        ("xy", "xyz", {"one": ["x"], "two": ["y"]}, "class 'z' is tested but never trained"),
        ("xy", "xy", {"one": ["x", "y"], "two": ["y"]}, "class 'y' is in experiences 1 and 2"),
        ("x", "xy", {"one": ["x"], "two": ["y"]}, "class 'y' of experience . has no training examples"),
        ("xy", "x", {"one": ["x"], "two": ["y"]}, "class 'y' of experience . has no test examples"),
        ("xy", "xy", {"one": ["x"], "two": ["w"]}, "class 'w' of .*domains.json has no examples"),
    ],
)
def test_a_folder_whose_classes_do_not_fit_is_told(tmp_path, train, test, domains, told):
    """Before anything is encoded or learnt, by the command's own function."""
    clinc(tmp_path, [[c * 2, c] for c in train], [[c, c] for c in test], domains)
    with pytest.raises(UserError, match=told):
        main.continual(["clinc150"], None, None, "quick", str(tmp_path), str(tmp_path / "out"), 1, print)
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_is_told(tmp_path, monkeypatch):
    """Scenarios, methods, seeds, data."""
    monkeypatch.delenv("NESTLING_DATA", raising=False)
    arguments: dict[str, Any] = {
        "scenarios": ["split-digits"], "methods": None, "seeds": None, "size_name": "quick", "data": None,
        "out": str(tmp_path), "jobs": 1, "say": print,
    }  # fmt: skip
    for change, told in (
        ({"scenarios": ["cifar"]}, "unknown scenario cifar; choose from clinc150"),
        ({"methods": ["dreams"]}, "unknown method dreams; choose from nearest class mean"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\] must be some numbers, each once"),
        ({"seeds": [main.TUNING]}, "which is tuned on"),
        ({"jobs": 0}, "jobs=0 must be at least 1"),
        (
            {"scenarios": ["dbpedia70-cil"], "data": str(tmp_path)},
            "cil_text/dbpedia_train.csv.gz is not here: put github.com",
        ),
    ):
        with pytest.raises(UserError, match=told):
            main.continual(**(arguments | change))


def test_pixels_have_an_order_in_every_domain():
    """The same images, another permutation each, the same for training and test."""
    images = torch.arange(40.0).view(10, 4)
    data = Labelled(Examples(images, torch.arange(10) % 2), Examples(images, torch.arange(10) % 2), ("a", "b"))
    stream = permuted(data, 3, torch.Generator().manual_seed(0))
    orders = []
    for experience in stream.experiences:
        first = [part.inputs[part.inputs.sum(-1).argmin()].tolist() for part in (experience.train, experience.test)]
        assert first[0] == first[1] and sorted(first[0]) == [0.0, 1.0, 2.0, 3.0]
        orders.append(tuple(first[0]))
    assert len(set(orders)) == 3 and stream.chance() == [0.5] * 3


def test_texts_are_encoded_once(tmp_path):
    """Each text once, whatever its order, and never again."""
    seen: list[list[str]] = []

    def make():
        def encode(texts):
            seen.append(list(texts))
            return torch.tensor([[float(len(text))] for text in texts])

        return encode

    found = table(["bb", "a", "bb"], tmp_path, "lengths", make)
    assert seen == [["a", "bb"]] and found(["bb", "a"]).tolist() == [[2.0], [1.0]]
    table(["a", "bb"], tmp_path, "lengths", make)
    assert len(seen) == 1
    table(["a", "bb"], tmp_path, "another", make)
    table(["a", "bb", "c"], tmp_path, "lengths", make)
    assert len(seen) == 3


def test_every_method_gets_as_many_trials():
    """Six, or nothing to tune; and the bytes of the buffers are those of the methods they are named after."""
    assert {len(contender.settings) for contender in CONTENDERS.values()} == {1, 6}
    x, labels = torch.randn(40, 16), torch.arange(40) % 10
    problem = Problem(16, 32, 10, 0)
    heads = {}
    for name in ("SLDA", "RanPAC", "replay, bytes of SLDA", "replay, bytes of RanPAC", "replay MLP, bytes of RanPAC"):
        heads[name] = CONTENDERS[name].make(problem, CONTENDERS[name].settings[0])
        for _ in range(6):
            heads[name].observe(x, labels)
    assert problem.lda_bytes() == heads["SLDA"].bytes() and problem.ranpac_bytes() == heads["RanPAC"].bytes()
    for name in ("SLDA", "RanPAC"):
        assert 0.9 * heads[name].bytes() < heads[f"replay, bytes of {name}"].bytes() <= heads[name].bytes()
    assert heads["replay MLP, bytes of RanPAC"].bytes() <= heads["RanPAC"].bytes()


def test_a_run_goes_all_the_way_and_nothing_runs_twice(tmp_path, monkeypatch):
    """From scikit-learn's digits to the page, in all three columns of a table; a second command takes every number from disk."""
    pytest.importorskip("sklearn")
    monkeypatch.setattr(main, "side_by_side", lambda f, tasks, jobs: ((task, f(*task)) for task in tasks))
    said: list[str] = []
    given = (
        ["split-digits", "split-digits-task"],
        ["SLDA", "linear probe", "memory"],
        [3],
        "quick",
        None,
        str(tmp_path),
        1,
    )
    results = main.continual(*given, said.append)
    assert len(said) == 2 + 2 * 3 and results["ours"] == ["memory"]
    met = {
        name: pages.MEASURES["last"](one["runs"][0])
        for name, one in results["scenarios"]["split-digits"]["methods"].items()
    }
    assert met["memory"] > 90 > 60 > met["linear probe"]
    page = pages.html(results)
    assert page.count("<svg") == 4 and page.count("memory *") == 2 + 2 and "Lopez-Paz" in pages.markdown(results)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")}
    assert json.dumps(main.continual(*given, said.append)) == json.dumps(results)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")} == files


RESULTS = Path(__file__).parents[2] / "docs" / "results" / "continual.json"


def test_the_page_is_what_was_measured():
    """The tables in the documentation are those that the data beside them give."""
    results = json.loads(RESULTS.read_text())
    assert pages.markdown(results) == RESULTS.with_suffix(".md").read_text()
