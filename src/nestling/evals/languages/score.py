"""chrF (Popovic 2015), as sacrebleu counts it."""

from __future__ import annotations

from collections.abc import Sequence

from nestling.errors import UserError


def chrf(answers: Sequence[str], references: Sequence[str]) -> float:
    """Of a whole set, 0 to 100: characters up to sixfold, recall twice as heavy as precision.

    Raises:
        UserError: sacrebleu is not installed.
        ValueError: nothing to score, or not an answer for every reference.
    """
    try:
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise UserError("chrF needs sacrebleu: pip install nestling[eval]") from None
    if not references or len(answers) != len(references):
        raise ValueError(
            f"{len(answers)} answers and {len(references)} references; give one for each, and at least one"
        )
    return CHRF().corpus_score([*answers], [[*references]]).score
