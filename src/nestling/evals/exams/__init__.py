"""Exams of memory: MAD, MQAR, needles in a haystack and BABILong, one protocol for all of them."""
