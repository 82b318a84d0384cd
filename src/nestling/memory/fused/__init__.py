"""The memory that self-modifying Titans are made of, as one function with a backward pass of its own.

The same numbers as the general path of `AssociativeMemory` for `MLP`, `Huber`, `SelfGenerated` and `DeltaGradientDescent()`, in a
third of its operations. Three things make the difference. Retention of at least 1/2 lets the scan run on the weights divided
by what is left of the block's start, `A_t = prod_{1..t} alpha`, which decay no more (no matrix of decays is formed):

    W_t / A_t = W_{t-1} / A_{t-1} - e_t x_t^T (x_t W_{t-1} / A_{t-1} + delta_t / A_{t-1})          e_t = beta_t / alpha_t

The gradient is written out by hand. And passes over tensors that no cache holds, which cost as much as the products between
them, are few: products add to what is there, in place, and what memories share is made once.

`..` rows, memories and heads, n tokens of a block, d width, h hidden width. Names: `at_x` is the gradient at x.
"""

from nestling.memory.fused.function import write_and_read
from nestling.memory.fused.given import LONGEST, Given, fits

__all__ = ["LONGEST", "Given", "fits", "write_and_read"]
