"""Errors that a user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """Something that was given cannot be used; the message says what was given, what is allowed and what to do."""
