"""x"""
from nestling.memory.fused.function import write_and_read
from nestling.memory.fused.given import LONGEST, Given, fits
__all__ = ["LONGEST", "Given", "fits", "write_and_read"]
