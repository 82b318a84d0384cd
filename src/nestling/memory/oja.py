"""Oja's rule: a Hebbian write that takes away what the value already held."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nestling.memory.matrix_rule import Carried, MatrixRule, Pairs, Update
from nestling.memory.objective import DotProduct
from nestling.ops import ScanState
from nestling.ops.scan.chunk import Decay, chunk_step
from nestling.ops.triangular import solve_unit_lower


@dataclass(frozen=True)
class Oja(MatrixRule):
    """`M <- alpha M + eta (x - v M^T)^T v` (Oja 1982; as a fast weight, Irie et al. 2022, arXiv 2206.01649).

    The delta rule seen from the value's side: where that erases what the *input* held, this erases what the *value* held, so
    that the memory stays bounded, for unit values and steps up to 1, without an error at the output.

    momentum: writes are a running mean, as of `GradientDescent`; on the token loop, slowly.
    """

    momentum: bool = False

    objective = DotProduct

    def token(self, weight: Tensor, carried: Carried, pair: Pairs) -> Update:
        x, v, eta, alpha = pair
        held = (weight @ v[..., None]).squeeze(-1)
        return Update(alpha[..., None] * weight, (eta * (x - held))[..., None] * v[..., None, :])

    def piece(
        self, q: Tensor | None, pairs: Pairs, weight: Tensor, carried: Carried, read: str
    ) -> tuple[Tensor | None, Tensor, Carried]:
        """`h_t = v_t M_{t-1}^T` solves one triangular system; the rest is a Hebbian scan that writes `eta (x - h)`."""
        x, v, eta, alpha = pairs
        decay = Decay.of(alpha[..., 0], None, None)
        held = decay.before.memory * (v @ weight.mT)  # of the weight the piece began with
        scores = decay.before.old * (v @ v.mT)
        written = solve_unit_lower(eta * scores, eta * (x - held))
        y, after = chunk_step(q, written, v, None, decay, ScanState(weight), None if q is None else read)
        return y, after.memory, carried
