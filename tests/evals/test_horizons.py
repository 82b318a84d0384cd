"""Horizons: facts lie where they should, the control differs in them alone, recall is what it says, a run goes all the way."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import pytest
import torch

from nestling.errors import UserError
from nestling.evals.demo import setup as demo
from nestling.evals.demo.measures import bits
from nestling.evals.demo.setup import FAST, SLOW, model_config
from nestling.evals.horizons import main
from nestling.evals.horizons.documents import Documents, documents, made_up, plain, sentence, telling, to_tune, tokens
from nestling.evals.horizons.learn import curve, ends, readers, recalled, run
from nestling.evals.horizons.setup import FASTEST, SETTINGS, SIZES, Size, levels, periods
from nestling.levels.level import as_levels
from nestling.models import HopeForCausalLM
from nestling.report import horizons as pages
from nestling.train import english_prose

TINY = Size(
    demo.Size((0, 1), 4_096, 512, 300, 900, 512),
    python=300, prose=1_024, tuning=300, facts=2, times=2, settings=("frozen", "64 alone", "2 levels, 512"),
    factors=(0.5, 1.0), further=1, calibration=512,
)  # fmt: skip


BOOK = " ".join(f"the {n}th day" for n in range(10_000))  # in the place of the novel: nothing in it comes twice


@pytest.fixture(autouse=True)
def book(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the novel would be."""
    place = tmp_path / "data" / "haystack" / "war_and_peace.txt.gz"
    place.parent.mkdir(parents=True)
    place.write_bytes(gzip.compress(BOOK.encode()))
    monkeypatch.setenv("NESTLING_DATA", str(tmp_path / "data"))


@pytest.fixture(scope="module")
def model() -> HopeForCausalLM:
    torch.manual_seed(0)
    return HopeForCausalLM(model_config("Transformer++"))


def text(ids: torch.Tensor) -> bytes:
    return bytes((ids - 3).tolist())


@pytest.mark.parametrize("slowest", [512, 2048, 8192])
def test_periods_go_from_the_fastest_to_the_slowest_in_equal_ratios(slowest: int) -> None:
    """As nearly as powers of two can; one level is the slowest one."""
    assert periods(1, slowest) == (slowest,)
    for count in (2, 3, 4):
        found = periods(count, slowest)
        ratios = [slow / fast for fast, slow in itertools.pairwise(found)]
        assert found[0] == FASTEST and found[-1] == slowest and len(found) == count
        assert min(ratios) >= 2 and max(ratios) <= 4 * min(ratios)
        assert SETTINGS[f"{count} levels, {slowest}"] == found


def test_all_settings_have_the_same_care() -> None:
    """The same rules and clips, the slow levels' rates sum to the same, the factor multiplies every rate."""
    for given in SETTINGS.values():
        found = as_levels(levels(given, 2.0))
        fast, slow = [one for one in found if one.period == FASTEST], [one for one in found if one.period > FASTEST]
        assert tuple(one.period for one in found) == given
        assert [(one.rule, one.clip, one.lr) for one in fast] in ([], [(FAST.rule, FAST.clip, 2 * FAST.lr)])
        assert {(one.rule, one.clip) for one in slow} <= {(SLOW.rule, SLOW.clip)}
        assert sum(one.lr for one in slow) == pytest.approx(2 * SLOW.lr if slow else 0)
    assert len(SIZES["default"].factors) >= 4


