"""Exams: every generator against a solver that knows the definition alone, metrics against their definitions, the harness."""

import gzip
import json
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nestling.errors import UserError
from nestling.evals.exams import main
from nestling.evals.exams.alphabet import Characters
from nestling.evals.exams.babilong import Babilong, background, parsed, right, stories
from nestling.evals.exams.book import sentences
from nestling.evals.exams.contenders import CONTENDERS, PARAMETERS, WIDTH, Contender, Pooled, Reader
from nestling.evals.exams.exams import EXAMS, MAD, NEEDLES, OTHERS, RECALL
from nestling.evals.exams.learn import Size, judge, run
from nestling.evals.exams.mad import Compression, FuzzyRecall, Memorisation, Recall, SelectiveCopying
from nestling.evals.exams.metrics import accuracy, by_order, exact, macro_accuracy
from nestling.evals.exams.mqar import MQAR
from nestling.evals.exams.needles import REPEATED, Needles, ruler, string_match
from nestling.evals.exams.regression import Regression
from nestling.evals.exams.task import IGNORED, Batch, Exam, batches, drawn
from nestling.evals.formal.contenders import count
from nestling.report import exams as pages

NOISY = Recall(symbols=32, noise_symbols=16, noise=0.2)


def recall(read, keys, noise):
    """After a key that was followed by a value before, say that value again."""
    return [
        next((read[j + 1] for j in range(at) if j % 2 == 0 and read[j] == symbol), None)
        if at % 2 == 0 and symbol < keys and symbol < noise
        else None
        for at, symbol in enumerate(read)
    ]


def fuzzy(read, keys, padding):
    """In letters: the value that stood behind the same run of key symbols, symbol by symbol."""
    text = "".join("." if s == padding else "abcdefgh"[s] if s < keys else "ABCDEFGH"[s - keys] for s in read)
    answers = [None] * len(read)
    told = {}
    for pair in re.finditer("([a-h]+)([A-H]*)", text):
        key, value = pair.groups()
        for place, letter in enumerate(told.get(key, "")):
            if pair.end(1) - 1 + place < len(answers):
                answers[pair.end(1) - 1 + place] = keys + "ABCDEFGH".index(letter)
        told.setdefault(key, value)
    return answers


def copied(read, symbols):
    """Behind the sign, what was no blank before it."""
    at = read.index(symbols - 1)
    told = [symbol for symbol in read[:at] if symbol != symbols - 2]
    return [None] * (at + 1) + told


def fitted(read, steps):
    """The only value at `x` of all lines through integers at both ends that agree with what was read; None where several do."""
    lines = [(left, right) for left in range(steps) for right in range(steps)]
    answers = []
    for at in range(0, len(read), 2):
        x, y = read[at], read[at + 1]

        def on(line, x=x):
            return steps + round(line[0] + (line[1] - line[0]) * x / (steps - 1))

        values = {on(line) for line in lines}
        answers += [values.pop() if len(values) == 1 else None, None]
        lines = [line for line in lines if on(line) == y]
    return answers


def looked_up(read, pairs):
    """The value that is told behind a key at the beginning."""
    told = dict(zip(read[0 : 2 * pairs : 2], read[1 : 2 * pairs : 2], strict=True))
    return [told.get(symbol) if at >= 2 * pairs else None for at, symbol in enumerate(read)]


def remembered(task):
    """Knows what training says of every key."""
    learnt = drawn(task, 256, "training")
    known = dict(
        zip(learnt.inputs[:, 0::2].flatten().tolist(), learnt.targets[:, 1::2].flatten().tolist(), strict=True)
    )
    return lambda read: [known.get(read[at - 1]) if at % 2 else None for at in range(len(read))]


SOLVED = {
    "in-context recall": (Recall(), lambda read: recall(read, 8, 16)),
    "noisy recall": (NOISY, lambda read: recall(read, 8, 16)),
    "fuzzy recall": (FuzzyRecall(), lambda read: fuzzy(read, 7, 15)),
    "selective copying": (SelectiveCopying(), lambda read: copied(read, 16)),
    "compression": (Compression(), lambda read: read),
    "memorisation": (Memorisation(), remembered(Memorisation())),
    "MQAR 64": (MQAR(), lambda read: looked_up(read, 4)),
    "MQAR 256": (MQAR(256, 16), lambda read: looked_up(read, 16)),
}
every_task = pytest.mark.parametrize("name", SOLVED)


