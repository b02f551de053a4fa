"""The one exception users see."""


class KeditError(ValueError):
    """One line: what is wrong, where, and what to do about it. Line breaks (of a library's own message, say) go."""

    def __init__(self, message: str = ""):
        super().__init__(" ".join(str(message).split("\n")))