def test_facts_stand_in_the_first_quarter() -> None:
    """Each as often as it should, spread over it; the rest is the text, none of it lost but its end."""
    size = SIZES["default"]
    for document in documents(size, seed=3).prose:
        whole, quarter = text(document.ids), text(document.ids[: size.prose // 4])
        assert len(document.ids) == len(document.plain) == size.prose
        for fact in document.facts:
            said = text(sentence(fact.name, fact.choices[document.said]))
            assert whole.count(said) == quarter.count(said) == size.times
            assert (
                quarter.index(said)
                < len(quarter) / size.times
                < len(quarter) * (1 - 1 / size.times)
                < quarter.rindex(said)
            )
            assert all(value.encode() not in whole for value in fact.choices if value != fact.choices[document.said])
        facts = sum(len(sentence(fact.name, fact.choices[0])) for fact in document.facts) * size.times
        assert int((~document.plain).sum()) == facts
        assert text(document.ids[document.plain]) == BOOK.encode()[: size.prose - facts]


def test_the_control_differs_in_the_values_alone() -> None:
    """Byte for byte: nowhere but in the digits, and there both documents have digits."""
    first, second = documents(SIZES["default"], seed=0).prose
    differ = first.ids != second.ids
    assert torch.equal(first.plain, second.plain) and not (differ & first.plain).any()
    digits = {*b"0123456789"}
    assert set(text(first.ids[differ])) <= digits and set(text(second.ids[differ])) <= digits
    assert first.facts == second.facts and (first.said, second.said) == (0, 1)
    for name, fact in ((fact.name.encode(), fact) for fact in first.facts):
        after = [text(d.ids).split(b"code of " + name + b" is ")[1][:5].decode() for d in (first, second)]
        assert after == [fact.choices[0], fact.choices[1]]


def test_no_value_belongs_to_two_facts() -> None:
    """Ten choices each, all different, of five digits; other seeds make up others."""
    facts = made_up(8, seed=0)
    values = [value for fact in facts for value in fact.choices]
    assert len(set(values)) == 80 and all(len(value) == 5 and value.isdigit() for value in values)
    assert len({fact.name for fact in facts}) == 8
    assert facts == made_up(8, seed=0) and not {fact.name for fact in facts} & {
        fact.name for fact in made_up(8, seed=1)
    }


def test_more_facts_than_there_is_room_for_are_told() -> None:
    """With what to do."""
    with pytest.raises(ValueError, match="20 sentences do not fit the first quarter of 1000 bytes; tell fewer"):
        telling(tokens("a" * 1000), made_up(4, seed=0), 0, times=5)


def test_rates_are_tuned_on_other_documents() -> None:
    """No hundred bytes of the document to tune by are in those that are measured."""
    size = SIZES["default"]
    tuning = text(to_tune(size).ids)
    given = documents(size, seed=0)
    measured = text(given.python.ids) + text(given.prose[0].ids)
    assert len(tuning) == size.tuning
    assert not any(tuning[i : i + 100] in measured for i in range(0, len(tuning) - 100, 100))


def test_bits_by_position() -> None:
    """Every plain byte but the first counts where it stands, and no other byte does."""
    assert ends(700) == [256, 512, 700] and ends(512) == [256, 512] and ends(100) == [100]
    losses = torch.arange(1, 700).double()  # the loss of byte i is i
    is_plain = torch.ones(700, dtype=torch.bool)
    is_plain[300:512] = False
    found = curve(losses, is_plain)
    expected = [bits(torch.arange(*bounds).double()) for bounds in ((1, 256), (256, 300), (512, 700))]
    assert found["by_position"] == pytest.approx(expected) and found["ends"] == [256, 512, 700]
    assert found["second_half"] == pytest.approx(expected[-1])  # bytes 350 to 511 tell facts
    assert found["bits"] == pytest.approx((255 * expected[0] + 44 * expected[1] + 188 * expected[2]) / 487)


def test_what_is_recalled() -> None:
    """Two facts, two documents: one fact is known by name, the other is thought to have the first one's value."""

    def fact(said: float, other: float, rest: float, elsewhere: float, which: int) -> dict[str, list[float]]:
        choices = [said, other] if which == 0 else [other, said]
        return {"choices": [*choices, *[rest] * 8], "elsewhere": [elsewhere]}

    pair = [[fact(3, 9, 8, 5, which), fact(6, 7, 5, 4, which)] for which in (0, 1)]
    assert recalled(pair) == {"bits": 4.5, "control": 8.0, "right": 0.5, "among": 0.5}


def test_only_what_learns_can_know(model: HopeForCausalLM) -> None:
    """Frozen, both documents leave the same; a level that moved expects a value where it was said."""
    prose = tokens("a b c d " * 128)
    facts = made_up(1, seed=0)
    first, second = (telling(prose, facts, said, times=6) for said in (0, 1))
    given = Documents(plain(prose[:300]), (first, second))
    frozen = run(readers(model, (), 1.0, prose), given)
    learnt = run(readers(model, (FASTEST,), 1.0, prose), given)
    assert frozen["recall"]["bits"] == frozen["recall"]["control"] and frozen["bytes"] == 0 < learnt["bytes"]
    assert learnt["recall"]["bits"] < learnt["recall"]["control"]
    assert learnt["prose"]["second_half"] < frozen["prose"]["second_half"]
    assert learnt["bytes_read"] == 300 + 2 * 1024


def test_every_document_has_a_reader_of_its_own(model: HopeForCausalLM) -> None:
    """A second reading is as the first, whatever was read between."""
    new = readers(model, (FASTEST, 128), 1.0, tokens(english_prose()[:300]))
    python = tokens("def f(x):\n    return x\n" * 20)
    first = new().observe(python)
    assert not torch.equal(new().observe(tokens(english_prose()[:400]))[:100], first[:100])
    assert torch.equal(new().observe(python), first)


def met(given: tuple[int, ...], half: float, control: float, edge: bool = False) -> dict:
    """A setting whose two models differ by 0.2 bits."""
    recall = {"bits": 16.0, "control": control, "right": 0.5, "among": 0.25}

    def one(extra: float) -> dict:
        text = {
            "bits": 3.5 + extra,
            "second_half": half + extra,
            "ends": [256, 512],
            "by_position": [4.0, half + extra],
        }
        costs = {"seconds": 2.0, "bytes_read": 1536, "bytes": 2_000_000}
        return {"python": text, "prose": text, "recall": recall, **costs}

    return {"periods": given, "factor": 2.0, "edge": edge, "trials": [], "runs": [one(0.1), one(-0.1)]}


RESULTS = {
    "title": "T", "about": "A", "seeds": [0, 1], "python": 512, "prose": 512, "facts": 4, "times": 6,
    "settings": {
        "frozen": met((), 3.0, 16.0),
        "64 alone": met((64,), 2.5, 17.0, edge=True),
        "1 level, 512": met((512,), 2.8, 16.5),
        "2 levels, 512": met((64, 512), 2.4, 18.0),
    },
}  # fmt: skip


def test_the_report_says_what_was_measured() -> None:
    """Differences are taken model by model, and a factor at the edge is marked."""
    frozen, alone, _, two = pages.read(RESULTS["settings"])
    assert frozen[1:3] == ["–", "–"] and alone[2] == "2*" and two[1:3] == ["64, 512", "2"]
    assert two[3:6] == ["3.500 ± 0.141", "2.400 ± 0.141", "0.600 ± 0.000"] == two[6:]
    _, _, _, two = pages.known(RESULTS["settings"])
    assert two == ["2 levels, 512", "16.0 ± 0.0", "18.0 ± 0.0", "+2.0 ± 0.0", "50 ± 0", "25 ± 0", "2.0 ± 0.0", "2.0 MB"]
    assert {slow: list(found) for slow, found in pages.by_slowest(RESULTS["settings"]).items()} == {512: [1, 2]}


def test_the_page_has_every_setting() -> None:
    """Both tables with both drawings, and the same tables as Markdown."""
    page, plain_page = pages.html(RESULTS), pages.markdown(RESULTS)
    assert page.count("<svg") == 2
    for name in RESULTS["settings"]:
        assert page.count(f">{name}<") >= 2 and plain_page.count(f"| {name} |") == 2


def test_the_tables_in_the_documentation_are_those_of_the_measurement() -> None:
    """The page is the JSON, said in Markdown, and has every setting and every seed."""
    folder = Path(__file__).resolve().parents[2] / "docs" / "results"
    results = json.loads((folder / "horizons.json").read_text())
    assert pages.markdown(results) == (folder / "horizons.md").read_text()
    assert list(results["settings"]) == list(SETTINGS)
    for name, found in results["settings"].items():
        assert tuple(found["periods"]) == SETTINGS[name] and len(found["runs"]) == len(results["seeds"]) == 3
        assert found["factor"] == min(found["trials"], key=lambda trial: trial["bits"])["factor"]


def test_without_the_frozen_model_there_is_no_difference() -> None:
    """Some settings alone still make a page."""
    settings = {name: found for name, found in RESULTS["settings"].items() if name != "frozen"}
    assert all(row[5] == row[8] == "–" for row in pages.read(settings))
    assert pages.html(RESULTS | {"settings": settings}).count("<svg") == 2


def test_unknown_names_and_missing_books_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what there is to choose from, or what to do."""
    with pytest.raises(UserError, match=r"unknown setting 5 levels.*4 levels, 8192"):
        main.horizons(["5 levels"], "quick", "nowhere", 1, print)
    with pytest.raises(UserError, match="jobs=0 must be at least 1"):
        main.horizons(None, "quick", "nowhere", 0, print)
    monkeypatch.delenv("NESTLING_DATA")
    with pytest.raises(UserError, match=r"haystack/war_and_peace.txt.gz, and let NESTLING_DATA name"):
        main.horizons(None, "quick", "nowhere", 1, print)


@pytest.mark.slow
def test_a_tiny_run_goes_all_the_way_and_nothing_runs_twice(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From training to the page; the factor is the best one tried; a second command takes every number from disk."""
    monkeypatch.setitem(SIZES, "quick", TINY)
    said: list[str] = []
    results = main.horizons(None, "quick", str(tmp_path / "out"), 1, said.append)
    assert len(said) == 2 + 3 + 3 * 2  # models, factors, settings with each model
    for found in results["settings"].values():
        assert found["factor"] == min(found["trials"], key=lambda trial: trial["bits"])["factor"]
        assert len(found["runs"]) == 2
    assert pages.html(results).count("<svg") == 2
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/*/*")}
    again = main.horizons(None, "quick", str(tmp_path / "out"), 1, said.append)
    assert json.dumps(again) == json.dumps(results)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/*/*")} == files
