"""Evaluations, one question each."""
