"""Adaptation to a stream and what it costs: prose, then code, then prose again, read by every method."""
