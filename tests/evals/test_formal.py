"""Formal languages: words and answers against recognisers that know nothing of the machines, judging, and the harness."""

import re
from itertools import accumulate, product
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nestling.errors import UserError
from nestling.evals.formal import main
from nestling.evals.formal.contenders import CONTENDERS, PARAMETERS, WIDTH, Blocks, count
from nestling.evals.formal.learn import Size, judge, run
from nestling.evals.formal.machines import END, MACHINES, S5
from nestling.evals.formal.words import BINS, IGNORED, batches, judged, tensors
from nestling.report import formal as pages


def balanced(word):
    """Remove neighbouring pairs for as long as there are any."""
    while "()" in word:
        word = word.replace("()", "")
    return not word


def equal(letters):
    """Blocks of each letter in order, all of the same length, which is not 0."""
    blocks = re.compile("".join(f"({letter}+)" for letter in letters))
    return lambda word: bool(found := blocks.fullmatch(word)) and len(set(map(len, found.groups()))) == 1


RECOGNISERS = {
    "parity": lambda word: word.count("1") % 2 == 0,
    "(aa)*": re.compile("(aa)*").fullmatch,
    "(abab)*": re.compile("(abab)*").fullmatch,
    "a^n b^n": equal("ab"),
    "a^n b^n c^n": equal("abc"),
    "shuffle-2": lambda word: (
        balanced(re.sub(r"[][]", "", word)) and balanced(re.sub(r"[()]", "", word).translate(str.maketrans("[]", "()")))
    ),
}
every_language = pytest.mark.parametrize("name", RECOGNISERS)

# all words up to a length, and the prefixes that can go on within that length whatever comes next
WITHIN = {
    "parity": (7, lambda prefix: len(prefix) < 6),
    "(aa)*": (12, lambda prefix: len(prefix) < 10),
    "(abab)*": (12, lambda prefix: len(prefix) < 8),
    "a^n b^n": (10, lambda prefix: prefix.count("a") < 5),
    "a^n b^n c^n": (9, lambda prefix: prefix.count("a") < 3),
    "shuffle-2": (8, lambda prefix: len(prefix) < 4),
}


def spelt(machine, word):
    return "".join(machine.symbols[place] for place in word)


@every_language
@given(data=st.data())
@settings(max_examples=30)
def test_words_are_words(name, data):
    """Each generated word has its length and belongs to the language; the same seed gives the same word."""
    machine = MACHINES[name]
    length = data.draw(st.sampled_from(machine.lengths(2, 120)))
    seed = data.draw(st.integers(0, 10**6))
    word = machine.word(length, Random(seed))
    assert len(word) == length and RECOGNISERS[name](spelt(machine, word))
    assert word == machine.word(length, Random(seed))


@every_language
def test_answers_are_the_symbols_that_may_come_next(name):
    """For every prefix of every word: the symbols that some word goes on with, and END where the prefix is a word."""
    machine, (longest, complete) = MACHINES[name], WITHIN[name]
    texts = ("".join(t) for n in range(longest + 1) for t in product(machine.symbols, repeat=n))
    words = [text for text in texts if RECOGNISERS[name](text)]
    after = {}
    for word in words:
        for at in range(len(word) + 1):
            after.setdefault(word[:at], set()).add(word[at] if at < len(word) else END)
    names, seen = list(machine.labels), set()
    for prefix in filter(complete, filter(None, after)):
        answers = machine.answers(tuple(machine.symbols.index(symbol) for symbol in prefix))
        assert set(names[answers[-1]]) == after[prefix], prefix
        seen.add(answers[-1])
    assert seen == set(machine.labels.values())  # every answer that there is was asked for


