"""Languages: drawn by their seed, taught by their documents, translated back by an oracle; alone and in sequence."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.continual import Learner
from nestling.errors import UserError
from nestling.evals.languages import main
from nestling.evals.languages.backbone import Backbone, batches, trained
from nestling.evals.languages.documents import Document, document
from nestling.evals.languages.language import (
    ADJECTIVES,
    LEMMAS,
    NOUNS,
    PLURAL,
    VERBS,
    Language,
    Noun,
    Sentence,
    english,
    language,
    sentences,
    together,
)
from nestling.evals.languages.learn import ASKED, run
from nestling.evals.languages.lessons import FIRST, Lesson, answers, rows
from nestling.evals.languages.main import documents as documents_of
from nestling.evals.languages.methods import Problem
from nestling.evals.languages.protocol import alone, drop, in_sequence, judged
from nestling.evals.languages.score import chrf
from nestling.evals.languages.setup import METHODS, SIZES, Size
from nestling.evals.languages.students import Context, Course, Student, greedy
from nestling.evals.languages.words import LINE, NAMES, NUMBERS, VOCABULARY, ids, lines, tokenizer
from nestling.evals.tuning import TUNING
from nestling.levels import Level
from nestling.models import HopeCache, HopeForCausalLM
from nestling.report import languages as pages

SEEDS = st.integers(0, 10_000)


def parse(spoken: Language, morphemes: list[str]) -> Sentence:
    """The oracle: a dictionary read backwards, affixes taken off, and the order of the language."""
    lemmas = {stem: lemma for lemma, stem in spoken.stems.items()}
    words: list[list[str]] = []
    for morpheme in morphemes:
        joins = words and (morpheme.startswith("-") or words[-1][-1].endswith("-"))
        words[-1].append(morpheme) if joins else words.append([morpheme])
    found = []  # kind, lemma, inflected
    for word in words:
        stem = next(morpheme for morpheme in word if "-" not in morpheme)
        lemma = lemmas[stem]
        if lemma in VERBS:
            assert stem in (spoken.past.off(word), spoken.future.off(word))
            found.append(("V", lemma, spoken.future.off(word) == stem))
        elif lemma in NOUNS:
            found.append(("N", lemma, spoken.plural.off(word) == stem))
        else:
            found.append(("A", lemma, False))
    nouns = [_noun(found, place, spoken.adjective_first) for place, one in enumerate(found) if one[0] == "N"]
    (_, verb, future), = (one for one in found if one[0] == "V")  # fmt: skip
    subject, object = nouns if spoken.order.index("S") < spoken.order.index("O") else nouns[::-1]
    return Sentence(subject, verb, object, future)


def _noun(words: list[tuple[str, str, bool]], place: int, first: bool) -> Noun:
    beside = place - 1 if first else place + 1
    has = 0 <= beside < len(words) and words[beside][0] == "A"
    return Noun(words[place][1], words[place][2], words[beside][1] if has else None)


class Oracle:
    """Knows the languages that it has read, and of those that it has lost says nothing right; holds the last `room` of them."""

    def __init__(self, room: int) -> None:
        self.room, self.read_so_far = room, []

    def read(self, document: Document) -> None:
        self.read_so_far = [*self.read_so_far, document.name][-self.room :]

    def translate(self, document: Document, sources: Sequence[list[str]]) -> list[list[str]]:
        known = document.name in self.read_so_far
        return [english(parse(document.language, source)) if known else ["?"] for source in sources]


def documents(count: int = 3) -> list[Document]:
    return [document(f"L{seed}", seed, parallel=6, asked=8) for seed in range(count)]


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_a_seed_is_a_language(seed: int) -> None:
    """The same again by the same seed, another by the next; no stem has two meanings in one language."""
    one = language(seed)
    assert one == language(seed) != language(seed + 1)
    assert document("L", seed, 5, 5) == document("L", seed, 5, 5)
    assert document("L", seed, 5, 5).text() != document("L", seed + 1, 5, 5).text()
    assert sorted(one.stems) == sorted(LEMMAS) and len(set(one.stems.values())) == len(LEMMAS)
    assert len({one.plural.syllable, one.past.syllable, one.future.syllable}) == 3


def test_seeds_draw_every_grammar() -> None:
    """Each of the six orders, and both sides of every affix and adjective."""
    drawn = [language(seed) for seed in range(200)]
    assert {one.order for one in drawn} == {"".join(order) for order in itertools.permutations("SVO")}
    for name in ("plural", "past", "future"):
        assert {getattr(one, name).before for one in drawn} == {True, False}
    assert {one.adjective_first for one in drawn} == {True, False}


def test_languages_have_false_friends() -> None:
    """Words of one language mean something else in another, so that the second can overwrite the first."""
    first, second = ({stem: lemma for lemma, stem in language(seed).stems.items()} for seed in (0, 1))
    shared = set(first) & set(second)
    assert shared and any(first[stem] != second[stem] for stem in shared)


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_a_document_teaches_what_is_asked(seed: int) -> None:
    """Every morpheme of a question is in the dictionary or the grammar, and no question is in the document."""
    given = document("L", seed, parallel=10, asked=20)
    taught = {morpheme for source, _ in (*given.dictionary, *given.grammar) for morpheme in source}
    lines = set(given.text().splitlines())
    parallel = {together(target) for _, target in given.parallel}
    for one in given.asked:
        source = given.language.say(one)
        assert set(source) <= taught
        assert f"{given.question(source)} {' '.join(english(one))}" not in lines
        assert together(english(one)) not in parallel
    assert len({*map(together, map(english, given.asked))}) == 20
    assert all(line.startswith("L : ") and line.count(" = ") == 1 for line in lines)


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_dictionary_and_grammar_are_enough_to_translate(seed: int) -> None:
    """The oracle finds every sentence again, so that all of it can be said of a document in full."""
    given = document("L", seed, parallel=1, asked=20)
    assert [parse(given.language, given.language.say(one)) for one in given.asked] == given.asked


def test_morphemes_are_written_together() -> None:
    """Suffixes and prefixes join their stem, words stay apart."""
    one = Sentence(Noun("dog", True, "old"), "help", Noun("cat"))
    assert together(english(one)) == "old dogs helped cat"
    assert together(["ka-", "bala", "demo", "-ti"]) == "kabala demoti"
    assert PLURAL in english(one) and "will" in english(Sentence(Noun("dog"), "help", Noun("cat"), True))
    assert set(LEMMAS) == {*NOUNS, *VERBS, *ADJECTIVES}


@pytest.mark.parametrize("count", [0, -1, 10**9])
def test_as_many_sentences_as_there_are(count: int) -> None:
    """No more, and one at least."""
    with pytest.raises(ValueError, match=rf"count={count} sentences; choose 1 to 76799"):
        sentences(count, "seed", without=[Sentence(Noun("dog"), "help", Noun("cat"))])


def test_an_oracle_has_all_points() -> None:
    """chrF 100 on every language; an answer that is not even near has none."""
    pytest.importorskip("sacrebleu")
    given = documents()
    assert alone(lambda: Oracle(1), given, judged) == pytest.approx([100.0] * 3)
    assert judged(Oracle(1), given[0]) == pytest.approx(0.0)


def test_chrf_falls_with_every_letter() -> None:
    """A slip costs less than another word; what does not fit is refused."""
    pytest.importorskip("sacrebleu")
    said = ["old dogs helped cat"]
    slip, other = chrf(["old dog helped cat"], said), chrf(["old dogs greeted cat"], said)
    assert 100 > slip > other > 0
    with pytest.raises(ValueError, match="2 answers and 1 references"):
        chrf(["a", "b"], said)
    with pytest.raises(ValueError, match="0 answers and 0 references"):
        chrf([], [])


def test_who_has_no_room_forgets_the_first_language() -> None:
    """Room for one: only the last is left, and the drop is two languages of three; room for all: none."""
    pytest.importorskip("sacrebleu")
    given = documents()
    single = alone(lambda: Oracle(1), given, judged)
    one, every = in_sequence(Oracle(1), given, judged), in_sequence(Oracle(3), given, judged)
    assert one[-1] == pytest.approx([0, 0, 100]) and [len(row) for row in one] == [1, 2, 3]
    assert drop(single, one) == pytest.approx(200 / 3) and drop(single, every) == pytest.approx(0)


def test_languages_that_cannot_be_told_apart_are_refused() -> None:
    """And so are none at all."""
    with pytest.raises(UserError, match="there is no language to learn"):
        alone(lambda: Oracle(1), [], judged)
    with pytest.raises(UserError, match="the name L0 stands for two languages"):
        in_sequence(Oracle(1), [*documents(1), document("L0", 5, 3, 3)], judged)


def test_without_sacrebleu_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sentence."""
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.chrf", None)
    with pytest.raises(UserError, match=r"chrF needs sacrebleu: pip install nestling\[eval\]"):
        chrf(["a"], ["a"])


