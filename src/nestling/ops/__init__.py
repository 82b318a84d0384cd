"""Numerical operations: the write-read scan."""

from nestling.ops.scan import ScanState, scan
from nestling.ops.state import State

__all__ = ["ScanState", "State", "scan"]