def test_what_is_no_beginning_of_a_word_has_no_answer():
    """`aba` cannot be gone on with in a^n b^n, nor `abb`."""
    for word in ((0, 1, 0), (0, 1, 1)):
        with pytest.raises(ValueError, match=r"a\^n b\^n has no word that begins with"):
            MACHINES["a^n b^n"].answers(word)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_modular_addition_is_the_running_sum(word):
    """Modulo 5, after every symbol."""
    machine = MACHINES["addition mod 5"]
    names = list(machine.labels)
    assert [names[answer] for answer in machine.answers(tuple(word))] == [s % 5 for s in accumulate(word)]


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_s5_is_the_running_product_of_matrices(seed):
    """The same products as of permutation matrices, which do not commute; all 120 elements are answers."""
    word = S5.word(12, Random(seed))
    matrices = [torch.eye(5)[list(S5.symbols[place])] for place in word]
    names = list(S5.labels)
    assert len(names) == 120
    for answer, matrix in zip(
        S5.answers(word), accumulate(matrices, lambda state, symbol: symbol @ state), strict=True
    ):
        assert list(names[answer]) == matrix.argmax(1).tolist()


def test_a_batch_mixes_all_lengths():
    """Those of the first bin and no other, padded on the right; the stream is that of its seed."""
    machine = MACHINES["shuffle-2"]
    stream, again = batches(machine, 3, seed=0), batches(machine, 3, seed=0)
    drawn = [next(stream) for _ in range(400)]
    assert {int(n) for _, answers in drawn for n in (answers != IGNORED).sum(1)} == set(range(2, 51, 2))
    assert all(torch.equal(symbols, next(again)[0]) for symbols, _ in drawn[:10])


def test_all_lengths_are_judged_and_no_word_twice():
    """Languages with one word a length have one; the words that tune are not those that judge."""
    for name, each in (("(aa)*", 1), ("parity", 3)):
        words = judged(MACHINES[name], *BINS[1], each=3, seed="test")
        assert sorted({len(word) for word in words}) == MACHINES[name].lengths(51, 100)
        assert len(words) == len(set(words)) == each * len(MACHINES[name].lengths(51, 100))
    parity = MACHINES["parity"]
    assert not set(judged(parity, 51, 100, 3, "test")) & set(judged(parity, 51, 100, 3, "validation"))


class Knowing(nn.Module):
    """Adds up modulo 5 and answers rightly, except where a sum of `wrong` is reached by a 4."""

    def __init__(self, wrong=-1):
        super().__init__()
        self.wrong = wrong

    def forward(self, symbols):
        sums = symbols.cumsum(1) % 5
        sums = torch.where((sums == self.wrong) & (symbols == 4), (sums + 1) % 5, sums)
        places = torch.tensor([MACHINES["addition mod 5"].labels[value] for value in range(5)])
        return 50.0 * nn.functional.one_hot(places[sums], 5).float()


def test_a_word_counts_only_if_every_answer_is_right():
    """One wrong answer anywhere makes a word wrong, and nothing after a word's end does."""
    machine = MACHINES["addition mod 5"]
    words = [(1, 2, 3), (4,), (1, 4, 0, 0), (2, 2, 4, 1), (0, 0)]
    loss, right = judge(Knowing(), machine, words, batch=2)
    assert right == [True] * 5 and loss < 1e-6
    assert judge(Knowing(wrong=3), machine, words)[1] == [True, True, True, False, True]
    _, answers = tensors(machine, words)
    assert (answers == IGNORED).sum() == 4 * 5 - sum(map(len, words))


@pytest.mark.parametrize("classes", [2, pytest.param(120, marks=pytest.mark.slow)])
def test_parameters_are_matched(classes):
    """Within 2% of each other, whatever the alphabet."""
    wanted = PARAMETERS + 2 * classes * WIDTH
    sizes = {name: count(contender.model(classes)) for name, contender in CONTENDERS.items()}
    assert all(abs(size / wanted - 1) < 0.02 for size in sizes.values()), sizes