def solved(batch, solve):
    return torch.tensor([[-1 if s is None else s for s in solve(row.tolist())] for row in batch.inputs])


@every_task
def test_who_knows_the_definition_is_right_everywhere(name):
    """So every answer is determined by what was read before it, or learnt; a guess among the answers is worth the chance."""
    task, solve = SOLVED[name]
    batch = drawn(task, 60, "test")
    assert batch.inputs.shape == batch.targets.shape == (60, task.length) and int(batch.inputs.max()) < task.symbols
    assert (batch.targets != IGNORED).any(1).all()
    assert task.metric(solved(batch, solve), batch.targets) == 1.0


@every_task
def test_parts_and_seeds_are_apart_and_repeat(name):
    """The same words the same examples; test, validation and training share nothing."""
    task = SOLVED[name][0]
    assert torch.equal(drawn(task, 3, "test").inputs, drawn(task, 3, "test").inputs)
    found = [drawn(task, 20, part).inputs.tolist() for part in ("test", "validation", "training")]
    assert not any(row in other for rows, other in (found[:2], found[1:], found[::2]) for row in rows)


def test_guessing_is_worth_the_chance():
    """Among the values of recall, among those told in MQAR, and among all symbols of a copy."""
    random = Random(0)
    for task, guesses in (
        (Recall(), lambda read: range(8, 16)),
        (SelectiveCopying(), lambda read: range(14)),
        (MQAR(), lambda read: read[1:8:2]),
    ):
        batch = drawn(task, 200, "test")
        found = torch.tensor([random.choices(guesses(row), k=len(row)) for row in batch.inputs.tolist()])
        assert task.metric(found, batch.targets) == pytest.approx(task.chance, abs=0.03)
    batch = drawn(Compression(), 200, "test")
    constant = torch.tensor([[3] * 31 + [15]]).expand(200, -1)
    assert Compression().metric(constant, batch.targets) == pytest.approx(2 / 16)


@pytest.mark.parametrize("task", [Recall(), NOISY, FuzzyRecall()], ids=["recall", "noisy", "fuzzy"])
def test_prediction_is_learnt_of_every_symbol(task):
    """In training the target is the next symbol everywhere; judged targets are some of those."""
    learnt, judged = drawn(task, 10, "training"), drawn(task, 10, "test")
    assert torch.equal(learnt.inputs[:, 1:], learnt.targets[:, :-1])
    asked = judged.targets[:, :-1] != IGNORED
    assert torch.equal(judged.inputs[:, 1:][asked], judged.targets[:, :-1][asked]) and 0.01 < asked.float().mean() < 0.5


def test_fuzzy_keys_are_of_full_length_where_they_are_judged():
    """Three different symbols; in training one to three."""

    def sizes(part):
        text = ["".join("k" if s < 7 else "v" for s in row) for row in drawn(FuzzyRecall(), 50, part).inputs.tolist()]
        return {len(key) for row in text for key in re.findall("(?<=v)k+(?=v)", row)}

    assert sizes("test") == {3} and sizes("training") == {1, 2, 3}


def test_the_last_symbol_to_copy_has_no_place_of_its_own():
    """In mad-lab's setting it always stands right before the sign."""

    def last(task):
        rows = drawn(task, 100, "test").inputs.tolist()
        return {row.index(15) - max(at for at in range(row.index(15)) if row[at] < 14) for row in rows}

    assert last(SelectiveCopying(gaps=16)) == {1} and len(last(SelectiveCopying())) > 10


def test_queries_of_mqar_are_close_by_a_power_law():
    """One pair: its place is drawn with weights that fall as a power; with power 1 all alike."""
    for power in (0.01, 1.0):
        batch = drawn(MQAR(size=22, pairs=1, power=power), 4000, "test")
        places = (batch.targets != IGNORED).int().argmax(1).sub(2).div(2, rounding_mode="floor")
        weights, found = torch.arange(1, 11).double() ** (power - 1), torch.bincount(places, minlength=10) / 4000
        torch.testing.assert_close(found.double(), weights / weights.sum(), atol=0.03, rtol=0)


