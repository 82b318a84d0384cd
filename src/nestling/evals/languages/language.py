"""A language drawn from a seed: its words, its affixes, the order of its sentences; and the English that it says.

A sentence is a list of morphemes. Written apart they are tokens ("dog -s help -ed"), written together they are words
("dogs helped"). English says number and tense by affixes, too, so that an affix stands for an affix.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NOUNS = ("dog", "cat", "bird", "king", "girl", "sailor", "farmer", "lion")
VERBS = ("help", "follow", "call", "watch", "greet", "attack")
ADJECTIVES = ("old", "small", "clever", "black")
PLURAL, PAST, FUTURE = "-s", "-ed", "will"
LEMMAS = (*NOUNS, *VERBS, *ADJECTIVES)
AFFIXES = ("ka", "lo", "mi", "nu", "re", "sa", "ti", "vo")
STEMS = tuple(
    "".join(parts)
    for parts in itertools.product(("ba", "de", "fi", "go", "pu", "ze"), ("la", "mo", "ni", "ru", "se", "ti"))
)
ORDERS = tuple("".join(order) for order in itertools.permutations("SVO"))


@dataclass(frozen=True)
class Lexicon:
    """English lemmas that are spoken about."""

    nouns: tuple[str, ...] = NOUNS
    verbs: tuple[str, ...] = VERBS
    adjectives: tuple[str, ...] = ADJECTIVES

    def lemmas(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.nouns, *self.verbs, *self.adjectives)

    def few(self, nouns: int, verbs: int, adjectives: int, draw: random.Random) -> Lexicon:
        """So many of each kind, drawn without replacement."""
        pairs = ((self.nouns, nouns), (self.verbs, verbs), (self.adjectives, adjectives))
        return Lexicon(*(tuple(draw.sample(every, count)) for every, count in pairs))


EVERY = Lexicon()


@dataclass(frozen=True)
class Noun:
    """lemma, whether it is many, and an adjective before it or None; English words, as everywhere below."""

    lemma: str
    plural: bool = False
    adjective: str | None = None


@dataclass(frozen=True)
class Sentence:
    """Who does what to whom, in the past or the future."""

    subject: Noun
    verb: str
    object: Noun
    future: bool = False


@dataclass(frozen=True)
class Affix:
    """A syllable before or after its stem."""

    syllable: str
    before: bool

    def on(self, stem: str) -> list[str]:
        """The morphemes of an inflected word."""
        return [f"{self.syllable}-", stem] if self.before else [stem, f"-{self.syllable}"]

    def off(self, morphemes: Sequence[str]) -> str | None:
        """The stem of an inflected word, None where the word is not one of this affix."""
        found = [morpheme for morpheme in morphemes if not morpheme.startswith("-") and not morpheme.endswith("-")]
        return found[0] if len(found) == 1 and self.on(found[0]) == [*morphemes] else None


@dataclass(frozen=True)
class Language:
    """stems: of every English lemma. plural: of nouns; past, future: of verbs. order: of subject, verb and object, such as
    "SOV". adjective_first: whether it stands before its noun.
    """

    stems: dict[str, str]
    plural: Affix
    past: Affix
    future: Affix
    order: str
    adjective_first: bool

    def noun(self, noun: Noun) -> list[str]:
        """A noun and its adjective, in morphemes."""
        stem = self.stems[noun.lemma]
        word = self.plural.on(stem) if noun.plural else [stem]
        if noun.adjective is None:
            return word
        adjective = [self.stems[noun.adjective]]
        return adjective + word if self.adjective_first else word + adjective

    def verb(self, verb: str, future: bool) -> list[str]:
        """A verb in its tense, in morphemes."""
        return (self.future if future else self.past).on(self.stems[verb])

    def say(self, sentence: Sentence) -> list[str]:
        """A sentence in this language, in morphemes."""
        parts = {
            "S": self.noun(sentence.subject),
            "V": self.verb(sentence.verb, sentence.future),
            "O": self.noun(sentence.object),
        }
        return [morpheme for part in self.order for morpheme in parts[part]]


def language(seed: int) -> Language:
    """The language of a seed. Two of them share their stems' inventory, so that a word of one can mean something else in the
    other, as false friends do.
    """
    draw = random.Random(f"language {seed}")
    stems: dict[str, str] = dict(zip(LEMMAS, draw.sample(STEMS, len(LEMMAS)), strict=True))
    plural, past, future = (Affix(syllable, draw.random() < 0.5) for syllable in draw.sample(AFFIXES, 3))
    return Language(stems, plural, past, future, draw.choice(ORDERS), draw.random() < 0.5)


def english_noun(noun: Noun) -> list[str]:
    """Morphemes of an English noun and its adjective."""
    return [*([noun.adjective] if noun.adjective else []), noun.lemma, *([PLURAL] if noun.plural else [])]


def english_verb(verb: str, future: bool) -> list[str]:
    """Morphemes of an English verb in its tense."""
    return [FUTURE, verb] if future else [verb, PAST]


def english(sentence: Sentence) -> list[str]:
    """What a sentence is in English, in morphemes."""
    verb = english_verb(sentence.verb, sentence.future)
    return [*english_noun(sentence.subject), *verb, *english_noun(sentence.object)]


def together(morphemes: Iterable[str]) -> str:
    """Morphemes as written words: "dog -s help -ed" is "dogs helped"."""
    return " ".join(morphemes).replace(" -", "").replace("- ", "")


def sentences(count: int, seed: str, without: Iterable[Sentence] = (), words: Lexicon = EVERY) -> list[Sentence]:
    """So many different ones about `words`, none of them of `without`.

    Raises:
        ValueError: there are not so many.
    """
    taken = set(without)
    every = (2 * len(words.nouns) * (len(words.adjectives) + 1)) ** 2 * 2 * len(words.verbs)
    if not 1 <= count <= every - len(taken):
        raise ValueError(f"count={count} sentences; choose 1 to {every - len(taken)}")
    draw, found = random.Random(seed), []

    def noun() -> Noun:
        adjective = draw.choice(words.adjectives) if draw.random() < 0.5 else None
        return Noun(draw.choice(words.nouns), draw.random() < 0.5, adjective)

    while len(found) < count:
        one = Sentence(noun(), draw.choice(words.verbs), noun(), draw.random() < 0.5)
        if one not in taken:
            taken.add(one)
            found.append(one)
    return found