@pytest.mark.parametrize("name", CONTENDERS)
def test_contenders_do_not_look_ahead(name):
    """Otherwise padding would change what a model says, and a language would be no test of memory."""
    torch.manual_seed(0)
    contender = CONTENDERS[name]
    model = contender.kind(3, 4, **contender.settings)
    symbols = torch.randint(0, 3, (2, 9))
    changed = torch.cat([symbols[:, :5], (symbols[:, 5:] + 1) % 3], dim=1)
    y, found = model(symbols), model(changed)
    torch.testing.assert_close(found[:, :5], y[:, :5])
    assert (found[:, 5:] - y[:, 5:]).abs().max() > 1e-4
    if isinstance(model, Blocks) and name == "Hope":
        assert model.model.config.chunk_size == 1


def test_a_run_ends_when_the_validation_words_are_known_and_repeats():
    """It stops at the first look with a loss below `enough`; the same seed gives the same outcome."""
    size = Size(steps=30, batch=8, look=10, enough=100.0, each=1)
    first = run("(aa)*", "LSTM", 1e-2, 0, size, final=True)
    assert first["steps"] == 10 and first["words"] == 80
    assert [found["lengths"][0] for found in first["bins"]] == [2, 52, 102]
    again = run("(aa)*", "LSTM", 1e-2, 0, size, final=True)
    assert first | {"seconds": 0} == again | {"seconds": 0}
    longer = run("(aa)*", "LSTM", 1e-2, 0, Size(steps=30, batch=8, look=10, enough=0.0, each=1), final=False)
    assert longer["steps"] == 30 and longer["loss"] < first["loss"] and "bins" not in longer


@pytest.fixture
def pair(monkeypatch, tmp_path):
    """One model on one language with invented outcomes; counts how often something is run."""
    calls = []
    outcomes = {3e-3: (0.5, 100, 0.2), 1e-2: (0.0, 80, 0.1), 3e-2: (0.0, 60, 0.1)}

    def run(language, name, lr, seed, size, final):
        calls.append((lr, seed, final))
        error, steps, loss = outcomes[lr]
        bins = [{"lengths": [2, 4], "accuracy": [1.0, 1.0 - 0.5 * i]} for i in range(3)]
        met = {"error": error, "steps": steps, "loss": loss, "words": 32 * steps, "seconds": 1.0, "parameters": 20_000}
        return met | ({"bins": bins} if final else {})

    monkeypatch.setattr(main, "run", run)
    return calls, lambda: main._pair("parity", "DeltaNet", tmp_path, Size())


def test_the_rate_is_chosen_by_validation_words_and_nothing_runs_twice(pair):
    """Fewest errors, then fewest steps; three trials, three seeds of which none tuned; a second call runs nothing."""
    calls, once = pair
    met = once()
    assert met["lr"] == 3e-2 and met["edge"] and len(met["trials"]) == 3
    assert [call[1:] for call in calls] == [(100, False)] * 3 + [(seed, True) for seed in (0, 1, 2)]
    assert once() == met and len(calls) == 6
    assert main.accuracies(met) == [[1.0] * 3, [0.75] * 3, [0.5] * 3]


def test_the_page_shows_every_figure_beside_the_papers(pair):
    """Accuracy with its spread in each bin, the paper's, costs, and a plot."""
    results = {"title": "T", "about": "A", "languages": {"parity": {"DeltaNet": pair[1]()}}}
    (row,) = pages.rows("parity", results["languages"]["parity"])
    assert row[:5] == ["DeltaNet", "100.0 ± 0.0", "75.0 ± 0.0", "50.0 ± 0.0", "98.2 / 10.1"] and row[-1] == "0.03*"
    page = pages.html(results)
    assert "<svg" in page and "98.2 / 10.1" in page and "3 seeds" in page
    assert "| DeltaNet | 100.0 ± 0.0 | 75.0 ± 0.0 | 50.0 ± 0.0 | 98.2 / 10.1 |" in pages.markdown(results)


def test_unknown_names_are_told():
    """With what there is to choose from."""
    with pytest.raises(UserError, match=r"unknown language chess.*parity"):
        main.formal_languages(["chess"], None, True, "nowhere", 1, print)
    with pytest.raises(UserError, match=r"unknown model Sloth.*LSTM"):
        main.formal_languages(["parity"], ["Sloth"], True, "nowhere", 1, print)
