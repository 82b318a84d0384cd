"""What a learner reads of a language, and the sentences that it is asked afterwards."""

from __future__ import annotations

import random
from dataclasses import dataclass

from nestling.evals.languages.language import (
    ADJECTIVES,
    LEMMAS,
    NOUNS,
    VERBS,
    Language,
    Noun,
    Sentence,
    english,
    english_noun,
    english_verb,
    language,
    sentences,
)

Pair = tuple[list[str], list[str]]  # morphemes: in the language, in English


@dataclass(frozen=True)
class Document:
    """name: of the language, with which every line begins. dictionary: every stem. grammar: every affix, and an adjective on its
    noun. parallel: sentences. asked: others, which are not in the text.
    """

    name: str
    language: Language
    dictionary: list[Pair]
    grammar: list[Pair]
    parallel: list[Pair]
    asked: list[Sentence]

    def text(self) -> str:
        """All of it, a line a pair, morphemes apart."""
        pairs = [*self.dictionary, *self.grammar, *self.parallel]
        return "\n".join(f"{self.question(source)} {' '.join(target)}" for source, target in pairs) + "\n"

    def question(self, source: list[str]) -> str:
        """A line up to where its translation begins."""
        return f"{self.name} : {' '.join(source)} ="


def document(name: str, seed: int, parallel: int, asked: int) -> Document:
    """Of the language of a seed: so many parallel sentences, and so many others to ask."""
    spoken, draw = language(seed), random.Random(f"document {seed}")
    dictionary: list[Pair] = [([spoken.stems[lemma]], [lemma]) for lemma in draw.sample(LEMMAS, len(LEMMAS))]
    given = sentences(parallel, f"parallel {seed}")
    pairs: list[Pair] = [(spoken.say(one), english(one)) for one in given]
    return Document(name, spoken, dictionary, grammar(spoken, draw), pairs, sentences(asked, f"asked {seed}", given))


def grammar(spoken: Language, draw: random.Random) -> list[Pair]:
    """Each affix on one word, and a noun with its adjective, single and many."""
    noun, verb, adjective = draw.choice(NOUNS), draw.choice(VERBS), draw.choice(ADJECTIVES)
    nouns = [Noun(noun, True), Noun(noun, False, adjective), Noun(noun, True, adjective)]
    shown: list[Pair] = [(spoken.noun(one), english_noun(one)) for one in nouns]
    return shown + [(spoken.verb(verb, future), english_verb(verb, future)) for future in (False, True)]
