"""Adaptation: the texts are apart, the sweeps are wide, what is claimed follows from the numbers, a run goes all the way."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nestling.continual.baselines import Frozen
from nestling.errors import UserError
from nestling.evals.adaptation import main
from nestling.evals.adaptation.contenders import CONTENDERS
from nestling.evals.adaptation.learn import run
from nestling.evals.adaptation.readers import Following, learning, with_levels
from nestling.evals.adaptation.setup import RECALL, SIZES, Size, Texts, texts
from nestling.evals.demo import setup as demo
from nestling.evals.demo.setup import FAST, PERIOD, SLOW, model_config
from nestling.models import HopeForCausalLM, Recall
from nestling.report import adaptation as pages

TINY = Size(demo.Size((0,), 4096, 512, 300, 900, 512), 300, 300, settings=2)


@pytest.fixture(scope="module")
def model() -> HopeForCausalLM:
    torch.manual_seed(0)
    return HopeForCausalLM(model_config("Transformer++"))


@pytest.fixture(scope="module")
def short() -> Texts:
    """Random tokens: a stream of two chunks and some."""
    draw = torch.Generator().manual_seed(0)
    a, b, again, old, later, sample = (torch.randint(3, 259, (n,), generator=draw) for n in (257, 300, 99, 64, 64, 600))
    return Texts({"A": a, "B": b, "A again": again}, old, later, sample)


def test_no_text_is_read_twice() -> None:
    """What judges is not in the stream, the two stretches of prose are not each other, and none of it was trained on."""
    size = SIZES["default"]
    found = texts(size)
    prose = bytes((torch.cat([found.stretches["A"], found.stretches["A again"], found.old]) - 3).tolist())
    trained = bytes((demo.domains(size.models, None).train - 3).tolist())
    assert len(prose) == size.models.heldout and prose not in trained
    assert [len(found.stretches[name]) for name in ("A", "B", "A again")] == [
        size.first, size.models.stream, size.again,
    ]  # fmt: skip
    assert len(found.old) >= 8192 and len(found.later) == size.models.later


def test_every_method_is_swept() -> None:
    """Over five steps or more, and over what else it has; a quick run takes two of the settings."""
    for name, contender in CONTENDERS.items():
        steps = {next(iter(setting.values()), None) for setting in contender.settings}
        assert len(steps) >= 5 or name == "frozen"
        assert len(main.settings(name, SIZES["quick"])) == (1 if name == "frozen" else 2)
        assert main.settings(name, SIZES["default"]) == contender.settings


@pytest.mark.parametrize("name", CONTENDERS)
def test_a_method_reads_the_whole_stream(model: HopeForCausalLM, short: Texts, name: str) -> None:
    """Every byte but the first is predicted; all begin as the same model, with a recall or without, and only those that nothing moves
    end as they began.
    """
    before = copy.deepcopy(model.state_dict())
    contender = CONTENDERS[name]
    setting = {"share": RECALL.share} if name == "recall" else contender.settings[-1]
    met = run(contender.make(model, short.sample, setting), short)
    assert [stretch["tokens"][-1] for stretch in met["stretches"].values()] == [256, 300, 99]
    still = run(Following(model, Frozen(), short.sample, contender.recall), short)
    assert met["judged"][""]["old"] == pytest.approx(still["judged"][""]["old"], rel=1e-5)
    assert met["stretches"]["A"]["bits"] == pytest.approx(still["stretches"]["A"]["bits"], rel=1e-5)  # one chunk
    moved = met["judged"]["B"]["old, as it stands"] != met["judged"][""]["old, as it stands"]
    assert moved == (name not in ("frozen", "recall"))
    assert (met["bytes"] == 0) == (name == "frozen")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_recall_is_the_same_over_a_baseline_and_over_levels(model: HopeForCausalLM, short: Texts) -> None:
    """Where nothing moves, in calls of any length; it reads better, and is asked nothing where weights are judged."""
    recall = Recall(100, sharpness=10.0)
    cache, levels = Following(model, Frozen(), short.sample, recall), [replace(FAST, lr=0.0)]
    reader = learning(model, levels, short.sample, recall)
    for ids in (short.stretches["B"], short.stretches["A again"]):
        torch.testing.assert_close(cache.observe(ids), reader.observe(ids), rtol=1e-4, atol=1e-4)
    plain = Following(model, Frozen(), short.sample)
    assert torch.equal(cache.evaluate(short.old), plain.evaluate(short.old))
    cache.end_context()  # nothing is recalled of a text that is over
    fresh = Following(model, Frozen(), short.sample, recall)
    assert torch.equal(cache.observe(short.stretches["B"]), fresh.observe(short.stretches["B"]))
    torch.testing.assert_close(reader.evaluate(short.old), plain.evaluate(short.old), rtol=1e-4, atol=1e-4)


def test_levels_at_rest_are_the_model(model: HopeForCausalLM) -> None:
    """Whatever the levels; and the fast one is gone after the end of its context."""
    ids = torch.arange(3, 60)[None]
    expected = model(ids).logits
    for levels in ((), (FAST,), (FAST, SLOW)):
        assert torch.equal(with_levels(model, levels, learning="off")(ids).logits, expected)


def test_the_end_of_a_context_resets_the_fast_level_and_the_stream_goes_on(
    model: HopeForCausalLM, short: Texts
) -> None:
    """A judgement after the context's end leaves the reader where it stood."""
    reader = CONTENDERS["fast level"].make(model, short.sample, {"factor": 1.0})
    fresh = reader.evaluate(short.old)
    reader.observe(short.stretches["A"].repeat(3)[: 2 * PERIOD + 9])
    standing = reader.evaluate(short.old)
    assert not torch.equal(standing, fresh)
    assert torch.equal(reader.rested().evaluate(short.old), fresh)
    assert torch.equal(reader.evaluate(short.old), standing)


