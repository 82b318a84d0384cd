"""The report says what the results say: every number, nothing that was not measured, nothing from outside the file."""

import copy
import functools
import io
import json
import math
import re
import statistics
import sys
from html.parser import HTMLParser

import pytest

pytest.importorskip("matplotlib")

from rich.console import Console

from nestling import report
from nestling.report import figures

HOSTILE = "<script>alert('$x^$')</script> & \"[red]_\x00"
FIGURES = (figures.stream, figures.gain, figures.frontier, figures.forgetting, figures.updates, figures.training)
VOID = {"meta", "br", "hr", "link", "img", "input"}


def per_seed(value: float, seeds: int) -> list[float]:
    return [value * (1 + 0.01 * seed) for seed in range(seeds)]


def a_curve(start: float, end: float, seeds: int, length: int = 100) -> dict:
    falling = [end + (start - end) * math.exp(-i / 20) + 0.1 * math.sin(i) for i in range(length)]
    return {
        "tokens": [512 * (i + 1) for i in range(length)],
        "bpb": [[v + 0.01 * s for v in falling] for s in range(seeds)],
    }


def a_model(name: str, bpb: float, seeds: int) -> dict:
    return {
        "name": name,
        "parameters": 1_234_567,
        "tokens": 7_654_321,
        "lr": 0.003,
        "heldout_bpb": per_seed(bpb, seeds),
        "tokens_per_s": per_seed(12_345.0, seeds),
        "peak_memory_mb": per_seed(456.0, seeds),
        "curve": a_curve(5.0, bpb, seeds),
    }


def a_learner(
    name: str, model: str, kind: str, last: float, old_after: float, seeds: int, step=None, updates=None
) -> dict:
    return {
        "name": name,
        "model": model,
        "kind": kind,
        "step": step,
        "stream": a_curve(3.0, last, seeds),
        "last_quarter_bpb": per_seed(last, seeds),
        "old_before_bpb": per_seed(2.0, seeds),
        "old_after_bpb": per_seed(old_after, seeds),
        "later_bpb": per_seed(last + 0.07, seeds),
        "tokens_per_s": per_seed(9_876.0, seeds),
        "peak_memory_mb": per_seed(543.0, seeds),
        "updates": updates or {},
    }


def a_result(seeds: int = 3) -> dict:
    updates = {"fast": [[0.02 / (i + 1) for i in range(99)]] * seeds, "slow": [[0.001, 0.0, 0.002]] * seeds}
    return {
        "schema": 1,
        "title": "nestling demo",
        "command": "nestling demo --quick",
        "date": "2026-11-22",
        "environment": {"python": "3.11.7", "torch": "2.13.0", "threads": 2, "device": "cpu"},
        "seeds": list(range(seeds)),
        "data": {
            "old": {"name": "English prose", "train_bytes": 600_001, "heldout_bytes": 60_001},
            "new": {"name": "Python source", "stream_bytes": 300_001, "later_bytes": 30_001},
        },
        "models": [a_model("Hope", 2.1, seeds), a_model("Plain", 2.2, seeds)],
        "learners": [
            a_learner("Hope, frozen", "Hope", "frozen", 2.9, 2.0, seeds),
            a_learner("Hope, two levels", "Hope", "levels", 2.3, 2.02, seeds, updates=updates),
            a_learner("Fine-tuning", "Plain", "sgd", 2.5, 2.4, seeds, step=0.1),
        ],
        "frontier": [{"name": "SGD", "points": [{"step": 0.1, "new_bpb": 2.5, "old_bpb": 2.4}, far_away()]}],
        "restart": {"identical": True, "max_difference": 0.0, "file_bytes": 7_400_000, "tokens": 300_001},
        "targets": [
            {"name": "Gain", "value": "−20.7 %", "target": "at most −5 %", "met": True},
            {"name": "Speed", "value": "0.60 ×", "target": "at least 0.7 ×", "met": False},
        ],
        "samples": [{"name": "Hope, two levels", "prompt": "def read(", "text": "path):\n    return path"}],
    }


