"""Numerical operations: the write-read scan, and the nearest semi-orthogonal matrix."""

from nestling.ops.newton_schulz import newton_schulz
from nestling.ops.scan import ScanState, scan
from nestling.ops.state import State

__all__ = ["ScanState", "State", "newton_schulz", "scan"]
