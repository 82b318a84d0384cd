"""What a learner reads of a language, and the sentences that it is asked afterwards."""

from __future__ import annotations

import random
from dataclasses import dataclass

from nestling.evals.languages.language import (
    EVERY,
    Language,
    Lexicon,
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
        return "".join(self.lines([*self.dictionary, *self.grammar, *self.parallel]))

    def pieces(self, count: int, seed: int) -> list[str]:
        """All its lines in a random order, `count` a text."""
        every = self.lines([*self.dictionary, *self.grammar, *self.parallel])
        random.Random(f"pieces {seed}").shuffle(every)
        return ["".join(every[start : start + count]) for start in range(0, len(every), count)]

    def lines(self, pairs: list[Pair]) -> list[str]:
        """Pairs as they are written, each with its line's end."""
        return [f"{self.question(source)} {' '.join(target)}\n" for source, target in pairs]

    def question(self, source: list[str]) -> str:
        """A line up to where its translation begins."""
        return f"{self.name} : {' '.join(source)} ="


def document(name: str, seed: int, parallel: int, asked: int, words: Lexicon = EVERY) -> Document:
    """Of the language of a seed: so many parallel sentences about `words`, and so many others to ask."""
    spoken, draw, lemmas = language(seed), random.Random(f"document {seed}"), words.lemmas()
    dictionary: list[Pair] = [([spoken.stems[lemma]], [lemma]) for lemma in draw.sample(lemmas, len(lemmas))]
    given = sentences(parallel, f"parallel {seed}", words=words)
    pairs: list[Pair] = [(spoken.say(one), english(one)) for one in given]
    others = sentences(asked, f"asked {seed}", given, words)
    return Document(name, spoken, dictionary, grammar(spoken, draw, words), pairs, others)


def grammar(spoken: Language, draw: random.Random, words: Lexicon = EVERY) -> list[Pair]:
    """Each affix on one word, and a noun with its adjective, single and many."""
    noun, verb, adjective = draw.choice(words.nouns), draw.choice(words.verbs), draw.choice(words.adjectives)
    nouns = [Noun(noun, True), Noun(noun, False, adjective), Noun(noun, True, adjective)]
    shown: list[Pair] = [(spoken.noun(one), english_noun(one)) for one in nouns]
    return shown + [(spoken.verb(verb, future), english_verb(verb, future)) for future in (False, True)]