TINY = Size(
    Backbone(16, 1, 2, 3e-3, (Lesson(2, 2, 60, (2, 1, 1), sentences=False), Lesson(2, 2, 80, (2, 1, 1), languages=2))),
    languages=2, parallel=2, asked=2, window=60, passes=1, shown=1, settings=1, seeds=(0, 1),
)  # fmt: skip


def tiny(rate: float) -> Learner:
    """One level on a model that was not trained."""
    torch.manual_seed(0)
    return Learner(HopeForCausalLM(TINY.backbone.config((Level(16, lr=rate, clip=1.0),), "context")), tokenizer())


def test_every_token_of_a_document_is_known() -> None:
    """And comes back as it was; the tokenizer and the tensor say the same."""
    words, text = tokenizer(), document(NAMES[0], 0, 5, 5).text()
    found = words(lines(text))["input_ids"]
    assert words.convert_ids_to_tokens(found) == lines(text).split() and words.pad_token_id not in found
    assert words.decode(found) == " ".join(lines(text).split()) and len(set(VOCABULARY)) == len(VOCABULARY)
    assert ids(text).tolist() == found


@pytest.mark.parametrize("languages", [1, 2])
def test_a_lesson_is_of_languages_that_are_never_asked(languages: int) -> None:
    """Its rows are as long as it says, no two alike, of as many names; seeds of training and of questions do not meet."""
    lesson = Lesson(3, 4, 200, (3, 2, 1), languages)
    found = torch.cat([*batches((lesson,), seed=0)])
    assert found.shape == (12, 200) and len(found.unique(dim=0)) == 12
    names = {NUMBERS[name] for name in NAMES}
    assert all(len(names & set(row)) == languages for row in found.tolist())
    assert not set(map(tuple, found.tolist())) & set(map(tuple, torch.cat([*batches((lesson,), seed=1)]).tolist()))
    asked = [one.language for seed in (*range(50), TUNING) for one in documents_of(seed, SIZES["default"])]
    assert len({str(one) for one in asked}) == len(asked) and len(NAMES) * TUNING + len(NAMES) < FIRST


