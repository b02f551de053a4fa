"""The one exception users see."""


class KeditError(ValueError):
    """One line: what is wrong, where, and what to do about it."""
