"""The one exception users see."""

import difflib
import functools
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


class KeditError(ValueError):
    """One line: what is wrong, where, and what to do about it. Line breaks (of a library's own message, say) go."""

    def __init__(self, message: str = ""):
        super().__init__(" ".join(str(message).split("\n")))


def first_line(error: Exception) -> str:
    """The first line of another library's exception, for an error message."""
    said = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return said.splitlines()[0]


def meant(name: str, known: Iterable[str]) -> str:
    """ ", did you mean …" for a name that is nearly one of the known ones, else ""."""
    return "".join(f", did you mean {like}" for like in difflib.get_close_matches(str(name), list(known), 1))


def check_kind(what: str, given, kind, remedy: str) -> None:
    """KeditError unless `given` is an instance of `kind`."""
    if not isinstance(given, kind):
        raise KeditError(f"{what} is of type {type(given).__name__}; {remedy}")


def check_editable(model, what: str) -> None:
    """KeditError unless `model` is an EditableModel, which the plain model of transformers is not."""
    if not hasattr(model, "check_layers"):
        wrap = "wrap it: kedit.EditableModel(model, tokenizer)" if hasattr(model, "forward") else "kedit.load_model"
        raise KeditError(f"{what}: a {type(model).__name__} is not an EditableModel; {wrap}")


@contextmanager
def explained(problem: str, remedy: str, concerns: Callable[[Exception], bool] = lambda error: True) -> Iterator[None]:
    """Inside, an exception that it concerns is a KeditError: the problem, its first line in brackets, the remedy."""
    try:
        yield
    except Exception as error:
        if not concerns(error):
            raise
        raise KeditError(f"{problem} ({first_line(error)}); {remedy}") from error


def program(main: Callable[..., int]) -> Callable[..., int]:
    """A command line's `main`: a KeditError is one line on stderr and exit code 1, Ctrl-C is 130; a warning is a line
    without the place in the code that it comes from."""

    @functools.wraps(main)
    def run(*arguments, **named) -> int:
        usual, warnings.formatwarning = warnings.formatwarning, lambda message, *_, **__: f"kedit: {message}\n"
        try:
            return main(*arguments, **named)
        except KeditError as error:
            print(f"kedit: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("kedit: stopped; the same command goes on from what is done", file=sys.stderr)
            return 130
        finally:
            warnings.formatwarning = usual

    return run