def test_limited_examples_come_once_before_any_comes_again():
    """An epoch of batches has all of them; endless tasks never repeat."""
    task = Recall(size=8, examples=12)
    stream = batches(task, 4, seed=0)
    epochs = [sorted(row for _ in range(3) for row in next(stream).inputs.tolist()) for _ in range(2)]
    assert epochs[0] == epochs[1] and len(set(map(tuple, epochs[0]))) > 10
    assert epochs[0] != sorted(row for _ in range(3) for row in next(batches(task, 4, seed=1)).inputs.tolist())
    fresh = batches(replace(task, size=40, examples=None), 4, seed=0)
    assert not torch.equal(next(fresh).inputs, next(fresh).inputs)


pairs_of_symbols = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from([IGNORED, 0, 1, 2, 3])), min_size=1, max_size=40
)


@given(pairs_of_symbols.filter(lambda rows: any(t != IGNORED for _, t in rows)))
@settings(max_examples=60, deadline=None)
def test_accuracies_are_what_they_say(rows):
    """One over symbols asked, the other over classes that occur as a target or as an answer."""
    found, targets = torch.tensor(rows).T[:, None]
    asked = [(f, t) for f, t in rows if t != IGNORED]
    assert accuracy(found, targets) == pytest.approx(sum(f == t for f, t in asked) / len(asked))
    shares = []
    for symbol in {s for pair in asked for s in pair}:
        there = [f == t for f, t in asked if t == symbol]
        shares.append(sum(there) / len(there) if there else 0.0)
    assert macro_accuracy(found, targets) == pytest.approx(sum(shares) / len(shares))


def test_two_examples_nearly_tell_a_line():
    """Whatever is determined is right, nothing of the first answer is, and more of later ones than of the second."""
    batch = drawn(Regression(steps=8, pairs=12), 80, "test")
    found = solved(batch, lambda read: fitted(read, 8))
    assert torch.equal(found[found >= 0], batch.targets[found >= 0])
    shares = by_order(found, batch.targets)
    assert len(shares) == 12 and shares[0] == 0.0 and shares[1] < 0.3 and shares[2] < shares[-1] and shares[-1] > 0.9


def test_an_answer_is_right_if_all_of_it_is():
    """Two answers in the first row, one of them wrong in one symbol; one in the second."""
    targets = torch.tensor([[IGNORED, 1, 2, IGNORED, 3, 4], [IGNORED, IGNORED, 5, 5, 5, IGNORED]])
    found = torch.tensor([[9, 1, 2, 9, 3, 9], [9, 9, 5, 5, 5, 9]])
    assert exact(found, targets) == 0.75


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recall(size=3), "an even number of symbols, at least 4"),
        (lambda: Recall(noise=0.2), "noise is from 0 to 1, and needs symbols"),
        (lambda: FuzzyRecall(size=17), "at least 18"),
        (lambda: FuzzyRecall(symbols=6), "keys of 3 different ones need 7"),
        (lambda: SelectiveCopying(size=32), "copying 16 symbols needs at least 33"),
        (lambda: Compression(size=1), "at least 2 of each"),
        (lambda: Memorisation(size=5), "an even number"),
        (lambda: Regression(steps=1), "at least 2 steps"),
        (lambda: MQAR(size=14), "at least 16"),
        (lambda: MQAR(size=64, symbols=8), "at least 10"),
        (lambda: Needles(size=300, hay="repeat"), r"need 3\d\d symbols"),
        (lambda: Needles(hay="repeat", alphabet=Characters("abc ")), r"the alphabet lacks '\\n', '-', '\.'"),
        (lambda: Needles(hay="repeat", keys=2, depth=0.5), "one single needle"),
        (lambda: Babilong(number=7), "qa7 is not one of"),
        (lambda: Babilong(size=20), r"need up to \d+ symbols"),
    ],
)  # fmt: skip
def test_what_is_too_short_or_cannot_be_written_is_told(make, message, data):
    """In one sentence each, before anything is drawn."""
    with pytest.raises(UserError, match=message):
        make()


