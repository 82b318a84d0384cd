"""The delta rule of linear memories: regression one pair at a time."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nestling.memory.matrix_rule import Carried, MatrixRule, Pairs, Update
from nestling.memory.objective import L2
from nestling.ops import ScanState, scan


@dataclass(frozen=True)
class DeltaRule(MatrixRule):
    """Gradient descent on `L2` at the running weight (DeltaNet, Eq. 65), whatever the chunk: `M <- alpha M - eta x^T (x M' - v)`.

    With unit inputs the eigenvalue of a token's transition along the input is `alpha (1 - eta)`: steps up to 1 replace what the
    input held by the value, in part; up to 2 they are stable, and negative eigenvalues allow what parity needs (Grazzi et al.,
    arXiv 2411.12537). (`GradientDescent` with `L2` takes all of a chunk's gradients at its start, and is stable for fewer steps.)

    exact: the proximal step `eta / (1 + eta |x|^2)` in place of eta, stable for every eta >= 0 (Longhorn, arXiv 2407.14207).
    fade_first: `M'` is `alpha M`, as Gated DeltaNet has it (arXiv 2412.06464), or else `M`, as Comba and RWKV-7 do: the
        eigenvalue is then `alpha - eta`, and steps up to `1 + alpha` are stable. An erasure
        of a share `b` of the step alone, `eta x^T (b x M' - v)` (Comba, arXiv 2506.02475), is the rate `b eta` and the value `v / b`.

    momentum: writes are a running mean, as of `GradientDescent`; on the token loop, slowly.

    Rates and retentions may be of each input channel: `eta, alpha [B, H, L, d]` (RWKV-7, arXiv 2503.14456), without `exact`.
    """

    exact: bool = False
    fade_first: bool = True
    momentum: bool = False

    objective = L2
    channels = True

    def token(self, weight: Tensor, carried: Carried, pair: Pairs) -> Update:
        x, v, eta, alpha = pair
        kept = alpha[..., None] * weight
        met = x[..., None, :] @ (kept if self.fade_first else weight)
        error = met - v[..., None, :]
        return Update(kept, -(self._step(eta, x) * x)[..., None] * error)

    def piece(
        self, q: Tensor | None, pairs: Pairs, weight: Tensor, carried: Carried, read: str
    ) -> tuple[Tensor | None, Tensor, Carried]:
        (x, v, eta, alpha), reads = pairs, None if q is None else read
        step, options = self._step(eta, x), {"state": ScanState(weight), "read": reads, "chunk_size": x.shape[-2]}
        if eta.shape[-1] == alpha.shape[-1] == 1:
            eps = step * alpha if self.fade_first else step
            y, after = scan(q, x, step * v, alpha[..., 0], eps[..., 0], **options)
        else:
            written, alpha = step * x, alpha.expand_as(x)
            erase = (alpha * x if self.fade_first else x), written
            y, after = scan(q, written, v, alpha, erase=erase, **options)
        return y, after.memory, carried

    def _step(self, eta: Tensor, x: Tensor) -> Tensor:
        """`[.., 1]` or `[.., d]`."""
        if not self.exact:
            return eta
        if eta.shape[-1] != 1:
            raise ValueError(
                f"exact=True has no step of each channel; eta has {eta.shape[-1]}: give one number a token"
            )
        return eta / (1 + eta * x.square().sum(-1, keepdim=True))
