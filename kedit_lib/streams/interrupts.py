"""A stop in the middle of an edit, by Ctrl-C or by whoever runs the stream: the edit is finished first."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from tqdm.auto import tqdm

# For a stream in a thread, which gets no signals: whether it shall stop.
unwanted: ContextVar[Callable[[], bool]] = ContextVar("unwanted", default=lambda: False)
under_way: list["Interrupt"] = []  # of this process


@dataclass
class Interrupt:
    noted: bool = False

    @property
    def asked(self) -> bool:
        return self.noted or unwanted.get()()


@contextlib.contextmanager
def postponed() -> Iterator[Interrupt]:
    """Inside, the first Ctrl-C is only noted, so that the caller can stop where it is safe; a second one acts at once.
    Signals are left alone outside the main thread, which alone gets them, and in a process that ignores Ctrl-C."""
    interrupt, before = Interrupt(), signal.getsignal(signal.SIGINT)
    heeded = threading.current_thread() is threading.main_thread() and callable(before)

    def note(*_) -> None:
        interrupt.noted = True
        signal.signal(signal.SIGINT, before)
        tqdm.write("stopping after this edit; Ctrl-C again stops at once", file=sys.stderr)

    under_way.append(interrupt)
    if heeded:
        signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        under_way.remove(interrupt)
        if heeded:
            signal.signal(signal.SIGINT, before)