BOOK = " ".join(f"The {n}th day was a long one, and nobody said “no” to it." for n in range(4000))
QA1 = """1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Daniel went back to the hallway.
5 Mary moved to the garden.
6 Where is Mary? \tgarden\t5
1 Sandra went to the kitchen.
2 Where is Sandra? \tkitchen\t1
"""


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A book and a task of bAbI where they would be."""
    (tmp_path / "haystack").mkdir()
    (tmp_path / "haystack" / "war_and_peace.txt.gz").write_bytes(gzip.compress(BOOK.encode()))
    (tmp_path / "babi").mkdir()
    with zipfile.ZipFile(tmp_path / "babi" / "babi_en.zip", "w") as archive:
        for part in ("train", "test"):
            archive.writestr(f"en/qa1_single-supporting-fact_{part}.txt", QA1 * 10)
    monkeypatch.setenv("NESTLING_DATA", str(tmp_path))
    for cached in (sentences, stories):
        cached.cache_clear()
    yield
    for cached in (sentences, stories):
        cached.cache_clear()


SINGLE = ["S-NIAH-1", "S-NIAH-2", "S-NIAH-3", "MK-NIAH-1", "MK-NIAH-2", "MK-NIAH-3", "MV-NIAH", "MQ-NIAH"]


def spelt(symbols):
    return bytes(symbol - 3 for symbol in symbols).decode()


@pytest.mark.parametrize("name", NEEDLES)
def test_needles_are_rulers(name, data):
    """So many needles, keys and questions as RULER has; who searches the text finds every answer; the length is the one given."""
    task, random = ruler(1500)[name], np.random.default_rng(3)
    needles = {"MK-NIAH-1": 4, "MV-NIAH": 4, "MQ-NIAH": 4}.get(name, 1)
    for _ in range(10):
        prompt, answers = task.text(random, "test")
        context, question = prompt.rsplit("\nWhat ", 1)
        told = re.findall(r"One of the special magic (\w+) for (\S+) is: (\S+)\.", context)
        assert (
            len(told) == needles
            if ("NIAH-2" not in name[2:] and "NIAH-3" not in name[2:]) or name[0] == "S"
            else len(told) > needles
        )
        assert len(prompt) + sum(map(len, answers)) + 2 * len(answers) - 1 == task.size
        asked = [key for _, key, _ in told if re.search(rf"for .*{key}.* mentioned", question)]
        assert {value for _, key, value in told if key in asked} == set(answers)
        assert len(answers) == (4 if name in ("MV-NIAH", "MQ-NIAH") else 1)
        assert string_match(f"they are {', '.join(answers[::-1]).upper()}", answers) == 1.0
        kinds = {"numbers": r"[1-9]\d{6}", "uuids": r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"}
        assert all(re.fullmatch(kinds[task.value], answer) for answer in answers)
    inputs, targets = task.draw(np.random.default_rng(3), "test")
    said = spelt([target for target in targets if target != IGNORED])
    assert said == "".join(ruler(1500)[name].text(np.random.default_rng(3), "test")[1]) and len(inputs) == 1499


def test_a_needle_lies_at_its_depth(data):
    """The share of the lines before it; and the straw of S-NIAH-1 is one line."""
    for depth in (0.0, 0.5, 1.0):
        prompt, _ = Needles(4096, "repeat", depth=depth).text(np.random.default_rng(0), "test")
        lines = prompt.split("\n")[1:-1]
        (at,) = [n for n, line in enumerate(lines) if line.startswith("One of")]
        assert at == int((len(lines) - 1) * depth)
        assert all(REPEATED.endswith(line) for line in lines if not line.startswith("One"))


def test_parts_of_the_book_share_no_sentence(data):
    """And they are plain: ASCII, a byte a character."""
    parts = [set(sentences(part)) for part in ("training", "validation", "test")]
    assert not parts[0] & parts[2] and not parts[1] & parts[2] and 'said "no" to' in " ".join(parts[2])
    assert all(map(str.isascii, parts[0]))


def test_stories_are_read_as_babilong_reads_them():
    """Each question with the facts of its story so far, and without the other questions."""
    first, second, third = parsed(QA1)
    assert first.facts == ("Mary moved to the bathroom.", "John went to the hallway.") and first.answer == "bathroom"
    assert (
        len(second.facts) == 4
        and second.question == "Where is Mary?"
        and third.facts == ("Sandra went to the kitchen.",)
    )


def test_facts_stand_in_order_among_the_book(data):
    """The context has the size given; what is no fact is the book; at size 0 there is no book."""
    task, random = Babilong(1, 600), np.random.default_rng(0)
    for story in stories(1, "test")[:6]:
        context = spelt([s for piece in task.pieces(story, random, "test") for s in piece])
        assert len(context) == 600
        found = [context.index(f"{fact} ") for fact in story.facts]
        assert found == sorted(found)
        for fact in story.facts:
            context = context.replace(f"{fact} ", "", 1)
        assert context.rstrip() in " ".join(sentences("test") * 2)
        alone = [s for piece in Babilong(1).pieces(story, random, "test") for s in piece]
        assert spelt(alone) == "".join(f"{fact} " for fact in story.facts)
    batch = drawn(task, 4, "test")
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        text, answer = spelt(inputs), spelt([t for t in targets if t != IGNORED])
        who = re.search(r"Question: Where is (\w+)\? Answer: ", text)[1]
        assert answer == re.findall(rf"{who} (?:moved|went)[a-z ]* (\w+)\.", text.split("Question")[0])[-1] + "."


def test_any_length_is_made_piece_by_piece(data):
    """A million symbols, none of which is held but its sentence; short sentences are left out."""
    pieces = Babilong(1, 10**6).pieces(stories(1, "test")[0], np.random.default_rng(0), "test")
    assert sum(map(len, pieces)) == 10**6
    assert [spelt(s) for s in background(("Long enough.", "No."), 1, 20, Babilong(1).alphabet)] == [
        "Long enough. ",
        "Long en",
    ]


@pytest.mark.parametrize(
    ("found", "fine"),
    [
        ("garden", True), ("The garden.", True), ("GARDEN. It was the kitchen before", True), ("the garden or the kitchen", False),
        ("kitchen", False), ("", False), ("the garden <example> kitchen", True), ("I said so. garden", False),
    ],
)  # fmt: skip
def test_answers_are_scored_as_officially(found, fine):
    """The only label of the task before the first full stop; labels of the question never count."""
    assert right("garden", found, "Where is Mary?", 1) is fine
    assert right("garden", f"garden, from the kitchen {found}", "Where was the football before the kitchen?", 3)


@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.parametrize("task", [Recall(), Compression()], ids=["recall", "compression"])
def test_parameters_are_matched(name, task):
    """Within 2%, besides embedding and head, and the decoder of what is pooled."""
    model = CONTENDERS[name].model(task)
    inner = model.reader if isinstance(model, Pooled) else model
    assert isinstance(inner, Reader)
    assert count(inner) - 2 * task.symbols * WIDTH == pytest.approx(PARAMETERS, rel=0.02)
    assert model(drawn(task, 2, "test").inputs).shape == (2, task.length, task.symbols)


def test_pooled_answers_come_out_of_the_last_state_alone():
    """What no place's own state can say; the places tell them apart."""
    torch.manual_seed(0)
    model = CONTENDERS["Transformer++"].model(Compression())
    inputs = drawn(Compression(), 2, "test").inputs
    state = model.reader.model.model(inputs).last_hidden_state[:, -1:]
    torch.testing.assert_close(model(inputs), model.reader.model.lm_head(model.decoder(state + model.places)))
    assert (model(inputs).diff(dim=1).abs().amax((0, 2)) > 0).all()


