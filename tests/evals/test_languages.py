"""Languages: drawn by their seed, taught by their documents, translated back by an oracle; alone and in sequence."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.continual import Learner
from nestling.errors import UserError
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
from nestling.evals.languages.protocol import alone, drop, in_sequence, judged
from nestling.evals.languages.score import chrf
from nestling.evals.languages.students import Student
from nestling.evals.languages.words import NAMES, VOCABULARY, lines, tokenizer
from nestling.levels import Level
from nestling.models import HopeConfig, HopeForCausalLM

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
    assert alone(lambda: Oracle(1), given) == pytest.approx([100.0] * 3)
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
    single = alone(lambda: Oracle(1), given)
    one, every = in_sequence(Oracle(1), given), in_sequence(Oracle(3), given)
    assert one[-1] == pytest.approx([0, 0, 100]) and [len(row) for row in one] == [1, 2, 3]
    assert drop(single, one) == pytest.approx(200 / 3) and drop(single, every) == pytest.approx(0)


def test_languages_that_cannot_be_told_apart_are_refused() -> None:
    """And so are none at all."""
    with pytest.raises(UserError, match="there is no language to learn"):
        alone(lambda: Oracle(1), [])
    with pytest.raises(UserError, match="the name L0 stands for two languages"):
        in_sequence(Oracle(1), [*documents(1), document("L0", 5, 3, 3)])


def test_without_sacrebleu_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sentence."""
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.chrf", None)
    with pytest.raises(UserError, match=r"chrF needs sacrebleu: pip install nestling\[eval\]"):
        chrf(["a"], ["a"])


def tiny(rate: float) -> Learner:
    """One level on a model that was not trained."""
    torch.manual_seed(0)
    config = HopeConfig(
        vocab_size=len(VOCABULARY), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, mixer="attention",
        levels=[Level(16, lr=rate, clip=1.0)], level_variant="superposed", learnt="all",
    )  # fmt: skip
    return Learner(HopeForCausalLM(config), tokenizer())


def test_every_token_of_a_document_is_known() -> None:
    """And comes back as it was."""
    words, text = tokenizer(), lines(document(NAMES[0], 0, 5, 5).text())
    ids = words(text)["input_ids"]
    assert words.convert_ids_to_tokens(ids) == text.split() and words.pad_token_id not in ids
    assert words.decode(ids) == " ".join(text.split()) and len(set(VOCABULARY)) == len(VOCABULARY)


def test_a_student_remembers_the_end_of_what_it_read() -> None:
    """As many tokens as its window, the last document's last; none without one."""
    first, second = (document(NAMES[seed], seed, 3, 2) for seed in (0, 1))
    student = Student(tiny(0.0), "a", window=40, learns=False)
    student.read(first)
    student.read(second)
    assert student.tail == lines(second.text()).split()[-40:] and student.learner.users() == []
    bare = Student(tiny(0.0), "b", window=0, learns=False)
    bare.read(first)
    assert bare.tail == [] and len(bare.translate(first, [["bala"]])) == 1


def test_a_student_that_learns_answers_otherwise_and_asking_teaches_nothing() -> None:
    """A level that moved changes what is said without a context; another user is as before."""
    learner, given = tiny(2.0), document(NAMES[0], 0, 10, 3)
    sources = [given.language.say(one) for one in given.asked]
    student, other = (Student(learner, user, window=0) for user in ("a", "b"))
    before = student.translate(given, sources)
    for _ in range(3):
        student.read(given)
    after = student.translate(given, sources)
    assert after != before and student.translate(given, sources) == after
    assert other.translate(given, sources) == before