def test_answers_are_what_follows_an_equals_sign() -> None:
    """Up to the end of the line, with it; also where a row ends within a line."""
    given = document(NAMES[0], 0, 5, 5).text()
    found, tokens = ids(given), lines(given).split()
    said = [target for line in given.splitlines() for target in (*line.split(" = ")[1].split(), LINE)]
    assert [token for token, is_answer in zip(tokens, answers(found), strict=True) if is_answer] == said
    assert torch.equal(answers(found[:-3]), answers(found)[:-3])


def test_a_lesson_of_words_says_them_again() -> None:
    """Nothing but its dictionary, every line of it one that its language has."""
    (row,) = rows(7, Lesson(1, 1, 120, (2, 1, 1), sentences=False)).tolist()
    words = [VOCABULARY[token] for token in row]
    pairs = {(words[at + 2], words[at + 4]) for at in range(0, 120, 6)}
    assert len(pairs) <= 4 and len({stem for stem, _ in pairs}) == len({lemma for _, lemma in pairs}) == len(pairs)


def test_a_context_holds_the_end_of_what_was_read() -> None:
    """As many tokens as its window, the last document's last; none without one, and nothing is learnt from it."""
    first, second = (document(NAMES[seed], seed, 3, 2) for seed in (0, 1))
    student = Student(tiny(0.0), "a", Context(40))
    student.read(first)
    student.read(second)
    assert student.context.tail == lines(second.text()).split()[-40:] and student.learner.users() == []
    bare = Student(tiny(0.0), "b", Context(0))
    bare.read(first)
    assert bare.context.tail == [] and len(bare.translate(first, [["bala"]])) == 1


def test_a_context_is_read_before_every_question_alone() -> None:
    """One question's answer does not depend on the others, and is that of one text that is context and question."""
    learner, given = tiny(0.0), document(NAMES[0], 0, 5, 4)
    student = Student(learner, "a", Context(80))
    student.read(given)
    sources = [given.language.say(one) for one in given.asked]
    together_, apart = student.translate(given, sources), [student.translate(given, [one])[0] for one in sources]
    assert together_ == apart
    prompt = ids(" ".join([*student.context.tail, given.question(sources[0])]))
    assert greedy(learner.model, HopeCache("off"), prompt) == apart[0]


def test_a_student_that_learns_answers_otherwise_and_asking_teaches_nothing() -> None:
    """A level that moved changes what is said without a context; another user is as before."""
    learner, given = tiny(2.0), document(NAMES[0], 0, 10, 3)
    sources = [given.language.say(one) for one in given.asked]
    student, other = (Student(learner, user, Context(0), Course(3)) for user in ("a", "b"))
    before = student.translate(given, sources)
    student.read(given)
    after = student.translate(given, sources)
    assert after != before and student.translate(given, sources) == after
    assert other.translate(given, sources) == before