def met(b: float, old: float, again: float = 2.0, step: float = 0.1) -> dict:
    """One setting whose three seeds agree: B at `b` bits, the old prose at `old` after it, 2.0 before."""
    stretches = {name: {"bits": x, "last_quarter": x} for name, x in (("A", 2.0), ("B", b), ("A again", again))}
    for stretch in stretches.values():
        stretch |= {"tokens": [1024, 2048], "bpb": [stretch["bits"], 2.0]}
    moments = {"": 2.0, "A": 2.0, "B": old, "A again": 2.0}
    judged = {name: {key: x for key in ("old", "later", "old, as it stands")} for name, x in moments.items()}
    one = {"stretches": stretches, "judged": judged, "seconds": 1.0, "bytes": 2_000_000}
    return {"setting": {"lr": step}, "runs": [one] * 3}


METHODS = {
    "frozen": [met(3.0, 2.0) | {"setting": {}}],
    "SGD": [met(1.9, 2.2, step=0.1), met(1.7, 2.4, again=2.5, step=0.2), met(float("nan"), 9.0, step=0.4)],
    "LoRA": [met(1.5, 2.2)],
    "two levels": [
        met(b, old) | {"setting": {"factor": factor}}
        for b, old, factor in ((1.8, 2.01, 0.5), (1.65, 2.1, 1), (1.6, 2.3, 2))
    ],
}


def test_a_method_stands_at_its_best_setting() -> None:
    """The fewest bits of B, never a run that diverged; forgetting and return are relative to what they should be."""
    _, sgd, lora, levels = pages.read(METHODS)
    assert sgd[1] == "lr 0.2" and sgd[3] == "1.700 ± 0.000" and levels[1] == "factor 2*"
    assert sgd[6] == "+0.500 ± 0.000" and sgd[7] == "2,048" and lora[7] == "1,024"
    _, sgd, _, _ = pages.kept(METHODS)
    assert sgd[1] == "+20.0 ± 0.0" and sgd[5] == "2.0 MB"


def test_ours_is_compared_at_a_stream_loss_as_good() -> None:
    """Of those that read B at most as badly the one that forgets least; none is none."""
    sgd, lora = pages.matched(METHODS, ["two levels"])
    assert sgd[:2] == ["SGD", "lr 0.2"] and sgd[4:6] == ["two levels", "factor 1"] and sgd[8] == "0.25"
    assert lora[4:] == ["–"] * 5


def test_the_line_goes_through_what_nothing_beats() -> None:
    """On both axes at once."""
    points = [(1.0, 5.0), (2.0, 3.0), (2.0, 4.0), (3.0, 3.0), (4.0, 1.0)]
    assert pages.efficient(points) == [(1.0, 5.0), (2.0, 3.0), (4.0, 1.0)]


def test_the_page_has_every_method() -> None:
    """Tables, frontier and stream."""
    page = pages.html({"title": "T", "about": "A", "ours": ["two levels"], "architectures": {"Hope": METHODS}})
    assert page.count("<svg") == 2 and all(page.count(name) >= 4 for name in METHODS)


def test_unknown_names_are_told() -> None:
    """With what there is to choose from."""
    with pytest.raises(UserError, match=r"unknown method Sloth.*LoRA"):
        main.adaptation(["Sloth"], None, "quick", "nowhere", 1, print)
    with pytest.raises(UserError, match="jobs=0 must be at least 1"):
        main.adaptation(None, None, "quick", "nowhere", 0, print)


@pytest.mark.slow
def test_a_tiny_run_goes_all_the_way_and_nothing_runs_twice(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From training to the page; a second command takes every number from disk."""
    monkeypatch.setitem(SIZES, "quick", TINY)
    said: list[str] = []
    results = main.adaptation(["frozen", "SGD", "two levels"], None, "quick", str(tmp_path), 1, said.append)
    assert len(said) == 1 + 1 + 2 + 2
    assert results["ours"] == ["two levels"] and "<svg" in pages.html(results)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/*")}
    again = main.adaptation(["frozen", "SGD", "two levels"], None, "quick", str(tmp_path), 1, said.append)
    assert json.dumps(again) == json.dumps(results)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/*")} == files


def test_the_page_is_what_was_measured() -> None:
    """The tables in the documentation are those that the data beside them give."""
    folder = Path(__file__).parents[2] / "docs" / "results"
    results = json.loads((folder / "adaptation.json").read_text())
    assert pages.markdown(results) == (folder / "adaptation.md").read_text()