SMALL = Size(steps=40, tokens=256, look=20, validation=16, test=16, seeds=(0,))
EASY = Memorisation(symbols=9, size=8)


def test_a_run_learns_repeats_and_says_what_does_not_fit():
    """A map of four keys is learnt; a task longer than a contender holds has no score, which is not 0."""
    contender = Contender({"mixer": "attention", "num_attention_heads": 2}, holds=16)
    exam = Exam((EASY,), {"long": replace(EASY, size=24), "short": replace(EASY, size=4)})
    first = run(exam, contender, 3e-3, 0, SMALL)
    assert first["score"] > 0.9 and first["further"]["long"] is None and first["further"]["short"] > 0.9
    assert first | {"seconds": 0} == run(exam, contender, 3e-3, 0, SMALL) | {"seconds": 0}
    assert first["steps"] < 40 or first["curve"][-1][0] == 40


def test_a_run_that_diverges_has_no_score():
    """Which is not 0: it ends, every score is NaN, the page says so, and its rate is not chosen."""
    contender = Contender({"mixer": "attention", "num_attention_heads": 2})
    met = run(Exam((EASY,), {"short": replace(EASY, size=4)}), contender, 1e30, 0, SMALL)
    assert met["steps"] < 10 and np.isnan([met["score"], met["validation"], met["further"]["short"]]).all()
    assert pages.score([met["score"], 0.5]) == "not finite"
    assert main._merit(met) < main._merit({"validation": 0.0, "steps": 40, "loss": 9.0})