def test_a_course_reads_every_line_in_every_pass() -> None:
    """Each line once a pass, four a text but in the last one, in another order the next time."""
    given = document(NAMES[0], 0, 5, 3)
    every = sorted(given.text().splitlines(keepends=True))
    first, second = (given.pieces(4, seed) for seed in (0, 1))
    assert first != second and first == given.pieces(4, 0)
    for pieces in (first, second):
        assert sorted("".join(pieces).splitlines(keepends=True)) == every
        assert all(piece.count("\n") == 4 for piece in pieces[:-1]) and 1 <= pieces[-1].count("\n") <= 4
    read = [text.tolist() for text in Course(2).texts(given)]
    assert read == [ids(piece).tolist() for piece in (*first, *second)] and not [*Course(0).texts(given)]


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """A backbone after a few steps."""
    folder = tmp_path_factory.mktemp("backbone")
    trained(TINY.backbone, 0, folder, lambda line: None)
    return Problem(TINY.backbone, folder, TINY.window, Course(TINY.passes), TINY.shown)


@pytest.mark.parametrize("name", METHODS)
def test_readers_begin_alike_and_go_apart(name: str, problem: Problem) -> None:
    """Before anything is read every method answers as the backbone; what moves has moved afterwards; two readers share nothing."""
    given = documents_of(0, TINY)[0]
    sources = [given.language.say(one) for one in given.asked]
    new_reader = METHODS[name].make(problem, METHODS[name].settings[0])
    backbone = METHODS["in context only"].make(problem, {})()
    reader, other = new_reader(), new_reader()
    assert reader.translate(given, sources) == backbone.translate(given, sources)
    reader.read(given)
    assert other.translate(given, sources) == backbone.translate(given, sources)
    assert (reader.own_bytes() == 0) == (name == "in context only")


def test_languages_alone_are_read_by_readers_who_have_read_no_other(problem: Problem) -> None:
    """The first one in the sequence is such a reader, too, before the second is read."""
    pytest.importorskip("sacrebleu")
    new_reader = METHODS["AdamW, all weights"].make(problem, {"lr": 0.01})
    given = documents_of(0, TINY)
    found = run(new_reader, given)
    assert found["memory"]["alone"] == alone(new_reader, given, lambda reader, one: judged(reader.bare(), one))
    assert found["context"]["alone"] == alone(new_reader, given, judged)
    assert found["context"]["rows"][1] == in_sequence(new_reader(), given, judged)[1]


def test_a_run_goes_all_the_way_and_nothing_runs_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backbone, every method and seed; a second command reads what the first one wrote; the page has every method."""
    pytest.importorskip("sacrebleu")
    monkeypatch.setitem(main.SIZES, "quick", TINY)
    monkeypatch.setattr(main, "side_by_side", lambda function, tasks, _: ((task, function(*task)) for task in tasks))
    said: list[str] = []
    results = main.languages(None, None, "quick", str(tmp_path), 1, said.append)
    assert list(results["methods"]) == list(METHODS) and results["seeds"] == [0, 1]
    for met in results["methods"].values():
        assert len(met["runs"]) == 2 and len(met["trials"]) == 1
        for one in met["runs"]:
            assert all(len(one[kind]["alone"]) == 2 and [*map(len, one[kind]["rows"])] == [1, 2] for kind in ASKED)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    monkeypatch.setattr(main, "run", None)
    again = main.languages(["in context only"], [1], "quick", str(tmp_path), 1, said.append)
    assert again["methods"]["in context only"]["runs"] == results["methods"]["in context only"]["runs"][1:]
    page = pages.html(results)
    assert page.count("<svg") == 1 and all(page.count(f">{name}<") >= 3 for name in METHODS)


def test_drops_are_taken_seed_by_seed() -> None:
    """Two seeds that start apart and lose alike have no spread in what they lose."""

    def met(alone_: float) -> dict[str, Any]:
        return {"alone": [alone_, alone_], "rows": [[alone_], [alone_ - 30, alone_ - 10]]}

    results = {"methods": {"A": {"runs": [{"memory": met(90.0)}, {"memory": met(70.0)}]}}}
    assert pages.rows(results, "memory") == [
        ["A", "80.0 ± 14.1", "60.0 ± 14.1", "20.0 ± 0.0", "50.0 ± 14.1", "70.0 ± 14.1"]
    ]


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    """What was given, and what is allowed."""
    with pytest.raises(UserError, match="jobs=0 must be at least 1"):
        main.languages(None, None, "quick", str(tmp_path), 0, print)
    with pytest.raises(UserError, match="unknown method SGDD; choose from in context only"):
        main.languages(["SGDD"], None, "quick", str(tmp_path), 1, print)
    with pytest.raises(UserError, match=rf"seeds=\[{TUNING}\] must be some numbers"):
        main.languages(None, [TUNING], "quick", str(tmp_path), 1, print)
    assert not [*tmp_path.iterdir()]


def test_the_page_is_what_was_measured() -> None:
    """The tables in the documentation are those that the data beside them give."""
    place = Path(__file__).parents[2] / "docs" / "results" / "languages.json"
    results = json.loads(place.read_text())
    assert pages.markdown(results) == place.with_suffix(".md").read_text()
    assert all(len(met["runs"]) == 3 for met in results["methods"].values())
