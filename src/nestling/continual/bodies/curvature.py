"""The Fisher information of a network's predictions, exactly over the labels, layer by layer.

For a softmax `p` over the classes and logits `z` it is `E_x[J^T (diag p - p p^T) J]`, `J = dz/dW`. With `s_c = sqrt(p_c) (e_c - p)` the
matrix in the middle is `sum_c s_c s_c^T`, so one backward pass for each class, from `s_c`, gives all of it; no labels are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nestling.continual.bodies.body import Body
from nestling.levels import outputs

Factors = tuple[Tensor, Tensor]


def diagonals(body: Body, x: Tensor) -> list[Tensor]:
    """For each layer the mean over examples `x [N, d]` of the Fisher information's diagonal, `[out, in]` (EWC's)."""
    inputs = _inputs(body, x)
    found = [torch.zeros_like(weight) for weight in body.weights()]
    for gradients in _surprises(body, x):
        for total, gradient, given in zip(found, gradients, inputs, strict=True):
            total.addmm_(gradient.square().mT, given.square(), alpha=1 / len(x))
    return found


def factors(body: Body, x: Tensor) -> list[Factors]:
    """For each layer the Kronecker factors `E[x x^T] [in, in]` and `E[g g^T] [out, out]` (Martens and Grosse, arXiv 1503.05671)."""
    inner = [given.mT @ given / len(x) for given in _inputs(body, x)]
    outer = [weight.new_zeros(len(weight), len(weight)) for weight in body.weights()]
    for gradients in _surprises(body, x):
        for total, gradient in zip(outer, gradients, strict=True):
            total.addmm_(gradient.mT, gradient, alpha=1 / len(x))
    return list(zip(inner, outer, strict=True))


@torch.no_grad()
def _inputs(body: Body, x: Tensor) -> list[Tensor]:
    """What goes into each layer, `[N, in]`."""
    found: list[Tensor] = []
    handles = [
        layer.register_forward_pre_hook(lambda _, given: found.append(given[0])) for layer in body.network.linear()
    ]
    try:
        body.network(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _surprises(body: Body, x: Tensor) -> Iterator[list[Tensor]]:
    """For each class met the gradients at the outputs of the layers, `[N, out]` each, from `s_c` on."""
    with torch.enable_grad(), outputs({str(at): layer for at, layer in enumerate(body.network.linear())}) as said:
        logits = body.logits(x)
    places = [output for _, output in said]
    probabilities = logits.detach().softmax(-1)
    for label in range(logits.shape[1]):
        sent = -probabilities
        sent[:, label] += 1
        sent = sent * probabilities[:, label, None].sqrt()
        yield list(torch.autograd.grad(logits, places, sent, retain_graph=True))
