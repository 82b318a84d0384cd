"""The memories of the literature, each a choice of network, objective, rule and retention.

`zoo.deltanet(dim, heads)` is the memory, for heads of width `dim`; `ZOO["deltanet"]` says also what drives it: which rates and
retentions a token has, as the paper has them. `nestling.layers.MemoryLayer` makes a layer of that, and
`HopeConfig(mixer="deltanet")` a model. Keys and queries are meant to have norm 1. What a paper has around its memory
(token shift, output gates, norms of its own) is not part of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nestling.memory.associative import AssociativeMemory
from nestling.memory.attention import SoftmaxAttention
from nestling.memory.compound import Omega, Orthogonal
from nestling.memory.delta_rule import DeltaRule
from nestling.memory.features import Features, Polynomial
from nestling.memory.network import MLP, Matrix, Network
from nestling.memory.objective import L2, DotProduct, Huber, Lp
from nestling.memory.oja import Oja
from nestling.memory.residual_norm import ResidualNorm
from nestling.memory.retention import KL, Lq
from nestling.memory.rule import GradientDescent

Heads = int | Sequence[int]
Memory = AssociativeMemory | SoftmaxAttention


@dataclass(frozen=True)
class Classic:
    """A memory of the literature, and what drives it.

    make: `make(dim, heads, ..)`. title, source: its name and paper.
    rate: "one" - every token writes with rate 1; "token" - a number in (0, 1) a token and head, learnt; "chunk" - the same over
        the chunk size, so that the steps of a chunk on one key, all taken at its start, do not overshoot; "channel" - one in
        (0, 1) of each key channel.
    retention: None; "head" - a constant a head; "token" - learnt, a number a token and head; "channel" - of each key channel.
    largest: rate that is stable: 2 where what the input held may turn its sign.
    unit_values: whether values, too, are brought to norm 1.
    closed_loop: whether erasure and reading are corrected by two learnt numbers a head (Comba).
    """

    make: Callable[..., Memory]
    title: str
    source: str
    rate: str = "one"
    retention: str | None = None
    largest: float = 1.0
    unit_values: bool = False
    closed_loop: bool = False

    def takes(self, argument: str) -> bool:
        """Whether `make` has an argument of this name."""
        return argument in inspect.signature(self.make).parameters


ZOO: dict[str, Classic] = {}


def _classic(title: str, source: str, **drive: Any) -> Callable[[Callable[..., Memory]], Callable[..., Memory]]:
    def register(make: Callable[..., Memory]) -> Callable[..., Memory]:
        ZOO[make.__name__] = Classic(make, title, source, **drive)
        return make

    return register


def _matrix(dim: int, heads: Heads) -> Matrix:
    return Matrix(dim, dim, heads, learnt=False)


def _mlp(dim: int, heads: Heads, hidden: int | None) -> MLP:
    return MLP(dim, hidden or dim, heads)


def _inclusive(network: Network, objective: Any, rule: Any, chunk_size: int, **options: Any) -> AssociativeMemory:
    """Tokens read what they themselves write, too, as everywhere in this literature."""
    return AssociativeMemory(network, objective, rule, chunk_size, "inclusive", **options)


@_classic("Linear attention", "Katharopoulos et al. 2020, arXiv 2006.16236")
def linear_attention(dim: int, heads: Heads = 1, chunk_size: int = 64) -> AssociativeMemory:
    """Hebbian writes that nothing fades or erases (Eq. 64); features in front of it are `Features(EluPlusOne(), Matrix(..))`."""
    return _inclusive(_matrix(dim, heads), DotProduct(), GradientDescent(), chunk_size)


@_classic("RetNet", "Sun et al. 2023, arXiv 2307.08621", retention="head")
def retnet(dim: int, heads: Heads = 1, chunk_size: int = 64) -> AssociativeMemory:
    """Hebbian writes that fade, at a constant of each head."""
    return _inclusive(_matrix(dim, heads), DotProduct(), GradientDescent(), chunk_size)


@_classic("Gated linear attention", "Yang et al. 2023, arXiv 2312.06635", retention="channel")
def gated_linear_attention(dim: int, heads: Heads = 1, chunk_size: int = 64) -> AssociativeMemory:
    """Hebbian writes that fade as the token says, each key channel for itself."""
    return _inclusive(_matrix(dim, heads), DotProduct(), GradientDescent(), chunk_size)


@_classic(
    "DeltaNet", "Schlag et al. 2021, arXiv 2102.11174; Yang et al. 2024, arXiv 2406.06484", rate="token", largest=2.0
)
def deltanet(dim: int, heads: Heads = 1, chunk_size: int = 64) -> AssociativeMemory:
    """Regression, one step a token (Eq. 65)."""
    return _inclusive(_matrix(dim, heads), L2(), DeltaRule(), chunk_size)


@_classic("Gated DeltaNet", "Yang et al. 2024, arXiv 2412.06464", rate="token", retention="token", largest=2.0)
def gated_deltanet(dim: int, heads: Heads = 1, chunk_size: int = 64) -> AssociativeMemory:
    """The delta rule on a memory that fades."""
    return _inclusive(_matrix(dim, heads), L2(), DeltaRule(), chunk_size)


@_classic("Longhorn", "Liu et al. 2024, arXiv 2407.14207", rate="token")
def longhorn(dim: int, heads: Heads = 1, chunk_size: int = 64) -> AssociativeMemory:
    """The proximal step of regression, exactly (the paper's own code takes the diagonal of the erasure)."""
    return _inclusive(_matrix(dim, heads), L2(), DeltaRule(exact=True), chunk_size)


@_classic("RWKV-7, delta part", "Peng et al. 2025, arXiv 2503.14456", rate="channel", retention="channel")
def rwkv7(dim: int, heads: Heads = 1, chunk_size: int = 64) -> AssociativeMemory:
    """The delta rule with rates and retentions of each channel; without the paper's second key and bonus."""
    return _inclusive(_matrix(dim, heads), L2(), DeltaRule(fade_first=False), chunk_size)


@_classic("Comba", "Hu et al. 2025, arXiv 2506.02475", rate="token", retention="token", closed_loop=True)
def comba(dim: int, heads: Heads = 1, chunk_size: int = 64) -> AssociativeMemory:
    """The delta rule in a closed loop: its two numbers a head, of feedback and of output correction, are the layer's."""
    return _inclusive(_matrix(dim, heads), L2(), DeltaRule(fade_first=False), chunk_size)


@_classic("OjaNet", "Oja 1982; Irie et al. 2022, arXiv 2206.01649", rate="token", retention="token", unit_values=True)
def ojanet(dim: int, heads: Heads = 1, chunk_size: int = 64) -> AssociativeMemory:
    """Hebbian writes less what the value already holds."""
    return _inclusive(_matrix(dim, heads), DotProduct(), Oja(), chunk_size)


@_classic("TTT-Linear", "Sun et al. 2024, arXiv 2407.04620", rate="chunk")
def ttt_linear(dim: int, heads: Heads = 1, chunk_size: int = 16) -> AssociativeMemory:
    """A linear model behind a norm and a residual, all gradients of a chunk at its start."""
    network = ResidualNorm(MLP(dim, dim, heads, depth=1, residual=False))
    return _inclusive(network, L2(), GradientDescent(), chunk_size)


@_classic("TTT-MLP", "Sun et al. 2024, arXiv 2407.04620", rate="chunk")
def ttt_mlp(dim: int, heads: Heads = 1, chunk_size: int = 16, hidden: int | None = None) -> AssociativeMemory:
    """The same with a hidden layer, four times as wide (SiLU where the paper has GELU)."""
    network = ResidualNorm(MLP(dim, hidden or 4 * dim, heads, residual=False))
    return _inclusive(network, L2(), GradientDescent(), chunk_size)


@_classic("Titans (LMM)", "Behrouz et al. 2025, arXiv 2501.00663", rate="chunk", retention="token")
def titans(dim: int, heads: Heads = 1, chunk_size: int = 64, hidden: int | None = None) -> AssociativeMemory:
    """A deep memory that fades, with momentum: surprise past and present."""
    return _inclusive(_mlp(dim, heads, hidden), L2(), GradientDescent(momentum=True), chunk_size)


@_classic("DLA", "Behrouz et al. 2025, arXiv 2505.23735", rate="chunk", retention="token")
def dla(dim: int, heads: Heads = 1, chunk_size: int = 64, hidden: int | None = None) -> AssociativeMemory:
    """Deep linear attention: Hebbian writes of a deep memory that fades."""
    return _inclusive(_mlp(dim, heads, hidden), DotProduct(), GradientDescent(), chunk_size)


@_classic("Moneta", "Behrouz et al. 2025, arXiv 2504.13173", rate="chunk", retention="token")
def moneta(dim: int, heads: Heads = 1, chunk_size: int = 16, hidden: int | None = None) -> AssociativeMemory:
    """The third power of errors, weights held by their 4-norm."""
    return _inclusive(_mlp(dim, heads, hidden), Lp(3), GradientDescent(), chunk_size, retention=Lq(4))


@_classic("Yaad", "Behrouz et al. 2025, arXiv 2504.13173", rate="chunk", retention="token")
def yaad(dim: int, heads: Heads = 1, chunk_size: int = 64, hidden: int | None = None) -> AssociativeMemory:
    """Huber's loss: no token writes more than a bounded step (at a constant threshold)."""
    return _inclusive(_mlp(dim, heads, hidden), Huber(1.0), GradientDescent(), chunk_size)


@_classic("Memora", "Behrouz et al. 2025, arXiv 2504.13173", rate="chunk", retention="token")
def memora(dim: int, heads: Heads = 1, chunk_size: int = 16, hidden: int | None = None) -> AssociativeMemory:
    """Weights on a simplex, held by the divergence."""
    return _inclusive(_mlp(dim, heads, hidden), L2(), GradientDescent(), chunk_size, retention=KL())


@_classic("OmegaNet", "Behrouz et al. 2025, arXiv 2505.23735", rate="chunk", retention="token")
def omeganet(
    dim: int, heads: Heads = 1, chunk_size: int = 64, hidden: int | None = None, window: int = 16, degree: int = 2
) -> AssociativeMemory:
    """Steps on a window of tokens, of a deep memory of polynomial features of its keys, all monomials up to `degree`."""
    return _inclusive(_polynomial(dim, heads, hidden, degree), L2(), Omega(window), chunk_size)


@_classic("Atlas", "Behrouz et al. 2025, arXiv 2505.23735", rate="chunk", retention="token")
def atlas(
    dim: int,
    heads: Heads = 1,
    chunk_size: int = 16,
    hidden: int | None = None,
    window: int = 16,
    degree: int = 1,
    steps: int = 2,
) -> AssociativeMemory:
    """OmegaNet with momentum, its writes orthogonal as Muon's steps.

    Newton-Schulz takes every token's matrices: with the paper's polynomial features (`degree=2`) they have `dim^2 / 2` rows, and a
    token costs a hundred times what it does without.
    """
    rule = Orthogonal(Omega(window, GradientDescent(momentum=True)), steps)
    return _inclusive(_polynomial(dim, heads, hidden, degree), L2(), rule, chunk_size)


@_classic("Softmax attention", "Vaswani et al. 2017, arXiv 1706.03762")
def softmax_attention(dim: int, heads: Heads = 1) -> SoftmaxAttention:
    """Nadaraya-Watson regression over all that was seen."""
    return SoftmaxAttention(dim, dim, heads)


@_classic("Sliding-window attention", "Beltagy et al. 2020, arXiv 2004.05150")
def sliding_window(dim: int, heads: Heads = 1, window: int = 64) -> SoftmaxAttention:
    """Nadaraya-Watson regression over the last tokens."""
    return SoftmaxAttention(dim, dim, heads, window)


def _polynomial(dim: int, heads: Heads, hidden: int | None, degree: int) -> Network:
    features = Polynomial(degree)
    network = MLP(features.width(dim), hidden or dim, heads, residual=False, dim_value=dim)
    return Features(features, network, dim)
