"""A scan that cannot mean anything raises, and the message names what was given."""

import pytest
import torch

from nestling.ops import ScanState, scan

B, H, L, D = 2, 3, 5, 4

CASES = {
    "backend": ({"backend": "cuda"}, ["backend='cuda'", "'chunk'", "'reference'"]),
    "read": ({"read": "both"}, ["read='both'", "'inclusive'", "'exclusive'"]),
    "queries": ({"q": None}, ["read='inclusive'", "q"]),
    "chunk": ({"chunk_size": 0}, ["chunk_size=0"]),
    "dtype of k": ({"k": torch.ones(B, H, L, D, dtype=torch.int64)}, ["k has dtype torch.int64"]),
    "length of u": ({"u": torch.ones(B, H, L + 1, D)}, [f"u has shape ({B}, {H}, {L + 1}, {D})", f"L = {L}"]),
    "dimensions": ({"u": torch.ones(L, D)}, [f"u has shape ({L}, {D})", "[B, H, L, d]"]),
    "width of q": ({"q": torch.ones(B, H, L, D + 1)}, [f"q has width {D + 1}", f"k has {D}"]),
    "alpha": ({"alpha": torch.ones(B, H, L + 1)}, [f"alpha has shape ({B}, {H}, {L + 1})", f"({B}, {H}, {L})"]),
    "alpha per channel": (
        {"alpha": torch.ones(B, H, L, D + 1)},
        [f"alpha has shape ({B}, {H}, {L}, {D + 1})", f"({B}, {H}, {L}, {D})"],
    ),
    "heads": ({"alpha": torch.ones(B, H + 1, L)}, [f"({B}, {H}), ({B}, {H + 1})", "do not broadcast"]),
    "heads of u": ({"u": torch.ones(B, H + 1, L, D)}, [f"({B}, {H}), ({B}, {H + 1})", "do not broadcast"]),
    "two erasures": (
        {"eps": torch.ones(B, H, L), "erase": (torch.ones(B, H, L, D),) * 2},
        ["eps and erase", "erase=(k, eps[..., None] * k)"],
    ),
    "erase is one": ({"erase": torch.ones(B, H, L, D)}, ["erase is Tensor", "(look, remove)"]),
    "erase is three": (
        {"erase": (torch.ones(B, H, L, D),) * 3},
        ["erase is ['Tensor', 'Tensor', 'Tensor']", "(look, remove)"],
    ),
    "look": (
        {"erase": (torch.ones(B, H, L, D + 1), torch.ones(B, H, L, D))},
        [f"erase[0] (look) has shape ({B}, {H}, {L}, {D + 1})", f"({B}, {H}, {L}, {D})"],
    ),
    "remove": (
        {"erase": (torch.ones(B, H, L, D), torch.ones(B, H, L))},
        [f"erase[1] (remove) has shape ({B}, {H}, {L})"],
    ),
    "dtype of remove": (
        {"erase": (torch.ones(B, H, L, D), torch.ones(B, H, L, D, dtype=torch.bool))},
        ["erase[1] (remove) has dtype torch.bool"],
    ),
    "momentum with erase": (
        {"erase": (torch.ones(B, H, L, D),) * 2, "theta": torch.ones(B, H, L), "backend": "chunk"},
        ["backend='chunk' has no form for theta", "'reference'", "theta=None"],
    ),
    "momentum by channel": (
        {"alpha": torch.ones(B, H, L, D), "theta": torch.ones(B, H, L), "backend": "chunk"},
        ["backend='chunk' has no form for theta", "alpha per channel"],
    ),
    "eps": ({"eps": torch.ones(B, H, L, 1)}, [f"eps has shape ({B}, {H}, {L}, 1)"]),
    "theta": ({"theta": torch.ones(B, L)}, [f"theta has shape ({B}, {L})"]),
    "mask dtype": ({"mask": torch.ones(B, L)}, ["mask is", "torch.float32", "torch.bool"]),
    "mask shape": ({"mask": torch.ones(B, L + 1, dtype=torch.bool)}, [f"({B}, {L + 1})", f"({B}, {L})"]),
    "momentum lost": (
        {"state": ScanState(torch.zeros(B, H, D, D), torch.zeros(B, H, D, D))},
        ["state and theta disagree"],
    ),
    "momentum missing": (
        {"state": ScanState(torch.zeros(B, H, D, D)), "theta": torch.ones(B, H, L)},
        ["state and theta disagree"],
    ),
    "state shape": ({"state": ScanState(torch.zeros(B, H, D, D + 1))}, [f"({B}, {H}, {D}, {D + 1})", f"{D}, {D})"]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_message_names_what_was_given(case):
    """Every argument that does not fit is named in the error, with its value or shape."""
    given, words = CASES[case]
    plain = {name: torch.ones(B, H, L, D) for name in "qku"}
    scan(**plain)  # without the fault it runs
    with pytest.raises(ValueError) as caught:
        scan(**{**plain, **given})
    for word in words:
        assert word in str(caught.value)


def test_an_empty_sequence_raises():
    """There is no state to speak of after no token."""
    empty = torch.ones(B, H, 0, D)
    with pytest.raises(ValueError, match="empty"):
        scan(empty, empty, empty)
