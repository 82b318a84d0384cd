"""One progress bar is enough."""

from __future__ import annotations

import os


def quiet() -> None:
    """Keep transformers from printing bars of its own and from asking a hub; before it is imported."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers.utils import logging

    logging.disable_progress_bar()