class Knowing(nn.Module):
    """Looks up in MQAR, in batches of any size."""

    def forward(self, symbols):
        found = solved(Batch(symbols, symbols), lambda read: looked_up(read, 4)).clamp(min=0)
        return 20.0 * nn.functional.one_hot(found, 1024).float()


def test_judging_takes_all_examples_together():
    """Whatever the batches are."""
    batch = drawn(MQAR(), 10, "test")
    assert judge(Knowing(), MQAR(), batch, 3)[0] == judge(Knowing(), MQAR(), batch, 10)[0] == 1.0


@pytest.fixture
def invented(monkeypatch, tmp_path):
    """Outcomes by rate; counts how often something is run."""
    calls = []
    validation = {3e-3: 0.5, 8e-3: 0.75}

    def run(exam, contender, lr, seed, size):
        calls.append((lr, seed))
        further = {name: None if name.startswith("8192") else 0.5 for name in exam.further}
        met = {
            "parameters": 420_000,
            "steps": 40,
            "loss": 1.0,
            "seconds": 2.0,
            "curve": [[20, 0.1], [40, validation[lr]]],
        }
        return met | {
            "validation": validation[lr],
            "score": 0.6 + 0.1 * seed,
            "by_order": [0.5, 0.9],
            "further": further,
        }

    monkeypatch.setattr(main, "run", run)
    monkeypatch.setattr(main, "side_by_side", lambda function, tasks, jobs: ((task, function(*task)) for task in tasks))
    return calls, lambda *names, models=("Hope",): main.exams(
        list(names), list(models), [0, 1], "default", str(tmp_path), 1, lambda line: None
    )


def test_the_rate_is_chosen_by_validation_and_nothing_runs_twice(invented):
    """The first seed tries all rates, the others the best of them; a second call runs nothing."""
    calls, once = invented
    results = once("compression")
    (met,) = results["exams"]["compression"]["models"].values()
    assert met["lr"] == 8e-3 and calls == [(3e-3, 0), (8e-3, 0), (8e-3, 1)]
    assert once("compression")["exams"] == results["exams"] and len(calls) == 3


def test_the_page_shows_scores_with_their_spread_beside_the_papers(invented, data):
    """In %; what does not fit is said; a map of needles has its lengths and depths."""
    results = invented[1]("compression", "S-NIAH-1", models=("Hope", "Titans"))
    page = pages.markdown(results)
    assert "| compression | 65.0 ± 7.1 | 65.0 ± 7.1 | 12.5 |" in page and "| compression | 49.4 | 49.8 | 51.2 |" in page
    assert "does not fit" in page and "8192 at 0.25" in page and "420,000" in page
    assert pages.html(results).count("<svg") == 2


def test_every_exam_can_be_made(data):
    """Those of MAD and MQAR without any data; lengths grow from lesson to lesson."""
    for name in (*MAD, *RECALL, *OTHERS, "S-NIAH-2", "BABILong qa1"):
        exam = EXAMS[name]()
        assert all(task.symbols == exam.task.symbols for task in (*exam.lessons, *exam.further.values()))
        assert [task.length for task in exam.lessons] == sorted(task.length for task in exam.lessons)


def test_unknown_names_are_told():
    """With what there is to choose from."""
    with pytest.raises(UserError, match=r"unknown exam chess.*compression"):
        main.exams(["chess"], None, None, "quick", "nowhere", 1, print)
    with pytest.raises(UserError, match=r"unknown model Sloth.*Hope"):
        main.exams(["compression"], ["Sloth"], None, "quick", "nowhere", 1, print)
    with pytest.raises(UserError, match="jobs=0"):
        main.exams(None, None, None, "quick", "nowhere", 0, print)


def test_the_page_is_what_was_measured():
    """The tables in the documentation are those that the data beside it give."""
    folder = Path(__file__).parents[2] / "docs" / "results"
    results = json.loads((folder / "exams.json").read_text())
    assert pages.markdown(results) == (folder / "exams.md").read_text()
