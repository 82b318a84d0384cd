"""The page of all identities, written from their tests: `python -m tests.identities.gallery`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from tests.identities.identity import Identity

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "identities.md"
SECTIONS = ("descent", "momentum", "adaptive", "sequence", "levels")  # in reading order, each a file
PREFACE = """\
# A gallery of identities

Architectures and optimisers are one thing, says the paper ([arXiv 2512.24695](https://arxiv.org/abs/2512.24695)): associative
memories that learn at different frequencies. Here is what that means, equation by equation. **Each of the {count} statements
is a test**, and this page is written from the tests (`python -m tests.identities.gallery`); `make test ARGS=tests/identities` runs
them all. The sides of an identity are computed by different routes: by PyTorch's own optimisers and layers, by this library, by an
argmin that knows nothing but the objective.

Tokens are rows, $x_t$ is `[1, in]`; a memory $M$ is `[in, out]` and read as $q M$; a layer's weight $W$ is PyTorch's,
`[out, in]`, and a gradient $G$ has its shape. $u$ is a gradient at an output, the local surprise. $|\\cdot|$ is the Frobenius
norm; products and roots of elements are written as those of numbers. Losses have a factor of $\\tfrac12$ where the paper has none, so that
$\\eta$ is the step; equation numbers are the paper's. *The argmin* is found by one Newton step from a random start, with gradient and
Hessian by automatic differentiation: exact for a quadratic objective.
"""


def section(name: str) -> ModuleType:
    """The file of a section."""
    return importlib.import_module(f"tests.identities.test_{name}")


def identities(module: ModuleType) -> list[tuple[Identity, Callable]]:
    """The identities of a file with their tests, in the order in which they are written."""
    return [(test.identity, test) for test in vars(module).values() if hasattr(test, "identity")]


def page() -> str:
    """The page as Markdown."""
    modules = [section(name) for name in SECTIONS]
    count = sum(len(identities(module)) for module in modules)
    return "\n".join([PREFACE.format(count=count), *(part(module) for module in modules)])


def part(module: ModuleType) -> str:
    """A section: the first docstring line is `Title: what it is about`."""
    title, about = inspect.getdoc(module).split("\n")[0].split(": ", 1)  # pyright: ignore[reportOptionalMemberAccess]
    entries = [entry(*one) for one in identities(module)]
    return "\n".join([f"## {title}\n\n{about[0].upper()}{about[1:]}\n", *entries])


def entry(identity: Identity, test: Callable) -> str:
    """A statement, its equation, and how it was checked."""
    sides = "\n".join(f"{i}. {side}" for i, side in enumerate(identity.sides, start=1))
    where = f"{test.__module__.replace('.', '/')}.py::{test.__name__}"
    return (
        f"### {identity.title}\n\n$$\n{identity.equation}\n$$\n\n{inspect.getdoc(test)}\n\n{sides}\n\n"
        f"{agreement(identity)} *Source:* {identity.source}. *Test:* `{where}`\n"
    )


def agreement(identity: Identity) -> str:
    """How far the sides may be apart."""
    tolerance = f"{identity.tolerance:g}".replace("e-0", "e-")
    if identity.approximation:
        return f"*Approximate,* to {tolerance} of the norm: {identity.approximation}."
    return f"*Equal* to {tolerance} in float64."


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
