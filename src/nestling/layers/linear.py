"""The linear map of every layer here: its weight may carry a batch dimension."""

from __future__ import annotations

from torch import Tensor, nn


class Linear(nn.Linear):
    """`y = x W^T` without bias, for `x [B, L, in]` and a weight `[out, in]`, or `[B, out, in]`: one a row.

    Fast weights are thus ordinary weights with a batch dimension, put in place by `torch.func.functional_call`;
    no layer needs to know of them.
    """

    def __init__(self, features_in: int, features_out: int) -> None:
        super().__init__(features_in, features_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.weight.dim() == 2 else x @ self.weight.mT
