"""Formal languages and word problems as machines whose state a model must follow.

The languages are those of Irie et al. 2023 (arXiv 2310.16076; their data are Bhattamishra et al. 2020, arXiv 2009.11264):
a model reads a word and says after each symbol which symbols may come next, the end of the word among them. Where those
say only whether the word may end here (parity, (aa)*, (abab)*), the whole set is asked for here. A word problem (Liu et
al. 2023, arXiv 2210.10749; Merrill et al. 2024, arXiv 2404.08819) asks for the product of all elements so far.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from random import Random
from typing import Any

END = "end"
Word = tuple[int, ...]


@dataclass(frozen=True)
class Machine:
    """A deterministic machine with a label for each of its states.

    name: as on the command line and in tables. symbols: the alphabet; a word is a tuple of places in it.
    start, step: the first state, and the next for a state and a symbol; None where no word goes on like this.
    label: what is to be known in a state. word: a random word of a length, which is a multiple of `multiple`.
    """

    name: str
    symbols: Sequence[Any]
    start: Any
    step: Callable[[Any, Any], Any]
    label: Callable[[Machine, Any], Hashable]
    word: Callable[[int, Random], Word]
    multiple: int = 1

    def lengths(self, low: int, high: int) -> list[int]:
        """Lengths from `low` to `high` that words have."""
        return [length for length in range(low, high + 1) if length % self.multiple == 0]

    def answers(self, word: Word) -> Word:
        """The label after each symbol, as its place in `labels`. Raises ValueError for what is no beginning of a word."""
        state, found = self.start, []
        for at, symbol in enumerate(word):
            state = self.step(state, self.symbols[symbol])
            if state is None:
                raise ValueError(f"{self.name} has no word that begins with {word[: at + 1]}")
            found.append(self.labels[self.label(self, state)])
        return tuple(found)

    @cached_property
    def labels(self) -> dict[Hashable, int]:
        """Every label, and its place: what a model chooses from."""
        states, found = {self.start}, {}
        for _ in range(DEPTH):
            after = (self.step(state, symbol) for state in states for symbol in self.symbols)
            states = {state for state in after if state is not None}
            found |= dict.fromkeys(sorted({self.label(self, state) for state in states}, key=repr))
        return {label: place for place, label in enumerate(found)}


DEPTH = 8  # symbols within which each of these machines shows all of its labels


def next_symbols(accepts: Callable[[Any], bool]) -> Callable[[Machine, Any], Hashable]:
    """The label of a language: the symbols that may come next, and END where the word may end."""

    def label(machine: Machine, state: Any) -> Hashable:
        allowed = [symbol for symbol in machine.symbols if machine.step(state, symbol) is not None]
        return tuple([*allowed, END] if accepts(state) else allowed)

    return label


def product(machine: Machine, state: Any) -> Hashable:
    """The label of a word problem: the state itself."""
    return state


def cycle(word: str) -> Machine:
    """`(word)*`: the state is the place in it."""
    symbols = sorted(set(word))
    places = tuple(symbols.index(letter) for letter in word)
    return Machine(
        f"({word})*",
        symbols,
        0,
        lambda state, symbol: (state + 1) % len(word) if symbol == word[state] else None,
        next_symbols(lambda state: state == 0),
        lambda length, random: places * (length // len(word)),
        multiple=len(word),
    )


def powers(letters: str) -> Machine:
    """`a^n b^n ..` for n >= 1: the state is how often each letter was read."""

    def step(counts: tuple[int, ...], symbol: str) -> tuple[int, ...] | None:
        at = letters.index(symbol)
        legal = not any(counts[at + 1 :]) and (at == 0 or (counts[at] < counts[0] == counts[at - 1]))
        return (*counts[:at], counts[at] + 1, *counts[at + 1 :]) if legal else None

    return Machine(
        " ".join(f"{letter}^n" for letter in letters),
        letters,
        (0,) * len(letters),
        step,
        next_symbols(lambda counts: counts[0] > 0 and len(set(counts)) == 1),
        lambda length, random: tuple(at for at in range(len(letters)) for _ in range(length // len(letters))),
        multiple=len(letters),
    )


def even_word(length: int, random: Random) -> Word:
    """Random bits, the last of which makes the number of ones even."""
    bits = random.choices((0, 1), k=length - 1)
    return (*bits, sum(bits) % 2)


PARITY = Machine(
    "parity",
    "01",
    0,
    lambda state, symbol: (state + int(symbol)) % 2,
    next_symbols(lambda state: state == 0),
    even_word,
)


def bracket(depths: tuple[int, int], symbol: str) -> tuple[int, int] | None:
    """Each kind of bracket for itself, whatever the other does."""
    kind, change = "([)]".index(symbol) % 2, 1 if symbol in "([" else -1
    after = depths[kind] + change
    if after < 0:
        return None
    return (after, depths[1]) if kind == 0 else (depths[0], after)


def shuffled_word(length: int, random: Random) -> Word:
    """Brackets at random, among those that can still be closed."""
    depths, word = (0, 0), []
    for left in range(length - 1, -1, -1):
        after = {place: bracket(depths, symbol) for place, symbol in enumerate("([)]")}
        legal = {place: state for place, state in after.items() if state is not None and sum(state) <= left}
        word.append(random.choice(list(legal)))
        depths = legal[word[-1]]
    return tuple(word)


SHUFFLE = Machine(
    "shuffle-2", "([)]", (0, 0), bracket, next_symbols(lambda depths: depths == (0, 0)), shuffled_word, multiple=2
)


def any_word(size: int) -> Callable[[int, Random], Word]:
    """Symbols of an alphabet at random."""
    return lambda length, random: tuple(random.choices(range(size), k=length))


MODULAR = Machine("addition mod 5", range(5), 0, lambda state, symbol: (state + symbol) % 5, product, any_word(5))
S5 = Machine(
    "S5",
    list(permutations(range(5))),
    tuple(range(5)),
    lambda state, symbol: tuple(state[place] for place in symbol),
    product,
    any_word(120),
)

MACHINES = {
    machine.name: machine
    for machine in (PARITY, cycle("aa"), cycle("abab"), powers("ab"), powers("abc"), SHUFFLE, MODULAR, S5)
}