def far_away() -> dict:
    return {"step": 10.0, "new_bpb": 60.0, "old_bpb": 70.0}


@functools.cache
def a_page(seeds: int = 3) -> str:
    return report.html(a_result(seeds))


def on_terminal(results: dict, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(report.tables(results))
    return console.file.getvalue()


class Page(HTMLParser):
    """What a browser would see: tags in balance, their attributes, and the text between them."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def test_summary_is_mean_and_sample_standard_deviation():
    assert report.summary([1.0, 2.0, 3.0]) == "2.000 ± 1.000"
    assert report.summary([1.5]) == "1.500"
    assert report.summary([-1.0, -2.0], "+.1f") == "−1.5 ± 0.7"
    assert report.summary([-0.01, 0.01], "+.1f") == "0.0 ± 0.0"
    assert report.summary([]) == "–"
    assert report.summary([1.0, None, 2.0]) == report.summary([1.0, math.nan]) == "not finite"


@pytest.mark.parametrize("seeds", [1, 3])
def test_every_number_of_the_tables_is_on_the_page_and_the_terminal(seeds):
    results = a_result(seeds)
    page, terminal = Page(a_page(seeds)).text, on_terminal(results)
    values = [value for model in results["models"] for value in [model["heldout_bpb"]]]
    for learner in results["learners"]:
        values += [learner[key] for key in ("last_quarter_bpb", "old_before_bpb", "old_after_bpb", "later_bpb")]
    for seen in (page, terminal):
        for value in values:
            assert f"{statistics.fmean(value):.3f}" in seen
        for text in (
            "1,234,567",
            "7,654,321",
            "0.003",
            "step 0.1",
            "−20.7",
            "+20.0",
            "not met",
            "1 of 2 met",
            "7.4 MB",
        ):
            assert text in seen
        assert ("±" in seen.replace("Mean ± sample", "")) == (seeds == 3)
        assert ("One seed" in seen) == (seeds == 1)


def test_speeds_memory_and_how_it_was_run_are_on_the_page():
    text = Page(a_page(1)).text
    for said in ("12,345", "456", "9,876", "543", "nestling demo --quick", "2026-11-22", "torch 2.13.0", "600,001"):
        assert said in text
    assert "lower is better" in text


def test_gain_is_paired_with_the_same_model_frozen_and_named_in_words():
    text = Page(a_page()).text
    assert "Hope, two levels : 20.7 ± 0.0 % fewer bits per byte on the new domain, 1.0 ± 0.0 % more" in text
    assert "Fine-tuning : 20.0 ± 0.0 % more bits per byte on the old." in text  # no frozen twin: no gain is claimed


def test_a_failed_restart_is_not_called_identical():
    results = a_result()
    results["restart"] |= {"identical": False, "max_difference": 0.25}
    text = Page(report.html(results)).text
    assert "NOT identical" in text and "0.25" in text


def test_page_needs_nothing_from_outside():
    page = Page(a_page())
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(page.tags)
    assert not [pair for pair in page.attributes if pair[0] in ("src", "srcset", "rel", "data")]
    assert all(value.startswith("#") for key, value in page.attributes if key in ("href", "xlink:href"))
    assert not re.search(r"https?://|@import|url\((?!#)", a_page())


def test_page_is_well_formed_with_unique_ids_that_resolve():
    source = a_page()
    page = Page(source)
    assert page.open == []
    ids = [value for key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    used = re.findall(r"url\(#([^)]+)\)", source) + [v[1:] for k, v in page.attributes if k == "href"]
    used += [value for key, value in page.attributes if key == "aria-labelledby"]
    assert used and set(used) <= set(ids)


def test_every_figure_has_a_title_for_those_who_do_not_see_it():
    for figure in FIGURES:
        drawing = figure(a_result())
        assert drawing.startswith("<svg") and 'role="img"' in drawing and "</title>" in drawing


def test_figures_are_small_whatever_the_length_of_the_stream():
    results = a_result()
    for learner in results["learners"]:
        learner["stream"] = a_curve(3.0, 2.0, 3, length=5000)
    assert len(figures.stream(results)) < 30_000
    assert "each point averages 105 neighbours" in figures.stream(results)


def test_names_are_text_wherever_they_come_from():
    results = a_result()
    for part in (
        *results["models"],
        *results["learners"],
        *results["frontier"],
        *results["targets"],
        *results["samples"],
    ):
        part["name"] = HOSTILE
    results["title"] = results["command"] = results["samples"][0]["text"] = HOSTILE
    results["environment"] = {HOSTILE: HOSTILE}
    results["data"]["old"]["name"] = HOSTILE
    results["learners"][1]["updates"] = {HOSTILE: [[0.1, 0.2]] * 3}
    page = report.html(results)
    assert "<script" not in page and "script" not in Page(page).tags
    assert "$x^$" in page  # not taken for mathematics
    assert "[red]" in on_terminal(results)


def test_parts_that_were_not_measured_are_left_out():
    results = a_result()
    results |= {"frontier": [], "restart": None, "targets": [], "samples": []}
    for learner in results["learners"]:
        learner["updates"] = {}
    for model in results["models"]:
        del model["curve"]
    text = Page(report.html(results)).text
    for heading in ("Targets", "New domain against old", "How far", "Training on", "restart", "Samples"):
        assert heading not in text
    assert "Reading the stream" in text
    assert "restart" not in on_terminal(results)
    for key in ("frontier", "restart", "targets", "samples"):
        del results[key]
    assert Page(report.html(results)).text == text


def test_a_diverged_seed_is_named_and_does_not_stop_the_report():
    results = a_result()
    bad = results["learners"][2]
    bad["last_quarter_bpb"][1] = None
    bad["old_after_bpb"][1] = math.nan
    bad["stream"]["bpb"][1][50:] = [None] * 50
    results["frontier"][0]["points"].append({"step": 99.0, "new_bpb": None, "old_bpb": math.nan})
    assert "not finite" in Page(report.html(results)).text
    assert "not finite" in on_terminal(results)


def test_a_level_that_never_updated_says_so():
    results = a_result()
    results["learners"][1]["updates"]["slow"] = [[], [], []]
    assert "slow: no update" in figures.updates(results)


def test_steps_far_outside_the_view_are_counted():
    assert "1 of the sweeps’ 2 steps" in figures.frontier(a_result())


@pytest.mark.parametrize("seeds", [1, 3])
def test_same_results_same_bytes_and_results_untouched(seeds):
    results = a_result(seeds)
    before = copy.deepcopy(results)
    assert a_page(seeds) == report.html(json.loads(json.dumps(results))) == report.html(results)
    assert results == before


def test_global_plot_settings_are_neither_read_nor_changed():
    import matplotlib

    expected = figures.stream(a_result())
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        assert figures.stream(a_result()) == expected
        assert dict(matplotlib.rcParams) == before


def test_long_names_fit_the_terminal():
    results = a_result()
    for part in (*results["models"], *results["learners"], *results["targets"]):
        part["name"] = "a name that is much longer than anybody should give " * 3
    lines = on_terminal(results, width=101).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 100
    assert "548" in on_terminal(results)


@pytest.mark.parametrize("make", [report.html, report.tables])
@pytest.mark.parametrize("wrong", [{}, {"schema": 2}, {"schema": "1"}, None, []])
def test_another_schema_is_refused_with_advice(make, wrong):
    with pytest.raises(ValueError, match=r"reads schema 1.*nestling demo"):
        make(wrong)


def test_what_does_not_fit_is_refused_by_name():
    results = a_result()
    del results["models"]
    with pytest.raises(ValueError, match="lack models"):
        report.html(results)
    results = a_result()
    results["learners"][1]["later_bpb"].pop()
    with pytest.raises(ValueError, match=r"two levels.*later_bpb has 2 values for 3 seeds"):
        report.html(results)
    results = a_result()
    results["learners"][0]["stream"]["bpb"][2].pop()
    with pytest.raises(ValueError, match="frozen', stream"):
        report.html(results)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "nestling\[report\]"'):
        report.html(a_result())
    assert "Hope" in on_terminal(a_result())
