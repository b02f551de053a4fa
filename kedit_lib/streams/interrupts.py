"""A stop in the middle of an edit, by Ctrl-C or by whoever runs the stream: the edit is finished first."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from tqdm.auto import tqdm

# For a stream in a thread, which gets no signals: whether it shall stop.
unwanted: ContextVar[Callable[[], bool]] = ContextVar("unwanted", default=lambda: False)
under_way: list[threading.Event] = []  # of the streams of this process: whether Ctrl-C was pressed


@contextlib.contextmanager
def postponed() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C is only noted: the caller asks what this yields, and stops where it is safe. A second
    one acts at once. Signals are left alone in other threads, which get none, and where Ctrl-C is ignored."""
    pressed, before = threading.Event(), signal.getsignal(signal.SIGINT)
    heeded = threading.current_thread() is threading.main_thread() and callable(before)

    def note(*_) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, before)
        tqdm.write("stopping after this edit; Ctrl-C again stops at once", file=sys.stderr)

    under_way.append(pressed)
    if heeded:
        signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed.is_set() or unwanted.get()()
    finally:
        under_way.remove(pressed)
        if heeded:
            signal.signal(signal.SIGINT, before)
