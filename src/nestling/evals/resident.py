"""What a process has in memory."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def resident() -> int:
    """Bytes of this process in memory now; where the system does not say (it is no Linux), the most there ever were."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    return peak()


def peak() -> int:
    """The most bytes of this process that were ever in memory."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
